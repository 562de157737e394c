# SPDX-License-Identifier: Apache-2.0
"""Where a failure began, estimated afterwards from the scores of the whole rollout.

An alarm comes late, because a score must first rise above the threshold. After the rollout, all
scores are known, and the step from which on they are higher can be estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_training.metrics.alarms import checked_alarms
from safe_training.metrics.lead_time import LeadTimes, lead_times
from safe_training.metrics.scored import MetricError, ScoredRollout, labels

NEAR = 2
"""An estimate is near if it is at most this number of steps from the annotated step."""


def onset_step(values: ArrayLike) -> int:
    """Return the step from which on the values of a rollout are higher.

    The rollout is divided once, so that the squared distances to the means of both parts are
    smallest and the second mean is higher: the maximum-likelihood estimate of one change of the
    mean (Hinkley, "Inference about the change-point in a sequence of random variables", Biometrika
    57, 1970). It is 0 if no division has a higher second mean.

    Parameters
    ----------
    values : (T,) array
        One finite value per step, T >= 1, higher for failures. Use values that do not average over
        earlier steps, see ``Detector.step_values``.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise MetricError(
            where='metrics',
            expected='finite values of shape (T,) with T >= 1',
            found=f'shape {array.shape}' if array.ndim != 1 or not array.size else 'NaN or inf',
        )
    steps = np.arange(1, array.size)
    total = np.cumsum(array)
    after = array.size - steps
    rise = (total[-1] - total[:-1]) / after - total[:-1] / steps
    gain = np.sqrt(steps * after / array.size) * rise
    if not gain.size or not gain.max() > 0:
        return 0
    return int(steps[np.argmax(gain)])


@dataclass(frozen=True)
class Located:
    """Distances of some steps to the annotated steps.

    Attributes
    ----------
    median_distance : float
        Median of the absolute difference [steps].
    near : float
        Share of the failures with a difference of at most :data:`NEAR` steps.
    """

    median_distance: float
    near: float


@dataclass(frozen=True, eq=False)
class OnsetReport:
    """How well the beginning of annotated failures is found.

    Attributes
    ----------
    leads : LeadTimes
        Annotated step minus estimated beginning; its `annotated` is the number of failures.
    onset : Located
        The estimated beginnings.
    alarm : Located
        The first alarms. For a failure without an alarm, the last step is used.
    middle : Located
        The middle of each failure, for comparison: it does not use scores. A useful estimate must
        be nearer.
    """

    leads: LeadTimes
    onset: Located
    alarm: Located
    middle: Located


def onset_report(
    scored: Sequence[ScoredRollout], alarms: Sequence[int | None]
) -> OnsetReport | None:
    """Return how well the beginning of failures is found.

    None if no failure has an annotated step and an estimated one (``onset_step``).

    Parameters
    ----------
    scored : sequence of N ScoredRollout
        Labelled rollouts.
    alarms : sequence of N int or None
        First alarm step of each.

    Raises
    ------
    MetricError
        A rollout has no label, or a success has an annotated step.
    """
    failed = labels(scored)
    annotated = [None if r.onset_step is None else r.failure_step for r in scored]
    onsets = [r.onset_step if f else None for r, f in zip(scored, failed, strict=True)]
    leads = lead_times(scored, onsets, annotated)
    if not leads.annotated:
        return None
    members = [i for i, step in enumerate(annotated) if step is not None]
    begun = np.array([annotated[i] for i in members], dtype=float)
    last = np.array([len(scored[i]) - 1 for i in members], dtype=float)
    checked = checked_alarms(scored, alarms)
    alarmed = [np.nan if (step := checked[i]) is None else step for i in members]
    return OnsetReport(
        leads=leads,
        onset=_located(begun - leads.leads, begun),
        alarm=_located(np.where(np.isnan(alarmed), last, alarmed), begun),
        middle=_located(np.ceil(last / 2), begun),
    )


def _located(steps: NDArray[np.float64], annotated: NDArray[np.float64]) -> Located:
    distances = np.abs(steps - annotated)
    return Located(float(np.median(distances)), float((distances <= NEAR).mean()))
