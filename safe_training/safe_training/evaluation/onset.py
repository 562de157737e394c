# SPDX-License-Identifier: Apache-2.0
"""Measures how well the beginning of failures of unseen tasks is found.

Few recordings have an annotated beginning of the failure. A spliced failure has a known beginning:
it consists of the first steps of a success and late steps of a failure of the same task. Its
beginning is easier to find than the beginning of a real failure, because a real failure begins
gradually.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from safe_monitor_node.detectors import Detector, DetectorError
from safe_monitor_node.detectors.registry import DETECTORS
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.fit_and_calibrate import (
    calibrated_detector,
    fit_on,
    left_out_rollouts,
    make_seeded,
    settled_for,
)
from safe_training.evaluation.judge import score_part, with_alarms
from safe_training.evaluation.protocol import EvaluationError, Protocol, require_rollouts
from safe_training.evaluation.split_workers import load_fitters, run_each
from safe_training.evaluation.splits import Split
from safe_training.metrics.onset import OnsetReport, onset_report
from safe_training.metrics.scored import ScoredRollout
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

ANNOTATED, SPLICED = 'annotated', 'spliced'
SPLICES = 3
"""Spliced failures that are made from each failure of a split."""
_COMPARE_CHUNKS = frozenset({'actions', 'sampled_actions'})


@dataclass(frozen=True, eq=False)
class OnsetResult:
    """How well one detector finds the beginning of failures of unseen tasks.

    Attributes
    ----------
    detector : str
    failures : {'annotated', 'spliced'}
    report : OnsetReport
        Over the failures of all splits.
    """

    detector: str
    failures: str
    report: OnsetReport


def spliced_failures(
    rollouts: Sequence[Rollout], generator: np.random.Generator, each: int = SPLICES
) -> list[Rollout]:
    """Return failures with a known beginning, made of real steps.

    The first part is the beginning of a success of the same task, up to a step that is drawn
    uniformly; the second part consists of the steps of the failure after the median length of the
    successes of the task. Failures that are not longer than this median are left out. Failures of a
    task without a success of at least two steps are left out too.

    Parameters
    ----------
    rollouts : sequence of Rollout
        Labelled rollouts.
    generator : numpy.random.Generator
    each : int
        Spliced failures for each failure.

    Returns
    -------
    list of Rollout
        With features, tokens and signals, without action chunks: a comparison of the chunks on both
        sides of the splice would show its position.
    """
    successes: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.success and len(rollout) > 1:
            successes.setdefault(rollout.task, []).append(rollout)
    made = []
    for failure in rollouts:
        others = successes.get(failure.task, [])
        if not failure.failed or not others:
            continue
        late = int(np.ceil(np.median([len(other) for other in others])))
        for number in range(each if late < len(failure) else 0):
            success = others[int(generator.integers(len(others)))]
            # Not longer than the failure, because the band ends with the longest rollout.
            begins = int(generator.integers(1, min(len(success) - 1, late) + 1))
            made.append(_spliced(success, failure, begins, late, number))
    return made


def _spliced(success: Rollout, failure: Rollout, begins: int, late: int, number: int) -> Rollout:
    def joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
        if first is None or second is None or first.shape[1:] != second.shape[1:]:
            return None
        return np.concatenate([first[:begins], second[late:]])

    features = joined(success.features, failure.features)
    if features is None:
        raise EvaluationError(
            where=f'rollout {failure.episode_id!r}',
            expected=f'features of the shape of rollout {success.episode_id!r}',
            found=f'shapes {failure.features.shape[1:]} and {success.features.shape[1:]}',
            advice='pool the features first (--pooling)',
        )
    signals = {
        name: joined(success.signals.get(name), values) for name, values in failure.signals.items()
    }
    return Rollout(
        features=features,
        task=failure.task,
        success=False,
        episode_id=f'{failure.episode_id} spliced {number}',
        feature_name=failure.feature_name,
        token_probability=joined(success.token_probability, failure.token_probability),
        token_entropy=joined(success.token_entropy, failure.token_entropy),
        signals={name: values for name, values in signals.items() if values is not None},
        failure_step=begins,
        action_space=failure.action_space,
    )


def located_onsets(
    names: Sequence[str],
    rollouts: Rollouts,
    splits: Mapping[str, Sequence[Split]],
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: Protocol | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[OnsetResult]:
    """Return how well detectors find the beginning of failures of unseen tasks.

    Parameters
    ----------
    names, rollouts, params, protocol, jobs, progress
        As in :func:`safe_training.evaluate`.
    splits : mapping of detector to sequence of Split

    Raises
    ------
    EvaluationError
        A detector compares action chunks, or no failure of an unseen task is annotated or can be
        spliced.
    """
    require_rollouts(rollouts)
    for name in names:
        if used := _COMPARE_CHUNKS & DETECTORS[name].needs:
            raise EvaluationError(
                where=f'beginning of failures, {name}',
                expected='a detector of features, tokens or signals',
                found=f'a detector of {" and ".join(sorted(used))}',
                advice='choose another detector, such as linear_probe',
            )
    chosen = protocol or Protocol()
    work = [(name, split) for name in names for split in splits[name]]
    notes = [f'{name}, split {split.number}' for name, split in work]

    def one(number: int, report: Progress) -> dict[str, list[ScoredRollout]]:
        name, split = work[number]
        detector = make_seeded(name, (params or {}).get(name, {}), split.number)
        try:
            return _judged(detector, rollouts, split, chosen, report)
        except (CalibrationError, DetectorError) as error:
            raise type(error)(f'{notes[number]}: {error}') from error

    load_fitters(names)
    with closing(run_each(one, notes, jobs=jobs, progress=progress)) as of_splits:
        everything = list(of_splits)
    judged: dict[str, dict[str, list[ScoredRollout]]] = {
        name: {ANNOTATED: [], SPLICED: []} for name in names
    }
    for (name, _), of_split in zip(work, everything, strict=True):
        for kind, members in of_split.items():
            judged[name][kind] += members
    found = []
    for name, of_kinds in judged.items():
        reports = {
            kind: onset_report(members, [rollout.alarm_step for rollout in members])
            for kind, members in of_kinds.items()
        }
        found += [
            OnsetResult(name, kind, report)
            for kind, report in reports.items()
            if report is not None
        ]
    if not found:
        raise EvaluationError(
            where='beginning of failures',
            expected='annotated failures of unseen tasks, or failures that are longer than the '
            'median success of their task',
            found='none',
            advice='annotate failures with their failure_step (verb `label`), or use other splits',
        )
    return found


def _judged(
    detector: Detector,
    rollouts: Rollouts,
    split: Split,
    protocol: Protocol,
    progress: Progress,
) -> dict[str, list[ScoredRollout]]:
    """Return the judged failures of the unseen tasks of a split."""
    protocol = settled_for(protocol, rollouts, split)
    fit_on(detector, rollouts, split, protocol, progress)
    if protocol.calibrate_on == 'loto':
        scored = left_out_rollouts(detector, rollouts, split, progress)
    else:
        scored = score_part(detector, [rollouts[i] for i in split.seen], 'seen')
    band = calibrated_detector(detector, scored, rollouts, split, protocol).band
    unseen = [rollouts[i] for i in split.unseen]
    parts = {
        ANNOTATED: [r for r in unseen if r.failed and r.failure_step is not None],
        SPLICED: spliced_failures(unseen, np.random.default_rng(split.number)),
    }
    return {
        kind: [
            replace(judged, rollout=None)
            for judged in with_alarms(score_part(detector, members, 'unseen'), band, protocol.alpha)
        ]
        for kind, members in parts.items()
    }
