# SPDX-License-Identifier: Apache-2.0
"""The alarm state machine: from scores and thresholds to a state for a robot. No ROS.

::

    UNKNOWN --first scored step--> NOMINAL <--> WARNING --k of n steps above--> ALARM
       ^                              |            |                              |
       +------- episode ends ---------+------------+------- episode ends, reset --+

    STALE    the episode runs, but no step has arrived for some time; the next step ends this state
    INVALID  a step could not be scored, or steps are missing, so that the history of the scores is
             incomplete. INVALID lasts until the episode ends. If max_missing_steps allows the
             missing steps, the next scored step ends INVALID.

An ALARM is latched: only a reset or the end of the episode ends an ALARM. STALE, INVALID and lower
scores do not end an ALARM. A step that cannot be scored is never reported as NOMINAL.
The comparison is the same everywhere: score > threshold.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from vla_feature_bridge.errors import SafeError


class AlarmState(IntEnum):
    """State of the monitor; the values are those of ``safe_msgs/FailureScore``."""

    UNKNOWN = 0
    NOMINAL = 1
    WARNING = 2
    ALARM = 3
    STALE = 4
    INVALID = 5


class AlarmError(SafeError):
    """The parameters of the alarm are not valid."""


@dataclass(frozen=True)
class AlarmConfig:
    """Parameters of the alarm.

    Attributes
    ----------
    k, n : int
        Raise the alarm when ``k`` of the last ``n`` scored steps were above the threshold; k = n =
        1 keeps the promise of the band. Other values only lower the false-alarm rate.
    stale_after : float
        If no step arrives for this time while an episode runs, the state is STALE [s]. 0 disables
        STALE.
    max_missing_steps : int
        Number of missing or invalid steps that are allowed in an episode. With more, the rest of
        the episode is INVALID.
    """

    k: int = 1
    n: int = 1
    stale_after: float = 2.0
    max_missing_steps: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.k <= self.n:
            raise AlarmError(
                where='alarm (parameters alarm_k and alarm_n)',
                expected='1 <= k <= n, because k of the last n steps raise an alarm',
                found=f'k = {self.k} and n = {self.n}',
                advice='choose an alarm_n that is at least alarm_k',
            )
        if not self.stale_after >= 0:
            raise AlarmError(
                where='parameter stale_after',
                expected='a time of at least 0 s',
                found=str(self.stale_after),
            )
        if self.max_missing_steps < 0:
            raise AlarmError(
                where='parameter max_missing_steps',
                expected='a number of at least 0',
                found=str(self.max_missing_steps),
            )


@dataclass(frozen=True)
class Verdict:
    """Result of the alarm: the state, one sentence for users, and the step that caused the state.

    Attributes
    ----------
    state : AlarmState
    reason : str
    step : int
    score, threshold : float
        Score and threshold at this step; NaN if there is no score or threshold.
    """

    state: AlarmState
    reason: str
    step: int
    score: float
    threshold: float


NOTHING = Verdict(AlarmState.UNKNOWN, 'no episode is running', 0, math.nan, math.nan)


class AlarmStateMachine:
    """Debounced, latched alarm over the steps of one episode after another.

    Every method returns the :class:`Verdict` after the event. All times are in seconds of the same
    time source.
    """

    def __init__(self, config: AlarmConfig | None = None) -> None:
        self.config = config or AlarmConfig()
        self._above: deque[bool] = deque(maxlen=self.config.n)
        self._clear(running=False)
        self.verdict = NOTHING

    def _clear(self, *, running: bool) -> None:
        self._running = running
        self._missing = 0
        self._alarm: Verdict | None = None
        self._above.clear()
        self._last_time: float | None = None

    @property
    def running(self) -> bool:
        """True while an episode runs."""
        return self._running

    def start(self, now: float) -> Verdict:
        """Start a new episode."""
        self._clear(running=True)
        self._last_time = now
        self.verdict = Verdict(
            AlarmState.UNKNOWN, 'the episode has no scored step yet', 0, math.nan, math.nan
        )
        return self.verdict

    def end(self) -> Verdict:
        """End the episode: an alarm is released."""
        self._clear(running=False)
        self.verdict = NOTHING
        return self.verdict

    def reset(self) -> Verdict:
        """Release a latched alarm; the next scored step may raise it again.

        The reset does not repair an episode with missing steps: such an episode stays INVALID.
        """
        self._alarm = None
        self._above.clear()
        if self.verdict.state == AlarmState.ALARM:
            last = self.verdict
            if self._broken():
                self.verdict = self._broken_verdict(
                    f'the alarm was reset, but {self._missing_steps()}', last.step
                )
            else:
                self.verdict = Verdict(
                    AlarmState.UNKNOWN,
                    'the alarm was reset by request',
                    last.step,
                    last.score,
                    last.threshold,
                )
        return self.verdict

    def scored(
        self, step: int, score: float, threshold: float, warning_threshold: float, now: float
    ) -> Verdict:
        """Take a step's score and thresholds; ``warning_threshold`` may equal ``threshold``."""
        if not math.isfinite(score) or math.isnan(threshold) or math.isnan(warning_threshold):
            return self.not_scored(step, 'the score or its threshold is NaN or infinite', now)
        self._last_time = now
        if self._alarm is None and self._broken():
            # The band was calibrated with scores of complete episodes.
            self.verdict = self._broken_verdict(self._missing_steps(), step)
            return self.verdict
        above = score > threshold
        self._above.append(above)
        count = sum(self._above)
        if self._alarm is None and count >= self.config.k:
            reason = f'score {score:.4g} is above the threshold {threshold:.4g} at step {step}'
            if self.config.n > 1:
                reason += f' ({count} of the last {len(self._above)} steps were above)'
            self._alarm = Verdict(AlarmState.ALARM, reason, step, score, threshold)
        if self._alarm is not None:
            self.verdict = Verdict(AlarmState.ALARM, self._alarm.reason, step, score, threshold)
        elif above or score > warning_threshold:
            reason = (
                f'score {score:.4g} is above the warning threshold '
                f'{min(threshold, warning_threshold):.4g}'
            )
            self.verdict = Verdict(AlarmState.WARNING, reason, step, score, threshold)
        else:
            self.verdict = Verdict(
                AlarmState.NOMINAL, 'the score is not above the threshold', step, score, threshold
            )
        return self.verdict

    def missing(self, count: int) -> None:
        """Record that ``count`` steps of the episode are missing."""
        self._missing += count

    def not_scored(self, step: int, reason: str, now: float) -> Verdict:
        """Process a step that cannot be scored.

        The state becomes INVALID, except if an alarm is latched.
        """
        self._last_time = now
        self._missing += 1
        if self._alarm is None:
            self.verdict = self._broken_verdict(reason, step)
        return self.verdict

    def tick(self, now: float) -> Verdict:
        """Check the time.

        The state becomes STALE if an episode runs and no step has arrived for ``stale_after``.
        """
        if (
            self._running
            and self._alarm is None
            and self.config.stale_after > 0
            and self._last_time is not None
            and now - self._last_time > self.config.stale_after
        ):
            reason = f'no policy step has arrived for more than {self.config.stale_after:g} s'
            self.verdict = Verdict(AlarmState.STALE, reason, self.verdict.step, math.nan, math.nan)
        return self.verdict

    def _broken(self) -> bool:
        return self._missing > self.config.max_missing_steps

    def _missing_steps(self) -> str:
        return (
            'the number of steps that are missing or could not be scored in this episode is '
            f'{self._missing} (max_missing_steps is {self.config.max_missing_steps})'
        )

    @staticmethod
    def _broken_verdict(reason: str, step: int) -> Verdict:
        return Verdict(AlarmState.INVALID, reason, step, math.nan, math.nan)
