# SPDX-License-Identifier: Apache-2.0
"""Time between the first alarm and the annotated failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safe_training.metrics.alarms import checked_alarms
from safe_training.metrics.scored import MetricError, ScoredRollout, labels, mean_or_nan


@dataclass(frozen=True, eq=False)
class LeadTimes:
    """Number of steps between the first alarm and the annotated failure.

    Attributes
    ----------
    leads : (M,) float64 array
        Annotated failure step minus first alarm step. One value for each annotated failure with an
        alarm, in the order of the rollouts. A positive value means that the alarm came before the
        annotated step.
    mean, median : float
        Mean and median of `leads`, in steps; NaN if `leads` is empty.
    annotated : int
        Failures with an annotated step.
    alarmed : int
        Number of annotated failures with an alarm at any step (M).
    in_time : int
        Number of annotated failures with an alarm at or before the annotated step.
    """

    leads: NDArray[np.float64]
    mean: float
    median: float
    annotated: int
    alarmed: int
    in_time: int


def lead_times(
    scored: Sequence[ScoredRollout],
    alarms: Sequence[int | None],
    failure_steps: Sequence[int | None],
) -> LeadTimes:
    """Return the lead times of the alarms.

    Parameters
    ----------
    scored : sequence of N ScoredRollout
        The rollouts; successes are left out.
    alarms : sequence of N int or None
        First alarm step of each.
    failure_steps : sequence of N int or None
        Annotated step (0-based) of each failure; None if it is not annotated. It must be None for a
        success.
    """
    if len(failure_steps) != len(scored):
        raise MetricError(
            where='metrics',
            expected=f'one failure step or None for each of {len(scored)} rollouts',
            found=f'{len(failure_steps)} entries',
        )
    leads, annotated = [], 0
    for rollout, failed, alarm, step in zip(
        scored, labels(scored), checked_alarms(scored, alarms), failure_steps, strict=True
    ):
        if step is None:
            continue
        if not failed:
            raise MetricError(
                where=f'metrics: {rollout.name}',
                expected='no annotated failure step for a success',
                found=f'step {step}',
                advice='annotate only failures',
            )
        if not 0 <= step < len(rollout):
            raise MetricError(
                where=f'metrics: {rollout.name}',
                expected=f'an annotated failure step from 0 to {len(rollout) - 1}',
                found=str(step),
                advice='annotate inference steps, counted from 0',
            )
        annotated += 1
        if alarm is not None:
            leads.append(step - alarm)
    array = np.array(leads, dtype=np.float64)
    return LeadTimes(
        leads=array,
        mean=mean_or_nan(array),
        median=float(np.median(array)) if array.size else np.nan,
        annotated=annotated,
        alarmed=int(array.size),
        in_time=int((array >= 0).sum()),
    )
