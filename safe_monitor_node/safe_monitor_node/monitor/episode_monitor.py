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
from safe_monitor_node.monitor.detector_faults import DetectorFaults
from safe_monitor_node.monitor.good_runs import make_thresholds
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.scoring import Scoring, Wanted, scored_alone
from safe_monitor_node.monitor.step_checks import StepChecks
from safe_monitor_node.monitor.step_order import Place, Placement, StepOrder, shown
from safe_monitor_node.monitor.steps import Counts, StepId, StepResult
from safe_monitor_node.monitor.thresholds import MonitorError, Thresholds
from vla_feature_bridge.pooling import PoolingError
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
    good_runs : int
        Number of labelled successes that give a new task its own threshold; 0: never. Nothing is
        learned if the detector has no scores for it. `thresholds.learning` says what is learned.

    Attributes
    ----------
    alarms : AlarmStateMachine
    thresholds : Thresholds
        Thresholds in use.
    next_thresholds : Thresholds or None
        Thresholds of the next episode, if they are different.
    counts : Counts
    order : StepOrder
        The order of the steps of the episodes.
    checks : StepChecks
        The checks of features and actions.
    faults : DetectorFaults
    task : str
        Task of the running episode, or of the last one; empty if unknown.

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
        good_runs: int = 0,
    ) -> None:
        self.calibrated = calibrated
        self.thresholds = make_thresholds(
            calibrated, alpha, warning_alpha, adaptation_step, good_runs
        )
        self.next_thresholds: Thresholds | None = None
        self.alarms = AlarmStateMachine(config)
        self.counts = Counts()
        self.order = StepOrder()
        self.checks = StepChecks(calibrated)
        self.faults = DetectorFaults()
        self.task = ''
        self._stream: Stream | None = None

    @property
    def verdict(self) -> Verdict:
        """The present verdict of the alarm."""
        return self.alarms.verdict

    @property
    def episode_id(self) -> str:
        """The running episode, or the last episode; empty before the first episode."""
        return self.order.episode_id

    @property
    def running(self) -> bool:
        """True while an episode runs. Steps that arrive shortly after END belong to the episode."""
        return self.alarms.running

    @property
    def latest_id(self) -> str:
        """As `episode_id`; after `take_over`, the last episode of the previous monitor."""
        return self.episode_id or self.order.ended_id

    @property
    def threshold(self) -> Threshold:
        """The alarm threshold in use."""
        return self.thresholds.alarm

    @property
    def warning(self) -> Threshold:
        """The warning threshold in use."""
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
        """Handle the START of an episode of a task; the task is empty if unknown.

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
        """Return True if a step begins an episode; see `StepOrder.begins`."""
        return self.order.begins(step_id)

    def begin(self, episode_id: str, now: float, task: str = '') -> None:
        """Begin an episode, even if another episode runs.

        `start` and `step` call this method if needed.
        """
        self.finish()
        self.thresholds.finish(self.task)
        self._use_next_thresholds()
        self.thresholds.begin(episode_id)
        # An episode that begins again with the same id has the same task.
        self._use_task(task or (self.task if episode_id == self.episode_id else ''))
        self.order.begin(episode_id)
        self._stream = self.faults.stream_of(self.calibrated.detector)
        self.counts.episodes += 1
        self.alarms.start(now, shown(episode_id))
        self.checks.begin(self.alarms.config.max_identical_features)

    def _use_task(self, task: str) -> None:
        self.task = task
        self.thresholds.use(task)

    def end(self, episode_id: str) -> Verdict:
        """End the episode if it is the running episode. Its label affects the next episodes."""
        if self.running and episode_id == self.episode_id:
            self.order.end()
            self.thresholds.finish(self.task)
            return self.alarms.end()
        return self.verdict

    def end_after_grace(
        self, episode_id: str, late_until: float = -math.inf, ended_at: int = 0
    ) -> bool:
        """Handle the END of the running episode whose last steps may still arrive.

        Steps and events are two topics, so steps may be delivered after END. They are scored until
        `finish` is called at the end of the grace period, or until the next episode begins. During
        the grace period the state does not become STALE.

        Parameters
        ----------
        episode_id : str
        late_until, ended_at
            As in `StepOrder.expect_end`.

        Returns
        -------
        bool
            False if this is not the running episode.
        """
        if not self.running or episode_id != self.episode_id:
            return False
        self.order.expect_end(late_until, ended_at)
        return True

    def finish(self) -> bool:
        """End the episode for which END has arrived. Return False if there is no such episode."""
        if not self.order.ending:
            return False
        self.end(self.episode_id)
        return True

    def begin_inside(self, episode_id: str, now: float, task: str = '') -> Verdict:
        """Begin an episode that may have begun before the monitor was active.

        The state is INVALID until its next step. If this is step 0, the episode is scored like
        every other episode. Otherwise steps are missing.
        """
        self.begin(episode_id, now, task)
        return self.alarms.doubt(
            f'episode {shown(episode_id)} was running before the monitor was active: whether steps '
            'are missing is known at its next step'
        )

    def clock_ran_back(self) -> None:
        """Accept stamps that are earlier than the stamps of previous steps.

        The running episode continues. A step 0 with the id of this episode begins the episode
        again, as in a recording that is played in a loop.
        """
        self.order.accept_earlier_stamps()

    def take_thresholds(self, thresholds: Thresholds) -> None:
        """Use other thresholds from the next episode on."""
        self.next_thresholds = thresholds
        if not self.running:
            self._use_next_thresholds()

    def _use_next_thresholds(self) -> None:
        if self.next_thresholds is not None:
            self.thresholds = self.thresholds.succeeded_by(self.next_thresholds)
            self.next_thresholds = None

    def abandon(self) -> Verdict:
        """Forget the running episode, for example because the monitor is deactivated."""
        self.thresholds.invalidate()
        self.thresholds.finish(self.task)
        self.order.forget()
        self.task = ''
        return self.alarms.end()

    def take_over(self, previous: EpisodeMonitor) -> None:
        """Take over last episode, counts and latched alarm of a monitor with another detector.

        The label feedback is not taken over, because it belongs to scores of the other detector.
        Good runs are taken over if the detector is the same.
        """
        sha256 = self.calibrated.weights_sha256
        if sha256 and sha256 == previous.calibrated.weights_sha256:
            self.thresholds.take_over(previous.thresholds)
        self.order.take_over(previous.order)
        self.alarms.period = previous.alarms.period
        self.alarms.hold(previous.alarms)
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
        """Clear a latched alarm."""
        return self.alarms.reset()

    def tick(self, now: float) -> Verdict:
        """Check the time.

        The state becomes STALE if no step has arrived for too long, except after END.
        """
        return self.verdict if self.order.ending else self.alarms.tick(now)

    def step(self, step: PolicyStep, now: float) -> StepResult | None:
        """Score the next step.

        Return None if the step is ignored, because it is a repetition or belongs to an episode
        whose END has just come.
        """
        step_id = StepId.of(step)
        if self.begins(step_id):
            self.begin(step_id.episode_id, now)
        return scored_alone(self.scoring(step, now, step_id))

    def scoring(self, step: PolicyStep, now: float, step_id: StepId) -> Scoring[StepResult | None]:
        """Score a step as `step` does, but begin no episode. The caller computes the score."""
        place = self._place(step_id, now, step.instruction)
        if place.placement is not Placement.NEXT:
            return self._off_order(place, step_id, now)
        result = yield from self._score(step, now)
        return replace(result, problem=place.problem) if place.problem else result

    def continue_without(self, step_id: StepId, problem: str, now: float) -> StepResult | None:
        """Handle a step of the running episode whose message cannot be read; None if it is ignored.

        Parameters
        ----------
        step_id : StepId
        problem : str
            Why it cannot be read.
        """
        place = self._place(step_id, now)
        if place.placement is not Placement.NEXT:
            return self._off_order(place, step_id, now)
        return self._not_scored(step_id.index, problem, now)

    def _place(self, step_id: StepId, now: float, instruction: str = '') -> Place:
        """Return the place of a step, and record missing steps before it and its problems."""
        is_first = self.order.next_index == 0
        place = self.order.place(step_id, now)
        if place.problem or place.missing:
            self.thresholds.invalidate()
        if place.placement is Placement.NEXT:
            if instruction and is_first and not self.task:
                self._use_task(instruction)
            if place.problem:
                self.alarms.history.contradict(place.problem)
            if place.missing:
                self.counts.missing += place.missing
                self.alarms.history.missing(place.missing, place.gap, place.hint)
        return place

    def _off_order(self, place: Place, step_id: StepId, now: float) -> StepResult | None:
        """Return the result of a step that is not the next step; None if it is ignored."""
        if place.placement is Placement.REPEATED:
            self.counts.repeated += 1
            self.alarms.repeated()
            return None
        self.counts.misplaced += 1
        verdict = self.alarms.misplaced(step_id.index, place.problem, now)
        return StepResult(math.nan, math.nan, verdict, place.problem)

    def _score(self, step: PolicyStep, now: float) -> Scoring[StepResult]:
        assert self._stream is not None
        index, detector = step.step, self.calibrated.detector
        try:
            score = yield Wanted(detector, self._stream, self.checks.checked(step))
        except (StepError, PoolingError) as error:
            return self._not_scored(index, str(error), now)
        except Exception as error:  # A detector's fault must not end the monitor.
            return self._not_scored(index, self.faults.problem(detector, index, error), now)
        if not math.isfinite(score):
            problem = f'step {index}: expected a finite score, found {score}'
            return self._not_scored(index, problem, now)
        self.counts.scored += 1
        self.checks.scored(step, score)
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
            return StepResult(score, threshold, verdict, problem, self._probability(score, index))
        verdict = self.alarms.scored(index, score, threshold, warning, now)
        return StepResult(score, threshold, verdict, probability=self._probability(score, index))

    def _probability(self, score: float, index: int) -> float:
        return self.calibrated.probability_at(score, index)

    def _not_scored(
        self, index: int, problem: str, now: float, score: float = math.nan
    ) -> StepResult:
        self.counts.invalid += 1
        self.thresholds.invalidate()
        verdict = self.alarms.not_scored(index, problem, now)
        return StepResult(score, math.nan, verdict, problem, self._probability(score, index))
