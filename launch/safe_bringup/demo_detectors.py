# SPDX-License-Identifier: Apache-2.0
"""The detectors of the demo: fitted, judged on unseen tasks, and given good runs of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_training.evaluation.evaluate import CLOCK, Row
from safe_training.evaluation.fit_and_calibrate import fit_and_calibrate
from safe_training.evaluation.good_runs import add_good_runs
from safe_training.evaluation.judge import judge
from safe_training.evaluation.protocol import Protocol
from safe_training.evaluation.splits import Split
from safe_training.metrics.part_report import flatten_report
from safe_training.recordings.rollouts import Rollouts

MONITORED = 'linear_probe'
GOOD_RUNS = 5
FEWEST_SUCCESSES = 3 * GOOD_RUNS

#: Rows of the table: inputs of the score. The clock is the control.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    MONITORED: ('linear_probe', {}),
    'linear_probe, hidden state alone': ('linear_probe', {'inputs': 'features'}),
    'linear_probe, action signals alone': ('linear_probe', {'inputs': 'signals'}),
    'signal': ('signal', {}),
    CLOCK: ('clock', {}),
}


@dataclass(frozen=True)
class NewTask:
    """One unseen task with good runs.

    Attributes
    ----------
    task : str
    good_runs : tuple of str
        Episodes of the good runs. They are not judged.
    detector : CalibratedDetector
        The detector with the threshold of the task.
    successes : int
        Number of other successes of the task.
    alarms_without, alarms_with : int
        Number of other successes with an alarm: with the band of all tasks, and with the threshold
        from the good runs.
    """

    task: str
    good_runs: tuple[str, ...]
    detector: CalibratedDetector
    successes: int
    alarms_without: int
    alarms_with: int


def fit_all(
    rollouts: Rollouts,
    split: Split,
    protocol: Protocol,
    show_progress: Callable[[str], Any],
) -> dict[str, CalibratedDetector]:
    """Return the detector of each row, fitted on the seen tasks and calibrated.

    Parameters
    ----------
    show_progress : callable
        Returns a context with the progress callback of one row.
    """
    fitted = {}
    for row, (name, params) in ROWS.items():
        with show_progress(f'fit {row}') as progress:
            fitted[row] = fit_and_calibrate(
                make_detector(name, **params), rollouts, split, protocol, progress=progress
            )
    return fitted


def judge_unseen(
    fitted: Mapping[str, CalibratedDetector], rollouts: Rollouts, split: Split
) -> list[Row]:
    """Return the results of each row on the unseen tasks."""
    unseen = rollouts.take([rollouts[i] for i in split.unseen])
    return [
        Row(row, split.number, 'unseen', flatten_report(judge(one, unseen).report()['unseen']))
        for row, one in fitted.items()
    ]


def learn_new_task(
    detector: CalibratedDetector, rollouts: Rollouts, split: Split
) -> NewTask | None:
    """Give one unseen task a threshold from its first successes, and count its false alarms.

    The task is the first unseen task with enough successes; no score is used for the choice. None
    if no unseen task has enough successes.
    """
    unseen = [rollouts[i] for i in split.unseen]
    for task in map(str, split.unseen_tasks):
        successes = [r for r in unseen if r.task == task and r.success]
        if len(successes) < FEWEST_SUCCESSES:
            continue
        good, others = successes[:GOOD_RUNS], successes[GOOD_RUNS:]
        after = add_good_runs(detector, rollouts.take(good), GOOD_RUNS)
        scores = [detector.detector.score(r) for r in others]
        counts = [
            sum(one.band.at(one.alpha, task).first_crossing(score) is not None for score in scores)
            for one in (detector, after)
        ]
        return NewTask(task, tuple(r.episode_id for r in good), after, len(others), *counts)
    return None
