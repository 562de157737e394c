# SPDX-License-Identifier: Apache-2.0
"""Judge one episode after another, step by step: score, band, alarm policy. No ROS in it.

The node feeds it messages; evaluation may feed it recorded rollouts and gets what the robot would
have got.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.bands.threshold import BandError, Threshold
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import StepError, Stream
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmStateMachine, Verdict
from safe_monitor_node.monitor.label_feedback import Lesson, Lessons
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.step import PolicyStep


class MonitorError(SafeError):
    """The monitor was asked for something that its detector folder cannot give."""


@dataclass(frozen=True)
class Judgement:
    """What became of one step.

    Attributes
    ----------
    score : float
        The detector's score; NaN when the step could not be scored.
    threshold : float
        The band at this step; NaN when there is none, +inf where adaptation left no finite one.
    verdict : Verdict
        State of the alarm policy after the step.
    problem : str
        Why the step could not be judged; empty when it was.
    """

    score: float
    threshold: float
    verdict: Verdict
    problem: str = ''


@dataclass
class Counts:
    """Steps since the monitor was configured."""

    scored: int = 0
    invalid: int = 0
    missing: int = 0
    out_of_order: int = 0
    episodes: int = 0


def choose_thresholds(
    loaded: CalibratedDetector, alpha: float = 0.0, warning_alpha: float = 0.0, task: str = ''
) -> tuple[Threshold, Threshold]:
    """Return the alarm threshold and the warning threshold of a detector folder.

    Both are of one band: that of the task, or of all tasks where it has no finite one.

    Parameters
    ----------
    alpha : float
        Promised false-alarm rate; 0 takes the folder's own.
    warning_alpha : float
        That of the warning band; 0 takes twice ``alpha`` where the folder has it, else no warning
        band.
    task : str
        Task of the episode; empty if unknown.

    Raises
    ------
    MonitorError
        No band, an alpha that it was not calibrated for, or one that can never raise an alarm.
    """
    name = loaded.detector.name
    if loaded.band is None:
        raise MonitorError(
            f'detector {name}: the folder has no band; calibrate it by fitting with `fit`'
        )
    alpha = alpha or loaded.alpha
    try:
        threshold = loaded.band.at(alpha, task)
        warning = loaded.band.at(warning_alpha, threshold.task) if warning_alpha else threshold
    except BandError as error:
        raise MonitorError(f'detector {name}: {error}') from error
    if not threshold.can_alarm:
        smallest = loaded.band.smallest_finite_alpha
        choose = (
            'calibrate on more rollouts' if smallest is None else f'choose alpha >= {smallest:g}'
        )
        raise MonitorError(
            f'detector {name}: with {loaded.band.n_calibration} calibration rollouts '
            f'no finite threshold keeps a false-alarm rate of {alpha:g}, '
            f'so no alarm could ever be raised; {choose} or calibrate on more rollouts'
        )
    if warning_alpha and warning_alpha < alpha:
        raise MonitorError(
            f'warning_alpha ({warning_alpha:g}) must not be below alpha ({alpha:g}): '
            'a warning comes first'
        )
    if not warning_alpha:
        try:
            warning = loaded.band.at(2 * alpha, threshold.task)
        except BandError:
            warning = threshold
    return threshold, warning


class EpisodeMonitor:
    """A detector, its band and the alarm policy, over a sequence of episodes. Times are seconds.

    The thresholds of an episode are those of its task, which its start or its first step tells.
    They stay the same until it ends, unless its start comes late and tells another task.

    Parameters
    ----------
    loaded : CalibratedDetector
    alpha, warning_alpha : float
        As in :func:`choose_thresholds`.
    config : AlarmConfig, optional
    adaptation_step : float
        Step size gamma with which labelled successes move the thresholds; 0 leaves them alone.

    Attributes
    ----------
    threshold, warning : Threshold
        In force now.
    adaptation : AdaptiveBand or None
        The moving thresholds; None when they do not move.
    task : str
        Of the running episode, or of the last one; empty if unknown.

    Raises
    ------
    MonitorError
        The folder has no thresholds for these rates, or none that can be moved.
    """

    def __init__(
        self,
        loaded: CalibratedDetector,
        *,
        alpha: float = 0.0,
        warning_alpha: float = 0.0,
        config: AlarmConfig | None = None,
        adaptation_step: float = 0.0,
    ) -> None:
        self.loaded = loaded
        self._alphas = alpha, warning_alpha
        self.threshold, self.warning = choose_thresholds(loaded, alpha, warning_alpha)
        self.adaptation: AdaptiveBand | None = None
        self._lessons: Lessons | None = None
        if adaptation_step > 0.0:
            assert loaded.band is not None
            try:
                self.adaptation = AdaptiveBand(
                    loaded.band,
                    self.threshold.alpha,
                    adaptation_step,
                    warning_alpha=self.warning.alpha,
                )
            except AdaptationError as error:
                raise MonitorError(f'detector {loaded.detector.name}: {error}') from error
            self._lessons = Lessons(self.adaptation, loaded.band.length)
        self.policy = AlarmStateMachine(config)
        self.counts = Counts()
        self.episode_id = ''
        self.task = ''
        self._unbounded = ''
        self._ended_id = ''
        self._stream: Stream | None = None
        self._next_step = 0
        self._last_stamp = -1

    @property
    def verdict(self) -> Verdict:
        """The alarm policy's present verdict."""
        return self.policy.verdict

    @property
    def running(self) -> bool:
        """True while an episode runs."""
        return self.policy.running

    @property
    def latest_id(self) -> str:
        """The episode that runs now, or ran last; empty before the first."""
        return self.episode_id or self._ended_id

    @property
    def band_name(self) -> str:
        """Which band is in use, for a person."""
        return name_of(self.threshold.task)

    def start(self, episode_id: str, now: float, task: str = '') -> Verdict:
        """Start an episode of a task; empty if the task is unknown.

        A start of the running one begins nothing: steps and events are two topics, and its START
        may arrive after its first steps. If it tells another task than was known, the thresholds
        are those of that task from the next step on. An episode that begins anew under its old
        name shows it by a step 0 with a later stamp.
        """
        if not self.running or episode_id != self.episode_id:
            return self._begin(episode_id, now, task)
        if task and task != self.task:
            if self.adaptation is not None and self.adaptation.task_of(task) == self.threshold.task:
                self.task = task  # the same band, which may have moved since the episode began
            else:
                self._use_task(task)
        return self.verdict

    def _begin(self, episode_id: str, now: float, task: str = '') -> Verdict:
        if self._lessons is not None:
            self._lessons.finish(self.task)
            self._lessons.begin(episode_id)
        # Begun anew under its old name it is of the same task.
        self._use_task(task or (self.task if episode_id == self.episode_id else ''))
        self.episode_id = episode_id
        if episode_id == self._ended_id:
            self._ended_id = ''
        self._stream = self.loaded.detector.stream()
        self._next_step = 0
        self.counts.episodes += 1
        return self.policy.start(now)

    def _use_task(self, task: str) -> None:
        self.task = task
        if self.adaptation is None:
            self.threshold, self.warning = choose_thresholds(self.loaded, *self._alphas, task)
            return
        assert self._lessons is not None
        self.threshold, self.warning = self.adaptation.thresholds(task)
        self._lessons.use(task)
        moving = self.adaptation.of(task)
        self._unbounded = ''
        if moving.threshold == math.inf:
            self._unbounded = (
                f'{self.band_name} has no finite threshold any more: {moving.false_alarms} of '
                f'{moving.successes} labelled successes were false alarms (wanted '
                f'{moving.alpha:g}), the level is {moving.level:.3g}; go on labelling, as '
                'successes lower it, or calibrate again on such episodes'
            )

    def end(self, episode_id: str) -> Verdict:
        """End the running episode, if it is this one; what it teaches holds from the next one."""
        if self.running and episode_id == self.episode_id:
            self._ended_id = episode_id
            if self._lessons is not None:
                self._lessons.finish(self.task)
            return self.policy.end()
        return self.verdict

    def label(self, episode_id: str, success: bool | None) -> Lesson:
        """Take what a person or a checker says of an episode, running or over.

        Parameters
        ----------
        episode_id : str
        success : bool or None
            None takes an earlier label back; the latest label counts.
        """
        return Lesson.OFF if self._lessons is None else self._lessons.label(episode_id, success)

    def abandon(self) -> Verdict:
        """Forget the running episode, for example because the clock jumped backwards."""
        if self._lessons is not None:
            self._lessons.spoil()
            self._lessons.finish(self.task)
        self.episode_id = self._ended_id = self.task = ''
        self._last_stamp = -1
        return self.policy.end()

    def take_over(self, previous: EpisodeMonitor) -> None:
        """Go on after another detector: which episode ended last, and what was counted.

        What labels taught that one is of its own scores, and of no use here.
        """
        self._ended_id, self._last_stamp = previous._ended_id, previous._last_stamp
        self.counts = previous.counts

    def reset(self) -> Verdict:
        """Release a latched alarm."""
        return self.policy.reset()

    def tick(self, now: float) -> Verdict:
        """Look at the clock."""
        return self.policy.tick(now)

    def step(self, step: PolicyStep, now: float) -> Judgement | None:
        """Judge the next step; None for one to be ignored (repeated, or of an ended episode)."""
        if not self._expected(step.episode_id, step.step, step.stamp, now, step.instruction):
            return None
        return self._judge(step, now)

    def refuse(
        self, episode_id: str, step: int, stamp: int, problem: str, now: float
    ) -> Judgement | None:
        """Take a step whose message could not even be read; None for one that must be ignored."""
        if not self._expected(episode_id, step, stamp, now):
            return None
        return self._unjudged(step, problem, now)

    def begins(self, episode_id: str, step: int, stamp: int) -> bool:
        """Tell whether a step begins an episode.

        It does under a new name, and under the running or the last one as a step 0 that is later
        than all before; any other step 0 is a repetition, and must not release an alarm. The last
        steps of an episode may be delivered after its end, or after the next start.
        """
        again = step == 0 and stamp > self._last_stamp
        if self.running and episode_id == self.episode_id:
            return again and self._next_step > 0
        return again or episode_id != self._ended_id

    def _expected(
        self, episode_id: str, step: int, stamp: int, now: float, instruction: str = ''
    ) -> bool:
        """Start the step's episode where needed, note steps that never came; False to ignore it."""
        if self.begins(episode_id, step, stamp):
            self._begin(episode_id, now)
        elif not self.running or episode_id != self.episode_id or step < self._next_step:
            self.counts.out_of_order += 1
            return False
        if instruction and self._next_step == 0 and not self.task:
            self._use_task(instruction)
        if gap := step - self._next_step:
            self.counts.missing += gap
            self.policy.missing(gap)
            if self._lessons is not None:
                self._lessons.spoil()
        self._next_step = step + 1
        self._last_stamp = max(stamp, self._last_stamp)
        return True

    def _judge(self, step: PolicyStep, now: float) -> Judgement:
        assert self._stream is not None
        try:
            score = self._stream.step(self._fitting_step(step))
        except (StepError, PoolingError) as error:
            return self._unjudged(step.step, str(error), now)
        if not math.isfinite(score):
            return self._unjudged(step.step, f'step {step.step}: the score is {score}', now)
        self.counts.scored += 1
        try:
            threshold, warning = self.threshold.at(step.step), self.warning.at(step.step)
        except BandError as error:
            return self._unjudged(step.step, str(error), now, score)
        if self._lessons is not None:
            self._lessons.judged(step.step, score)
            if self._unbounded:
                # No score is above it, but that says nothing of the episode.
                self.counts.invalid += 1
                verdict = self.policy.unjudged(step.step, self._unbounded, now)
                return Judgement(score, threshold, verdict, self._unbounded)
        verdict = self.policy.judged(step.step, score, threshold, warning, now)
        return Judgement(score, threshold, verdict)

    def _fitting_step(self, step: PolicyStep) -> PolicyStep:
        """Check the features' name against the detector's, and pool them if they come raw."""
        spec = self.loaded.feature
        if step.feature_name and step.feature_name != str(spec):
            raw = FeatureSpec(spec.name, spec.dim, spec.axes)
            if step.feature_name != str(raw):
                raise StepError(
                    f'step {step.step}: the features are {step.feature_name!r}, '
                    f'the detector was fitted on {str(spec)!r}; '
                    'set the same tensor and pooling in the bridge'
                )
        if spec.axes and step.features.ndim == len(spec.axes) + 1:
            return replace(step, features=spec.apply(step.features))
        return step

    def _unjudged(self, step: int, problem: str, now: float, score: float = math.nan) -> Judgement:
        self.counts.invalid += 1
        if self._lessons is not None:
            self._lessons.spoil()
        return Judgement(score, math.nan, self.policy.unjudged(step, problem, now), problem)
