# SPDX-License-Identifier: Apache-2.0
"""The demo: from recorded rollouts to a live alarm (`./dev demo`).

Converts the recorded rollouts that ship with the sources, fits SAFE-LSTM on some tasks, calibrates
its band, evaluates it, then streams rollouts of unseen tasks through ``replay`` and ``monitor``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from safe_bringup.live import LiveEpisode, play_live
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.evaluate import CLOCK, Row
from safe_training.evaluation.fit_and_calibrate import fit_and_calibrate, labelled
from safe_training.evaluation.judge import judge as judge_set
from safe_training.evaluation.protocol import HELD_OUT_PROTOCOL, choose_split
from safe_training.metrics.part_report import flatten_report
from safe_training.metrics.scored import ScoredRollout
from safe_training.recordings.convert import convert
from safe_training.recordings.rollouts import Rollouts
from safe_training.reporting.figures.score_curves import plot_episodes
from safe_training.reporting.numbers import as_number, plain_json
from safe_training.reporting.tables.evaluation import report_table
from safe_training.reporting.tables.terminal import print_table, wide_console
from vla_feature_bridge.atomic import replace_file
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet

DETECTOR = 'safe_lstm'
# These values were chosen on the held-out rollouts of the seen tasks. The recorded policy is small,
# so a small network is enough.
PARAMETERS = {'hidden': 64, 'learning_rate': 1e-3}
DUMP = 'openvla_dump'
POOLED = 'miniature_disturbed.npz'


class DemoError(SafeError):
    """The demo cannot run; the message contains the name of the missing file."""


def data_folder() -> Path:
    """Return the folder of recorded rollouts.

    ``SAFE_DEMO_DATA`` if it is set, otherwise the folder in the source checkout.
    """
    named = os.environ.get('SAFE_DEMO_DATA')
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / 'test' / 'data'
    if not (folder / POOLED).is_file():
        raise DemoError(
            where=str(folder),
            expected=f'the file {POOLED}',
            found='no such file',
            advice='run the demo in a source checkout (./dev demo), or set SAFE_DEMO_DATA to the '
            'folder test/data of a source checkout',
        )
    return folder


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='demo',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example:\n  ./dev demo --episodes 48 --frequency 50',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('demo_out'), help='folder to write (default demo_out)'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='task split, which defines the unseen tasks (default 0)'
    )
    parser.add_argument(
        '--epochs', type=int, default=60, help='training epochs (default %(default)s)'
    )
    parser.add_argument(
        '--alpha', type=float, default=0.1, help='promised false-alarm rate (default 0.1)'
    )
    parser.add_argument(
        '--episodes', type=int, default=30, help='unseen rollouts to stream (default 30)'
    )
    parser.add_argument(
        '--frequency', type=float, default=100.0, help='policy inferences per second (default 100)'
    )
    parser.add_argument(
        '--prepare', action='store_true', help='convert, fit and evaluate only; start no nodes'
    )
    args = parser.parse_args(arguments)
    if args.episodes < 1 or args.frequency <= 0 or args.epochs < 1:
        parser.error(
            '--episodes, --frequency, --epochs: expected positive numbers, found '
            f'{args.episodes}, {args.frequency:g}, {args.epochs}'
        )
    return args


def convert_recordings(out: Path, console: Console) -> RolloutSet:
    """Convert the dump and the pooled archive of the source checkout. Return the pooled set."""
    data = data_folder()
    for source, name in ((DUMP, 'openvla_rollouts'), (POOLED, 'rollouts')):
        with progress_bar(f'convert {source}') as progress:
            done = convert(
                data / source,
                out / name,
                overwrite=True,
                progress=lambda n, total: progress(n, total, ''),
            )
        console.print(
            f'{source} ({done["kind"]}) -> {out / name}: {done["rollouts"]} rollouts, '
            f'{done["steps"]} steps'
        )
    return RolloutSet.open(out / 'rollouts')


def prepare(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Convert, fit, calibrate, evaluate and save. Return the evaluation for the summary."""
    rollouts_on_disk = convert_recordings(args.out, console)
    rollouts = labelled(Rollouts(rollouts_on_disk, rollouts_on_disk.feature, POOLED))
    # Leave-one-task-out would train the network once more for each task.
    protocol = replace(HELD_OUT_PROTOCOL, alpha=args.alpha)
    split = choose_split(rollouts, args.seed, protocol)
    failures = sum(r.failed for r in rollouts)
    console.print(
        f'{len(rollouts)} rollouts of {len({r.task for r in rollouts})} tasks, {failures} of '
        f'them failures; {len(split.unseen_tasks)} tasks are unseen: they are not used for '
        'training'
    )
    fitted: dict[str, CalibratedDetector] = {}
    started = time.monotonic()
    for name, params in (
        (DETECTOR, {**PARAMETERS, 'epochs': args.epochs, 'seed': args.seed}),
        (CLOCK, {}),
    ):
        with progress_bar(f'fit {name}') as progress:
            detector = make_detector(name, **params)
            fitted[name] = fit_and_calibrate(detector, rollouts, split, protocol, progress=progress)
    seconds = time.monotonic() - started
    console.print(f'fitted {DETECTOR} on {len(split.train)} rollouts in {seconds:.0f} s')
    rows = [
        Row(name, args.seed, part, flatten_report(report))
        for name, one in fitted.items()
        for part, report in judge_set(one, rollouts).report().items()
    ]
    title = f'one task split, promised false-alarm rate {100 * args.alpha:g} %'
    print_table(console, report_table(rows, title))
    fitted[DETECTOR].save(args.out / 'detector', overwrite=True)
    return {
        'detector': DETECTOR,
        'epochs': args.epochs,
        'params': PARAMETERS,
        'seed': args.seed,
        'alpha': args.alpha,
        'fit_seconds': round(seconds, 2),
        'seen_tasks': list(split.seen_tasks),
        'unseen_tasks': list(split.unseen_tasks),
        'evaluation': {
            name: {
                row.part: {k: as_number(v) for k, v in row.values.items()}
                for row in rows
                if row.detector == name
            }
            for name in fitted
        },
    }


def choose_episodes(rollouts: RolloutSet, tasks: Sequence[str], count: int) -> list[int]:
    """Return indices of rollouts: one of each task, then the next of each task, in recorded order.

    The outcome of a rollout is not used.
    """
    members = [[i for i, task in enumerate(rollouts.tasks) if task == name] for name in tasks]
    turns = [
        index
        for turn in range(max(map(len, members)))
        for m in members
        if turn < len(m)
        for index in [m[turn]]
    ]
    return turns[:count]


@dataclass(frozen=True)
class LiveRollout:
    """A rollout with the alarm of the monitor, and the difference between live and offline scores.

    Attributes
    ----------
    scored : ScoredRollout
        Offline scores, and the alarm as it was received.
    received : int
        How many scores were received.
    largest_difference : float
        Largest difference between a received score and the offline score; NaN if a score is
        missing.
    offline_alarm_step : int or None
        Step at which offline scoring raises the alarm.
    """

    scored: ScoredRollout
    received: int
    largest_difference: float
    offline_alarm_step: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for the summary, as JSON values."""
        return {
            'episode': self.scored.episode_id,
            'task': self.scored.task,
            'success': not self.scored.failed,
            'steps': len(self.scored),
            'alarm_step': self.scored.alarm_step,
            'outcome': self.scored.outcome,
            'received': self.received,
            'largest_difference': self.largest_difference,
            'offline_alarm_step': self.offline_alarm_step,
        }


def compare(
    live: LiveEpisode, rollout: Rollout, calibrated: CalibratedDetector, alpha: float
) -> LiveRollout:
    """Compare what was received with the label and with offline scoring."""
    offline, threshold = calibrated.detector.score(rollout), calibrated.band.at(alpha)
    received = np.full(len(rollout), np.nan)
    received[live.steps] = live.scores
    scored = ScoredRollout(
        offline,
        rollout.failed,
        rollout.task,
        episode_id=rollout.episode_id,
        threshold=threshold,
        alarm_step=live.alarm_step,
    )
    return LiveRollout(
        scored,
        received=len(live.steps),
        largest_difference=float(np.abs(received - offline).max()),
        offline_alarm_step=threshold.first_crossing(offline),
    )


def episode_line(scored: ScoredRollout) -> str:
    """Return the line that is printed when an episode has ended."""
    styles = {'detection': 'green', 'quiet': 'green', 'false alarm': 'yellow', 'miss': 'red'}
    style = styles[scored.outcome]
    truth = 'failure' if scored.failed else 'success'
    alarm = (
        'no alarm'
        if scored.alarm_step is None
        else f'alarm at step {scored.alarm_step} of {len(scored)}'
    )
    return f'{scored.task:24} {truth:8} {alarm:22} [{style}]{scored.outcome}[/{style}]'


def stream(
    args: argparse.Namespace, calibrated: CalibratedDetector, console: Console
) -> tuple[list[LiveRollout], list[LiveEpisode]]:
    """Play unseen rollouts to the monitor, printing a line for each as it ends."""
    rollouts = RolloutSet.open(args.out / 'rollouts')
    unseen_tasks = calibrated.provenance['unseen_tasks']
    indices = choose_episodes(rollouts, unseen_tasks, args.episodes)
    chosen = {rollouts.episode_ids[i]: rollouts[i] for i in indices}
    console.print(
        f'\nstreaming {len(chosen)} rollouts of {len(unseen_tasks)} unseen tasks: replay -> '
        '/vla/policy_step -> monitor -> /safe/score'
    )
    printed: set[str] = set()

    def ended(episode: LiveEpisode) -> None:
        live = compare(episode, chosen[episode.episode_id], calibrated, args.alpha)
        printed.add(episode.episode_id)
        console.print(f'{len(printed):3}  {episode_line(live.scored)}')

    episodes = play_live(
        args.out / 'rollouts',
        args.out / 'detector',
        list(chosen),
        logs=args.out / 'logs',
        frequency=args.frequency,
        on_ended=ended,
    )
    # Compare again after all messages have arrived. A printed line may lack the last message.
    compared = [compare(e, chosen[e.episode_id], calibrated, args.alpha) for e in episodes]
    return compared, episodes


def summarise_stream(
    lives: Sequence[LiveRollout], episodes: Sequence[LiveEpisode]
) -> dict[str, Any]:
    """Return the live part of the summary."""
    outcomes = [live.scored.outcome for live in lives]
    latencies = np.concatenate([e.latencies for e in episodes]) * 1e3
    steps = sum(len(live.scored) for live in lives)
    return {
        'episodes': len(lives),
        'detections': outcomes.count('detection'),
        'missed': outcomes.count('miss'),
        'false_alarms': outcomes.count('false alarm'),
        'quiet': outcomes.count('quiet'),
        'steps': steps,
        'scores_missing': steps - sum(live.received for live in lives),
        'largest_difference_to_offline': max(live.largest_difference for live in lives),
        'alarm_steps_equal_offline': all(
            live.scored.alarm_step == live.offline_alarm_step for live in lives
        ),
        'latency_ms': {
            'p50': round(float(np.percentile(latencies, 50)), 3),
            'p99': round(float(np.percentile(latencies, 99)), 3),
        },
        'per_episode': [live.to_dict() for live in lives],
    }


def curves(lives: Sequence[LiveRollout], episodes: Sequence[LiveEpisode]) -> list[ScoredRollout]:
    """Return what to draw: up to three episodes of each outcome, with the scores received."""
    taken: dict[str, list[ScoredRollout]] = {
        outcome: [] for outcome in ('detection', 'miss', 'quiet', 'false alarm')
    }
    for live, episode in zip(lives, episodes, strict=True):
        received = replace(live.scored, scores=np.array(episode.scores))
        taken[received.outcome].append(received)
    return [scored for members in taken.values() for scored in members[:3]]


def run(args: argparse.Namespace) -> int:
    """Run the demo and return the exit status."""
    console = wide_console()
    started = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    summary = prepare(args, console)
    if args.prepare:
        return 0
    calibrated = CalibratedDetector.load(args.out / 'detector')
    lives, episodes = stream(args, calibrated, console)
    summary['live'] = summarise_stream(lives, episodes)
    plot_episodes(
        args.out / 'scores.png',
        curves(lives, episodes),
        title=(f'{DETECTOR} on unseen tasks, streamed over ROS 2 (band at alpha {args.alpha:g})'),
    )
    summary['seconds'] = round(time.monotonic() - started, 1)
    replace_file(args.out / 'summary.json', plain_json(summary) + '\n')
    live = summary['live']
    failures = live['detections'] + live['missed']
    console.print(
        f'\n{live["detections"]} of {failures} failures detected, '
        f'{live["false_alarms"]} false alarms in {live["episodes"] - failures} successes '
        f'(promised on tasks like the seen ones: {100 * args.alpha:g} %)'
    )
    console.print(
        f'live against offline over {live["steps"]} steps: {live["scores_missing"]} missing, '
        f'largest difference {live["largest_difference_to_offline"]:.1e}; '
        'step received to score published '
        f'{live["latency_ms"]["p50"]:.2f} ms (median), {live["latency_ms"]["p99"]:.2f} ms (p99)'
    )
    console.print(
        f'written: {args.out / "summary.json"}, {args.out / "scores.png"} '
        f'({summary["seconds"]:.0f} s)'
    )
    agree = live['scores_missing'] == 0 and live['largest_difference_to_offline'] <= 1e-5
    if not (agree and live['alarm_steps_equal_offline']):
        path = args.out / 'summary.json'
        console.print(f'[red]live scores and offline scores differ; see {path}[/red]')
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit status 0, 1 (failed) or 2 (wrong usage)."""
    args = parse_arguments(arguments)
    try:
        return run(args)
    except (SafeError, OSError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('demo: interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
