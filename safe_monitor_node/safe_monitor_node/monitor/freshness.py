# SPDX-License-Identifier: Apache-2.0
"""Checks whether steps are current: the age of the last step, and the ROS clock. No ROS."""

from __future__ import annotations

import math
from dataclasses import replace

from safe_monitor_node.monitor.alarm import AlarmState, Verdict
from safe_monitor_node.monitor.steps import StepResult

_ANOTHER_TIME = 86400.0
_LASTING = (AlarmState.ALARM, AlarmState.INVALID)


class Freshness:
    """Makes a verdict STALE if its step was old when it arrived, or if the ROS clock has stopped.

    An old step is still scored, because a recurrent detector needs all steps. Steps can be old, for
    example, because the monitor was suspended and now receives all waiting steps. ALARM and INVALID
    do not become STALE, because they are correct also if they are late.

    Attributes
    ----------
    max_age : float
        Largest age of a step [s]; 0: every age is accepted.
    age : float or None
        Age of the last step of the running episode when it arrived: ROS time minus stamp [s]. None
        if no step has come, or if the stamp is 0.
    clock_problem : str
        Why the ROS clock cannot be used; empty if it can.
    """

    def __init__(self, max_age: float = 0.0) -> None:
        self.max_age = max_age
        self.age: float | None = None
        self.clock_problem = ''
        self._step = 0

    def take(self, step: int, age: float | None) -> None:
        """Handle a step and its age."""
        self._step, self.age = step, age

    def forget(self) -> None:
        """Forget the last step, because its episode is over."""
        self.age = None

    def applied_to(self, verdict: Verdict) -> Verdict:
        """Return the verdict, or STALE if the last step is too old or the clock has a problem."""
        if verdict.state in _LASTING:
            return verdict
        reason = self.clock_problem
        if not reason and verdict.state != AlarmState.STALE:
            reason = self._old()
        if not reason:
            return verdict
        return Verdict(AlarmState.STALE, reason, verdict.step, math.nan, math.nan)

    def applied_to_result(self, result: StepResult) -> StepResult:
        """Return the result of a step with such a verdict."""
        verdict = self.applied_to(result.verdict)
        return result if verdict is result.verdict else replace(result, verdict=verdict)

    def _old(self) -> str:
        """Return the reason why the last step is too old; empty if it is not too old."""
        if self.age is None or not 0.0 < self.max_age < self.age:
            return ''
        cause = (
            'the stamp is not in the ROS time of this computer: set max_age to 0, or set '
            'use_sim_time if a node publishes /clock'
            if self.age > _ANOTHER_TIME
            else 'the step has waited before its arrival, or the clocks of two computers differ'
        )
        return (
            f'step {self._step}: expected an age of at most {self.max_age:g} s (max_age) at '
            f'arrival, found {self.age:.3g} s; {cause}'
        )

    @property
    def warning(self) -> str:
        """Warning that the age of the steps is not known, with the cause; empty if it is known."""
        if self.age is None or not 0.0 < self.max_age < -self.age:
            return ''
        return (
            f'the stamp of the last step is {-self.age:.3g} s in the future, so that the age of '
            'the step is unknown; synchronise the clocks of the two computers'
        )
