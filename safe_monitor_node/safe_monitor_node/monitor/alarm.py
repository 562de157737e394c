# SPDX-License-Identifier: Apache-2.0
"""The alarm state machine: from scores and thresholds to a state for a robot. No ROS.

::

    UNKNOWN --first scored step--> NOMINAL <--> WARNING --k of n steps above--> ALARM
       ^                              |            |                              |
       +------- episode ends ---------+------------+------- episode ends, reset --+

    STALE    the episode runs, but no step has arrived for some time; the next step ends this state
    INVALID  a step could not be scored, steps are missing, or steps contradict each other, so that
             the history of the scores is incomplete. INVALID lasts until the episode ends. If
             max_missing_steps allows the missing steps, the next scored step ends INVALID. The
             reason is the first cause, until the episode ends.
             Steps that belong to no episode also cause INVALID, as long as such steps come.

An ALARM is latched: only a reset or the end of the episode ends an ALARM. STALE, INVALID and lower
scores do not end an ALARM. With the latch RESET, only a reset ends it. A step that cannot be scored
is never reported as NOMINAL. The comparison is the same everywhere: score > threshold.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from safe_monitor_node.monitor.step_history import StepHistory
from safe_monitor_node.monitor.step_period import StepPeriod
from vla_feature_bridge.errors import SafeError


class AlarmState(IntEnum):
    """State of the monitor; the values are those of ``safe_msgs/FailureScore``."""

    UNKNOWN = 0
    NOMINAL = 1
    WARNING = 2
    ALARM = 3
    STALE = 4
    INVALID = 5


SCORED = (AlarmState.NOMINAL, AlarmState.WARNING, AlarmState.ALARM)
"""States with a score."""


class Latch(Enum):
    """How long an ALARM lasts without a reset."""

    EPISODE = 'episode'
    RESET = 'reset'


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
        If no step arrives for this time while an episode runs, the state is STALE [s]. 0: the time
        is learned from the period of the steps, see :class:`StepPeriod`. Infinity: the time without
        a step is ignored.
    max_missing_steps : int
        Number of missing or invalid steps that are allowed in an episode. With more, the rest of
        the episode is INVALID.
    max_identical_features : int
        Number of steps in succession that may have identical features. The steps after them cannot
        be scored. 0: any number.
    latch : Latch
        How long an ALARM lasts: until its episode ends, or until a reset.
    warning_steps : int
        A WARNING ends after this number of scored steps in succession that are not above the
        warning threshold.
    """

    k: int = 1
    n: int = 1
    stale_after: float = 0.0
    max_missing_steps: int = 0
    max_identical_features: int = 5
    latch: Latch = Latch.EPISODE
    warning_steps: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.k <= self.n:
            raise AlarmError(
                where='alarm (parameters alarm_k and alarm_n)',
                expected='1 <= k <= n, because k of the last n steps raise an alarm',
                found=f'k = {self.k} and n = {self.n}',
                advice='choose an alarm_n that is at least alarm_k',
            )
        for name, least in (
            ('stale_after', 0),
            ('max_missing_steps', 0),
            ('max_identical_features', 0),
            ('warning_steps', 1),
        ):
            if not getattr(self, name) >= least:
                raise AlarmError(
                    where=f'parameter {name}',
                    expected=f'a number of at least {least}',
                    found=str(getattr(self, name)),
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


RESET_BY_REQUEST = 'the alarm was reset by request'
CALL_RESET = 'call ~/reset (ros2 safe reset) to end the alarm'
"""End of the reason of an alarm of an earlier episode (latch RESET)."""
NOTHING = Verdict(AlarmState.UNKNOWN, 'no episode is running', 0, math.nan, math.nan)


class AlarmStateMachine:
    """Debounced, latched alarm over the steps of one episode after another.

    Every method returns the :class:`Verdict` after the event. All times are in seconds of the same
    clock, which must not go back.

    Attributes
    ----------
    config : AlarmConfig
        The configuration in use.
    next_config : AlarmConfig
        The configuration of the next episode.
    period : StepPeriod
        The period of the steps of all episodes.
    history : StepHistory
        Missing steps of the running episode. They are recorded here; the verdict changes with the
        next step.
    raised_at : int or None
        The last step of the episode at which k of n steps were above the threshold.
    verdict : Verdict
    """

    def __init__(self, config: AlarmConfig | None = None) -> None:
        self.config = self.next_config = config or AlarmConfig()
        self.period = StepPeriod()
        self._above: deque[bool] = deque(maxlen=self.config.n)
        self._alarm: Verdict | None = None
        # Whether the alarm belongs to an earlier episode.
        self._holds = False
        self._running, self._episode = False, ''
        self._clear(running=False)
        self.verdict = NOTHING

    def change(self, config: AlarmConfig) -> None:
        """Change the configuration.

        ``stale_after`` and ``latch`` change at once, the rest from the next episode on.
        """
        self.next_config = config
        if self._running:
            self.config = replace(self.config, stale_after=config.stale_after, latch=config.latch)
        else:
            self._take_next_config()

    def _take_next_config(self) -> None:
        self.config = self.next_config
        self._above = deque(maxlen=self.config.n)

    def _clear(self, *, running: bool) -> None:
        self._alarm, self._holds = self._held_alarm(), True
        self._running = running
        self.history = StepHistory(self.config.max_missing_steps)
        self._forget_scores()
        self._last_time: float | None = None
        self._last_step_time: float | None = None
        self._repeated = 0

    def _forget_scores(self) -> None:
        self._above.clear()
        self.raised_at: int | None = None
        # Number of successive steps that are not above the warning threshold.
        self._below = math.inf

    def _held_alarm(self) -> Verdict | None:
        """Return the alarm that lasts if the episode ends now; None if no alarm lasts."""
        if self._alarm is None or self.config.latch is not Latch.RESET:
            return None
        if self._holds:
            return self._alarm
        return held(self._alarm, self._episode)

    @property
    def running(self) -> bool:
        """True while an episode runs."""
        return self._running

    def start(self, now: float, episode: str = '') -> Verdict:
        """Start a new episode.

        Parameters
        ----------
        now : float
        episode : str
            Its id in quotes, for a person.
        """
        self._clear(running=True)
        self._take_next_config()
        self.history = StepHistory(self.config.max_missing_steps)
        self._episode = episode
        self._last_time = now
        self.verdict = self._alarm or Verdict(
            AlarmState.UNKNOWN, 'the episode has no scored step yet', 0, math.nan, math.nan
        )
        return self.verdict

    def doubt(self, reason: str) -> Verdict:
        """Make the state INVALID until the first step shows whether steps are missing."""
        if self._alarm is None:
            self.verdict = self._broken_verdict(reason, 0)
        return self.verdict

    def end(self) -> Verdict:
        """End the episode. This clears an alarm, except with the latch RESET."""
        self._clear(running=False)
        self.verdict = self._alarm or NOTHING
        return self.verdict

    def hold(self, previous: AlarmStateMachine) -> None:
        """Take over the alarm of the state machine of another detector, if its latch is RESET."""
        self._alarm, self._holds = previous._held_alarm(), True
        if self._alarm is not None:
            self.verdict = self._alarm

    def reset(self) -> Verdict:
        """Clear a latched alarm; the next scored step may raise it again.

        The reset does not repair an episode with missing steps: such an episode stays INVALID.
        """
        self._alarm = None
        self._forget_scores()
        if self.verdict.state == AlarmState.ALARM:
            last = self.verdict
            if self.history.cause:
                self.verdict = self._broken_verdict(
                    f'the alarm was reset, but {self.history.cause}', last.step
                )
            else:
                self.verdict = Verdict(
                    AlarmState.UNKNOWN,
                    RESET_BY_REQUEST,
                    last.step,
                    last.score,
                    last.threshold,
                )
        return self.verdict

    def scored(
        self, step: int, score: float, threshold: float, warning_threshold: float, now: float
    ) -> Verdict:
        """Handle a step's score and thresholds; ``warning_threshold`` may equal ``threshold``."""
        if not math.isfinite(score) or math.isnan(threshold) or math.isnan(warning_threshold):
            return self.not_scored(step, 'the score or its threshold is NaN or infinite', now)
        self._step_came(now)
        if self._alarm is None and self.history.cause:
            # The band was calibrated with scores of complete episodes.
            self.verdict = self._broken_verdict(self.history.cause, step)
            return self.verdict
        above = score > threshold
        self._above.append(above)
        count = sum(self._above)
        if count >= self.config.k:
            self.raised_at = step
        if self._alarm is None and count >= self.config.k:
            reason = f'score {score:.4g} is above the threshold {threshold:.4g} at step {step}'
            if self.config.n > 1:
                reason += f' ({count} of the last {len(self._above)} steps were above)'
            self._alarm = Verdict(AlarmState.ALARM, reason, step, score, threshold)
            self._holds = False
        self._below = 0 if above or score > warning_threshold else self._below + 1
        if self._alarm is not None:
            state, reason = AlarmState.ALARM, self._alarm.reason
        elif self._below < self.config.warning_steps:
            state = AlarmState.WARNING
            reason = (
                f'score {score:.4g} is above the warning threshold '
                f'{min(threshold, warning_threshold):.4g}'
                if self._below == 0
                else f'{self._below} of {self.config.warning_steps} lower scores (warning_steps) '
                'that end the warning have come'
            )
        else:
            state, reason = AlarmState.NOMINAL, 'the score is not above the threshold'
        self.verdict = Verdict(state, reason, step, score, threshold)
        return self.verdict

    def not_scored(self, step: int, reason: str, now: float) -> Verdict:
        """Process a step that cannot be scored.

        The state becomes INVALID, except if an alarm is latched.
        """
        self._step_came(now)
        self.history.not_scored(reason)
        if self._alarm is None:
            self.verdict = self._broken_verdict(self.history.cause or reason, step)
        return self.verdict

    def repeated(self) -> None:
        """Record a repeated step. Such a step does not show that the policy is running."""
        self._repeated += 1

    def misplaced(self, step: int, reason: str, now: float) -> Verdict:
        """Process a step that belongs to no episode, or that contradicts the running episode.

        The state becomes INVALID, except if an alarm is latched. Without a running episode, the
        state stays INVALID until no such step has come for some time.
        """
        self._last_time = now
        if self._running:
            self.history.contradict(reason)
            reason = self.history.cause
        if self._alarm is None:
            self.verdict = self._broken_verdict(reason, step)
        return self.verdict

    def tick(self, now: float) -> Verdict:
        """Check the time.

        The state becomes STALE if an episode runs and no step has arrived for `silence`.
        """
        # A finished episode does not become STALE, also if `stale_after` is infinite.
        silence = self.silence if self._running else self.period.silence
        silent = self._last_time is not None and now - self._last_time > silence
        if self._alarm is not None or not silent:
            return self.verdict
        if not self._running:
            self._last_time, self.verdict = None, NOTHING
            return self.verdict
        reason = f'no policy step has arrived for more than {self.silence:.3g} s'
        if self._repeated:
            reason = f'no new{reason[2:]}; the number of ignored repetitions is {self._repeated}'
        if not self.config.stale_after:
            reason += f' ({self.period.explain()})'
        if self.history.cause:
            reason += f'; before: {self.history.cause}'
        self.verdict = Verdict(AlarmState.STALE, reason, self.verdict.step, math.nan, math.nan)
        return self.verdict

    @property
    def silence(self) -> float:
        """The time without a step after which the state is STALE [s]."""
        return self.config.stale_after or self.period.silence

    def _step_came(self, now: float) -> None:
        if self._last_step_time is not None:
            self.period.add(now - self._last_step_time)
        self._last_time = self._last_step_time = now
        self._repeated = 0

    @staticmethod
    def _broken_verdict(reason: str, step: int) -> Verdict:
        return Verdict(AlarmState.INVALID, reason, step, math.nan, math.nan)


def held(alarm: Verdict, episode: str) -> Verdict:
    """Return the alarm of an episode that has ended or ends now, with the latch RESET.

    Parameters
    ----------
    alarm : Verdict
    episode : str
        The id of its episode in quotes, for a person; empty if unknown.
    """
    reason = (
        f'{alarm.reason}{f" of episode {episode}" if episode else ""}; the parameter latch is '
        f'{Latch.RESET.value}: {CALL_RESET}'
    )
    return replace(alarm, reason=reason)
