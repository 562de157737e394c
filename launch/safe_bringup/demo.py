# SPDX-License-Identifier: Apache-2.0
"""The demo: from recorded rollouts to a live alarm (`./dev demo`).

Converts the recorded rollouts that ship with the sources, fits detectors on some tasks, calibrates
their bands and judges them on unseen tasks. One new task gets a threshold from five good runs. Then
rollouts of unseen tasks are streamed through ``replay`` and ``monitor``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from safe_bringup.demo_detectors import (
    FEWEST_SUCCESSES,
    GOOD_RUNS,
    MONITORED,
    fit_all,
    judge_unseen,
    learn_new_task,
)
from safe_bringup.demo_recordings import POOLED, choose_episodes, convert_recordings
from safe_bringup.live import LiveEpisode, play_live
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.evaluate import CLOCK, Row
from safe_training.evaluation.fit_and_calibrate import labelled
from safe_training.evaluation.protocol import Protocol, choose_split
from safe_training.metrics.early import early_report
from safe_training.metrics.scored import ScoredRollout
from safe_training.recordings.rollouts import Rollouts
from safe_training.reporting.figures.score_curves import plot_episodes
from safe_training.reporting.numbers import as_number, plain_json
from safe_training.reporting.tables.evaluation import report_table
from safe_training.reporting.tables.terminal import print_table, wide_console
from vla_feature_bridge.atomic import replace_file
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet


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
        '--alpha', type=float, default=0.1, help='promised false-alarm rate (default 0.1)'
    )
    parser.add_argument(
        '--episodes', type=int, default=45, help='unseen rollouts to stream (default 45)'
    )
    parser.add_argument(
        '--frequency', type=float, default=100.0, help='policy inferences per second (default 100)'
    )
    parser.add_argument(
        '--prepare', action='store_true', help='convert, fit and evaluate only; start no nodes'
    )
    args = parser.parse_args(arguments)
    if args.episodes < 1 or args.frequency <= 0:
        parser.error(
            '--episodes, --frequency: expected positive numbers, found '
            f'{args.episodes}, {args.frequency:g}'
        )
    return args


def prepare(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Convert, fit, calibrate, evaluate and save. Return the evaluation for the summary."""
    rollouts_on_disk = convert_recordings(args.out, console)
    rollouts = labelled(Rollouts(rollouts_on_disk, rollouts_on_disk.feature, POOLED))
    protocol = Protocol(alpha=args.alpha)
    split = choose_split(rollouts, args.seed, protocol)
    failures = sum(r.failed for r in rollouts)
    console.print(
        f'{len(rollouts)} rollouts of {len({r.task for r in rollouts})} tasks, {failures} of '
        f'them failures; {len(split.unseen_tasks)} tasks are unseen: they are not used for '
        'training'
    )
    started = time.monotonic()
    fitted = fit_all(rollouts, split, protocol, progress_bar)
    seconds = time.monotonic() - started
    console.print(
        f'fitted on {len(split.train)} rollouts, and once without each task: {seconds:.0f} s'
    )
    rows = judge_unseen(fitted, rollouts, split)
    title = f'one task split, promised false-alarm rate {100 * args.alpha:g} %'
    print_table(console, report_table(rows, title))
    for line in early_lines(rows):
        console.print(line)
    new = learn_new_task(fitted[MONITORED], rollouts, split)
    if new is None:
        console.print(
            f'no unseen task has {FEWEST_SUCCESSES} successes: no task gets a threshold from good '
            'runs'
        )
    else:
        console.print(
            f'{GOOD_RUNS} good runs of the new task {new.task}: false alarms in {new.alarms_with} '
            f'of the other {new.successes} successes, {new.alarms_without} without good runs'
        )
    monitored = fitted[MONITORED] if new is None else new.detector
    monitored.save(args.out / 'detector', overwrite=True)
    return {
        'detector': MONITORED,
        'seed': args.seed,
        'alpha': args.alpha,
        'fit_seconds': round(seconds, 2),
        'seen_tasks': list(split.seen_tasks),
        'unseen_tasks': list(split.unseen_tasks),
        'evaluation': {
            row.detector: {k: as_number(v) for k, v in row.values.items()} for row in rows
        },
        'good_runs': new
        and {
            'task': new.task,
            'episodes': list(new.good_runs),
            'other_successes': new.successes,
            'alarms_without': new.alarms_without,
            'alarms_with': new.alarms_with,
        },
    }


def early_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the main numbers of each detector and of the clock at the same false-alarm rate."""
    for row in rows:
        if row.detector == CLOCK:
            continue
        values = row.values
        yield (
            f'{row.detector}: {100 * values["found_early"]:.0f} % of the failures of unseen tasks '
            f'are found before a median success is over (clock: '
            f'{100 * values["clock_found_early"]:.0f} %), '
            f'{values["steps_saved"]:.1f} steps saved per failure '
            f'({values["steps_saved_over_clock"]:+.1f} against the clock)'
        )


@dataclass(frozen=True)
class LiveRollout:
    """A rollout with the alarm of the monitor, and the difference between live and offline scores.

    Attributes
    ----------
    scored : ScoredRollout
        Offline scores, and the alarm as it was received.
    received : int
        Number of received scores.
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
    """Compare the received scores with the label and with offline scores."""
    offline = calibrated.detector.score(rollout)
    threshold = calibrated.band.at(alpha, rollout.task)
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
    good_runs = {
        episode
        for band in calibrated.band.tasks.values()
        for episode in band.provenance['calibration_rollouts']
    }
    indices = choose_episodes(rollouts, unseen_tasks, args.episodes, good_runs)
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
        'found_early': count_found_early([live.scored for live in lives]),
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


def count_found_early(scored: Sequence[ScoredRollout]) -> int:
    """Return how many failures have an alarm before the median success of their task is over."""
    rates = early_report(scored, [rollout.alarm_step for rollout in scored]).pooled
    if not rates.n_with_median:
        return 0
    return round(rates.found_early.detector * rates.n_with_median)


def curves(lives: Sequence[LiveRollout], episodes: Sequence[LiveEpisode]) -> list[ScoredRollout]:
    """Return the episodes to draw: up to three of each outcome, with the received scores."""
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
        title=(f'{MONITORED} on unseen tasks, streamed over ROS 2 (band at alpha {args.alpha:g})'),
    )
    summary['seconds'] = round(time.monotonic() - started, 1)
    replace_file(args.out / 'summary.json', plain_json(summary) + '\n')
    live = summary['live']
    failures = live['detections'] + live['missed']
    console.print(
        f'\n{live["found_early"]} of {failures} failures found early (before a median success of '
        f'the task is over), {live["detections"]} detected\n'
        f'a false alarm in {live["false_alarms"]} of {live["episodes"] - failures} successes '
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
