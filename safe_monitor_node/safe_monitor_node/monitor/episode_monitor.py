# SPDX-License-Identifier: Apache-2.0
"""Scores one episode after another, step by step: detector, thresholds, alarm. No ROS.

The node passes messages to the monitor. An evaluation can pass recorded rollouts and gets the same
results as on the robot.
"""

from __future__ import annotations

import math
from dataclasses import replace

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.bands.threshold import BandError, Threshold
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import StepError, Stream
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmStateMachine, Verdict
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.steps import Counts, StepId, StepResult
from safe_monitor_node.monitor.thresholds import (
    AdaptiveThresholds,
    CalibratedThresholds,
    MonitorError,
    Thresholds,
)
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.step import PolicyStep

__all__ = ['EpisodeMonitor', 'MonitorError']


class EpisodeMonitor:
    """A detector, its thresholds and the alarm, over a sequence of episodes. Times are seconds.

    An episode uses the thresholds of its task. The START event or the first step contains the task.
    The thresholds do not change during the episode, except if START arrives late with a different
    task.

    Parameters
    ----------
    calibrated : CalibratedDetector
    alpha : float
        Promised false-alarm rate; 0 uses the rate of the detector folder.
    warning_alpha : float
        False-alarm rate of the warnings. 0 uses twice ``alpha`` if the band contains this rate;
        otherwise there are no warnings.
    config : AlarmConfig, optional
    adaptation_step : float
        Step size of the threshold updates by labelled successes; 0 disables the updates.

    Attributes
    ----------
    alarms : AlarmStateMachine
    thresholds : Thresholds
    counts : Counts
    episode_id : str
        The running episode, or the last one; empty before the first.
    task : str
        Task of that episode; empty if unknown.

    Raises
    ------
    MonitorError
        The band has no thresholds for these rates, or its thresholds cannot be adapted.
    """

    def __init__(
        self,
        calibrated: CalibratedDetector,
        *,
        alpha: float = 0.0,
        warning_alpha: float = 0.0,
        config: AlarmConfig | None = None,
        adaptation_step: float = 0.0,
    ) -> None:
        self.calibrated = calibrated
        self.thresholds: Thresholds = (
            AdaptiveThresholds(calibrated, alpha, warning_alpha, adaptation_step)
            if adaptation_step > 0.0
            else CalibratedThresholds(calibrated, alpha, warning_alpha)
        )
        self.alarms = AlarmStateMachine(config)
        self.counts = Counts()
        self.episode_id = ''
        self.task = ''
        self._ended_id = ''
        self._ending = False
        self._stream: Stream | None = None
        self._next_index = 0
        self._last_stamp = -1

    @property
    def verdict(self) -> Verdict:
        """The present verdict of the alarm."""
        return self.alarms.verdict

    @property
    def running(self) -> bool:
        """True while an episode runs. Steps that arrive shortly after END belong to the episode."""
        return self.alarms.running

    @property
    def latest_id(self) -> str:
        """The episode that runs now, or ran last; empty before the first."""
        return self.episode_id or self._ended_id

    @property
    def threshold(self) -> Threshold:
        """The alarm threshold in force."""
        return self.thresholds.alarm

    @property
    def warning(self) -> Threshold:
        """The warning threshold in force."""
        return self.thresholds.warning

    @property
    def adaptation(self) -> AdaptiveBand | None:
        """The adaptive thresholds; None if labels do not change the thresholds."""
        return self.thresholds.adaptation

    @property
    def band_name(self) -> str:
        """The name of the band in use, for a person."""
        return name_of(self.threshold.task)

    # --- begin and end

    def start(self, episode_id: str, now: float, task: str = '') -> Verdict:
        """Take the START of an episode of a task; the task is empty if unknown.

        A START of the running episode does not begin a new episode, because START and steps use two
        topics and START can arrive after the first steps. If START has a different task, the
        monitor uses the thresholds of that task from the next step on. A second episode with the
        same id is recognised by a step 0 with a later stamp.
        """
        self.finish()
        if not self.running or episode_id != self.episode_id:
            self.begin(episode_id, now, task)
        elif task and task != self.task:
            self.task = task
            self.thresholds.change_task(task)
        return self.verdict

    def begins(self, step_id: StepId) -> bool:
        """Return True if a step begins an episode.

        A step with a new episode id begins an episode. A step with the id of the running or the
        last episode begins an episode if it is step 0 and later than all previous steps. Every
        other step 0 is a repetition and must not release an alarm. The last steps of an episode can
        arrive after END, or after the START of the next episode.
        """
        again = step_id.index == 0 and step_id.stamp > self._last_stamp
        if self.running and step_id.episode_id == self.episode_id:
            return again and self._next_index > 0
        return again or step_id.episode_id != self._ended_id

    def begin(self, episode_id: str, now: float, task: str = '') -> None:
        """Begin an episode, even if another episode runs.

        `start` and `step` call this method if needed.
        """
        self.finish()
        self.thresholds.finish(self.task)
        self.thresholds.begin(episode_id)
        # An episode that begins again with the same id has the same task.
        self._use_task(task or (self.task if episode_id == self.episode_id else ''))
        self.episode_id = episode_id
        if episode_id == self._ended_id:
            self._ended_id = ''
        self._stream = self.calibrated.detector.stream()
        self._next_index = 0
        self.counts.episodes += 1
        self.alarms.start(now)

    def _use_task(self, task: str) -> None:
        self.task = task
        self.thresholds.use(task)

    def end(self, episode_id: str) -> Verdict:
        """End the episode if it is the running episode. Its label affects the next episodes."""
        if self.running and episode_id == self.episode_id:
            self._ending = False
            self._ended_id = episode_id
            self.thresholds.finish(self.task)
            return self.alarms.end()
        return self.verdict

    def end_after_grace(self, episode_id: str) -> bool:
        """Take the END of the running episode whose last steps may still arrive.

        Steps and events are two topics, so steps may be delivered after END. They are scored until
        `finish` is called at the end of the grace period, or until the next episode begins. During
        the grace period the state does not become STALE.

        Returns
        -------
        bool
            False if this is not the running episode.
        """
        if not self.running or episode_id != self.episode_id:
            return False
        self._ending = True
        return True

    def finish(self) -> bool:
        """End the episode for which END has arrived. Return False if there is no such episode."""
        if not self._ending:
            return False
        self.end(self.episode_id)
        return True

    def abandon(self) -> Verdict:
        """Forget the running episode, for example because the clock jumped backwards."""
        self._ending = False
        self.thresholds.invalidate()
        self.thresholds.finish(self.task)
        self.episode_id = self._ended_id = self.task = ''
        self._last_stamp = -1
        return self.alarms.end()

    def take_over(self, previous: EpisodeMonitor) -> None:
        """Take the last episode and the counts of a monitor with another detector.

        The label feedback is not taken, because it belongs to scores of the other detector.
        """
        self._ended_id, self._last_stamp = previous._ended_id, previous._last_stamp
        self.counts = previous.counts

    # --- while an episode runs

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Process the outcome of a running or finished episode, given by a person or a program.

        Parameters
        ----------
        episode_id : str
        success : bool or None
            True, False, or None to withdraw an earlier label. The latest label counts.
        """
        return self.thresholds.label(episode_id, success)

    def reset(self) -> Verdict:
        """Release a latched alarm."""
        return self.alarms.reset()

    def tick(self, now: float) -> Verdict:
        """Check the time.

        The state becomes STALE if no step has arrived for too long, except after END.
        """
        return self.verdict if self._ending else self.alarms.tick(now)

    def step(self, step: PolicyStep, now: float) -> StepResult | None:
        """Score the next step.

        Return None if the step is ignored, because it is a repetition or belongs to an ended
        episode.
        """
        step_id = StepId.of(step)
        if self.begins(step_id):
            self.begin(step_id.episode_id, now)
        return self.continue_with(step, now)

    def continue_with(self, step: PolicyStep, now: float) -> StepResult | None:
        """Score a step as `step` does, but begin no episode."""
        if not self._admit(StepId.of(step), step.instruction):
            return None
        return self._score(step, now)

    def continue_without(self, step_id: StepId, problem: str, now: float) -> StepResult | None:
        """Take a step of the running episode whose message cannot be read; None if it is ignored.

        Parameters
        ----------
        step_id : StepId
        problem : str
            Why it cannot be read.
        """
        if not self._admit(step_id):
            return None
        return self._not_scored(step_id.index, problem, now)

    def _admit(self, step_id: StepId, instruction: str = '') -> bool:
        """Record the steps that are missing before this step.

        Return False if this step must be ignored.
        """
        index = step_id.index
        if not self.running or step_id.episode_id != self.episode_id or index < self._next_index:
            self.counts.out_of_order += 1
            return False
        if instruction and self._next_index == 0 and not self.task:
            self._use_task(instruction)
        if gap := index - self._next_index:
            self.counts.missing += gap
            self.alarms.missing(gap)
            self.thresholds.invalidate()
        self._next_index = index + 1
        self._last_stamp = max(step_id.stamp, self._last_stamp)
        return True

    def _score(self, step: PolicyStep, now: float) -> StepResult:
        assert self._stream is not None
        index = step.step
        try:
            score = self._stream.step(self._pooled(step))
        except (StepError, PoolingError) as error:
            return self._not_scored(index, str(error), now)
        if not math.isfinite(score):
            problem = f'step {index}: expected a finite score, found {score}'
            return self._not_scored(index, problem, now)
        self.counts.scored += 1
        try:
            threshold, warning = self.threshold.at(index), self.warning.at(index)
        except BandError as error:
            return self._not_scored(index, str(error), now, score)
        self.thresholds.scored(index, score)
        if problem := self.thresholds.no_threshold:
            # No score can be above an infinite threshold, but this does not mean that the episode
            # is nominal.
            self.counts.invalid += 1
            verdict = self.alarms.not_scored(index, problem, now)
            return StepResult(score, threshold, verdict, problem, self._probability(score))
        verdict = self.alarms.scored(index, score, threshold, warning, now)
        return StepResult(score, threshold, verdict, probability=self._probability(score))

    def _pooled(self, step: PolicyStep) -> PolicyStep:
        """Check that features and actions match the detector; pool raw features."""
        spec = self.calibrated.feature
        if step.feature_name and step.feature_name != str(spec):
            raw = FeatureSpec(spec.name, spec.dim, spec.axes)
            if step.feature_name != str(raw):
                raise StepError(
                    where=f'step {step.step}',
                    expected=f'the features {str(spec)!r} that the detector was fitted on',
                    found=repr(step.feature_name),
                    advice='set the same feature and the same pooling in the bridge',
                )
        if problem := self.calibrated.action_problem(step.action_space):
            raise StepError(
                f'step {step.step}: {problem}; publish the actions in the space of the detector, '
                'or fit the detector on actions in the space of the policy'
            )
        if spec.axes and step.features.ndim == len(spec.axes) + 1:
            return replace(step, features=spec.apply(step.features))
        return step

    def _probability(self, score: float) -> float:
        return score if self.calibrated.detector.gives_probability else math.nan

    def _not_scored(
        self, index: int, problem: str, now: float, score: float = math.nan
    ) -> StepResult:
        self.counts.invalid += 1
        self.thresholds.invalidate()
        verdict = self.alarms.not_scored(index, problem, now)
        return StepResult(score, math.nan, verdict, problem, self._probability(score))
