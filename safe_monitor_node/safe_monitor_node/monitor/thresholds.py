# SPDX-License-Identifier: Apache-2.0
"""The thresholds that an episode is held against: those of the folder, or those that labels move.

An episode monitor has one :class:`Thresholds`, and tells it what happens to the episode.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.bands.threshold import BandError, Threshold
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.label_feedback import LabelEffect, LabelFeedback
from vla_feature_bridge.errors import SafeError


class MonitorError(SafeError):
    """The monitor was asked for something that its detector folder cannot give."""


def choose_thresholds(
    calibrated: CalibratedDetector, alpha: float = 0.0, warning_alpha: float = 0.0, task: str = ''
) -> tuple[Threshold, Threshold]:
    """Return the alarm threshold and the warning threshold of a calibrated detector.

    Both are of one band: that of the task, or of all tasks if the task has no finite one.

    Parameters
    ----------
    alpha : float
        Promised false-alarm rate; 0 takes the detector's own.
    warning_alpha : float
        False-alarm rate of the warnings; 0 takes twice ``alpha`` if the band has it, otherwise no
        warnings.
    task : str
        Task of the episode; empty if unknown.

    Raises
    ------
    MonitorError
        The band was not calibrated for alpha, or has no finite threshold there.
    """
    name, band = calibrated.detector.name, calibrated.band
    alpha = alpha or calibrated.alpha
    try:
        threshold = band.at(alpha, task)
        warning = band.at(warning_alpha, threshold.task) if warning_alpha else threshold
    except BandError as error:
        raise MonitorError(f'detector {name}: {error}') from error
    if not threshold.can_alarm:
        smallest = band.smallest_finite_alpha
        advice = '' if smallest is None else f'choose alpha >= {smallest:g} or '
        raise MonitorError(
            f'detector {name}: with {band.n_calibration} calibration rollouts '
            f'no finite threshold keeps a false-alarm rate of {alpha:g}, '
            f'so no alarm could ever be raised; {advice}calibrate on more rollouts'
        )
    if warning_alpha and warning_alpha < alpha:
        raise MonitorError(
            f'warning_alpha ({warning_alpha:g}) must not be below alpha ({alpha:g}): '
            'a warning comes first'
        )
    if not warning_alpha:
        try:
            warning = band.at(2 * alpha, threshold.task)
        except BandError:
            warning = threshold
    return threshold, warning


class Thresholds(ABC):
    """The thresholds of one episode after another.

    Attributes
    ----------
    alarm, warning : Threshold
        In force now. They stay the same until the episode ends, unless its task turns out to be
        another one.
    no_threshold : str
        Why no score could raise an alarm now, and what to do; empty if one could.
    adaptation : AdaptiveBand or None
        The moving thresholds; None if labels move nothing.
    """

    alarm: Threshold
    warning: Threshold
    no_threshold: str = ''
    adaptation: AdaptiveBand | None = None

    @abstractmethod
    def use(self, task: str) -> None:
        """Put the present thresholds of a task in force."""

    @abstractmethod
    def change_task(self, task: str) -> None:
        """Take note that the running episode is of another task than was known."""

    @abstractmethod
    def begin(self, episode_id: str) -> None:
        """Take note that an episode begins; `use` follows."""

    @abstractmethod
    def scored(self, index: int, score: float) -> None:
        """Take the score of a step of the running episode."""

    @abstractmethod
    def invalidate(self) -> None:
        """Take note that a step of the running episode is missing or could not be scored."""

    @abstractmethod
    def finish(self, task: str) -> None:
        """Take note that the running episode, which was of this task, is over."""

    @abstractmethod
    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Take the outcome of an episode; None withdraws an earlier label."""


class CalibratedThresholds(Thresholds):
    """The thresholds of the detector's band; labels do not move them.

    Parameters
    ----------
    calibrated, alpha, warning_alpha
        As in :func:`choose_thresholds`, which also says what is refused.
    """

    def __init__(
        self, calibrated: CalibratedDetector, alpha: float = 0.0, warning_alpha: float = 0.0
    ) -> None:
        self._calibrated, self._alphas = calibrated, (alpha, warning_alpha)
        self.use('')

    def use(self, task: str) -> None:
        """Put the thresholds of a task in force."""
        self.alarm, self.warning = choose_thresholds(self._calibrated, *self._alphas, task)

    def change_task(self, task: str) -> None:
        """Put the thresholds of the new task in force."""
        self.use(task)

    def begin(self, episode_id: str) -> None:
        """Do nothing: no label will need the episode."""

    def scored(self, index: int, score: float) -> None:
        """Do nothing: no label will need the score."""

    def invalidate(self) -> None:
        """Do nothing: no label will need the episode."""

    def finish(self, task: str) -> None:
        """Do nothing: no label will need the episode."""

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Return that labels move nothing."""
        return LabelEffect.OFF


class AdaptiveThresholds(Thresholds):
    """Thresholds that start at the detector's band and are moved by labelled successes.

    Parameters
    ----------
    calibrated, alpha, warning_alpha
        As in :func:`choose_thresholds`.
    adaptation_step : float
        Step size of the updates, positive.

    Raises
    ------
    MonitorError
        As :func:`choose_thresholds`; or the thresholds of the band cannot be moved.
    """

    def __init__(
        self,
        calibrated: CalibratedDetector,
        alpha: float,
        warning_alpha: float,
        adaptation_step: float,
    ) -> None:
        self.alarm, self.warning = choose_thresholds(calibrated, alpha, warning_alpha)
        try:
            self._band = AdaptiveBand(
                calibrated.band,
                self.alarm.alpha,
                adaptation_step,
                warning_alpha=self.warning.alpha,
            )
        except AdaptationError as error:
            raise MonitorError(f'detector {calibrated.detector.name}: {error}') from error
        self.adaptation = self._band
        self._feedback = LabelFeedback(self._band, calibrated.band.length)

    def use(self, task: str) -> None:
        """Put the present thresholds of a task in force."""
        self.alarm, self.warning = self._band.thresholds(task)
        self._feedback.use(task)
        moving = self._band.of(task)
        self.no_threshold = ''
        if moving.threshold == math.inf:
            self.no_threshold = (
                f'{name_of(self.alarm.task)} has no finite threshold any more: '
                f'{moving.false_alarms} of {moving.successes} labelled successes were false alarms '
                f'(wanted {moving.alpha:g}), the level is {moving.level:.3g}; go on labelling, '
                'because successes lower the threshold, or calibrate again on such episodes'
            )

    def change_task(self, task: str) -> None:
        """Put the present thresholds of the new task in force, if it has another band."""
        # The same band may have moved since the episode began; its threshold then stays in force.
        if self._band.task_of(task) != self.alarm.task:
            self.use(task)

    def begin(self, episode_id: str) -> None:
        """Begin to keep what an update by this episode needs."""
        self._feedback.begin(episode_id)

    def scored(self, index: int, score: float) -> None:
        """Keep the score of a step."""
        self._feedback.scored(index, score)

    def invalidate(self) -> None:
        """Let the running episode make no update."""
        self._feedback.invalidate()

    def finish(self, task: str) -> None:
        """Keep the episode for its label, or update by a label that came before."""
        self._feedback.finish(task)

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Update the thresholds of the next episodes, or undo an update."""
        return self._feedback.label(episode_id, success)
