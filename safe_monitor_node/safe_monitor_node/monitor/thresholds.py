# SPDX-License-Identifier: Apache-2.0
"""The thresholds that an episode is compared with.

These are the calibrated thresholds of the detector folder, or adaptive thresholds.

An episode monitor has one :class:`Thresholds` object and calls it for each event of the episode.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_run_records import GoodRunRecords
from safe_monitor_node.bands.threshold import BandError, Threshold
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.label_feedback import LabelEffect, LabelFeedback
from vla_feature_bridge.errors import SafeError


class MonitorError(SafeError):
    """The detector folder does not support the requested settings."""


def choose_thresholds(
    calibrated: CalibratedDetector, alpha: float = 0.0, warning_alpha: float = 0.0, task: str = ''
) -> tuple[Threshold, Threshold]:
    """Return the alarm threshold and the warning threshold of a calibrated detector.

    Both thresholds come from the same band: the band of the task, or the band of all tasks if the
    task has no finite band.

    Parameters
    ----------
    alpha : float
        Promised false-alarm rate; 0 uses the rate of the detector.
    warning_alpha : float
        False-alarm rate of the warnings; 0 uses twice ``alpha`` if the band has this rate,
        otherwise there are no warnings.
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
        advice = '' if smallest is None else f'choose alpha >= {smallest:g}, or '
        raise MonitorError(
            where=f'detector {name}',
            expected=f'more than {band.n_calibration} calibration rollouts for a false-alarm rate '
            f'alpha of {alpha:g}',
            found=f'{band.n_calibration} calibration rollouts (too few: the monitor could never '
            'raise an alarm)',
            advice=f'{advice}fit the detector again on more successful rollouts',
        )
    if warning_alpha and warning_alpha < alpha:
        raise MonitorError(
            where='parameter warning_alpha',
            expected=f'a value of at least alpha ({alpha:g}), because warnings must come before '
            'alarms',
            found=f'{warning_alpha:g}',
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
        Thresholds in use. They change during an episode only if its task changes because START
        arrived late.
    no_threshold : str
        Reason why no alarm is possible now, and what to do; empty if alarms are possible.
    adaptation : AdaptiveBand or None
        The adaptive thresholds; None if labels do not change the thresholds.
    good_runs : GoodRunRecords or None
        The good runs of new tasks; None if new tasks are not learned.
    """

    alarm: Threshold
    warning: Threshold
    no_threshold: str = ''
    adaptation: AdaptiveBand | None = None
    good_runs: GoodRunRecords | None = None

    @property
    def learning(self) -> str:
        """Text about the good runs of the task that is learned; empty if no task is learned."""
        return ''

    def take_news(self) -> list[str]:
        """Return the changes of good runs since the last call, one sentence for each change."""
        return []

    def succeeded_by(self, other: Thresholds) -> Thresholds:
        """Return the thresholds of the next episode, if other rates are chosen."""
        return other

    def take_over(self, previous: Thresholds) -> None:  # noqa: B027  (only good runs are taken)
        """Take the good runs of a monitor with the same detector."""

    @abstractmethod
    def take_learned(self, bands: Mapping[str, Band]) -> None:
        """Use these bands of learned tasks, and no other learned tasks, from the next `use` on."""

    @abstractmethod
    def use(self, task: str) -> None:
        """Use the current thresholds of a task."""

    @abstractmethod
    def change_task(self, task: str) -> None:
        """Record that the task of the running episode differs from the earlier task."""

    @abstractmethod
    def begin(self, episode_id: str) -> None:
        """Record that an episode begins; a call of `use` follows."""

    @abstractmethod
    def scored(self, index: int, score: float) -> None:
        """Store the score of a step of the running episode."""

    @abstractmethod
    def invalidate(self) -> None:
        """Record that a step of the running episode is missing or could not be scored."""

    @abstractmethod
    def finish(self, task: str) -> None:
        """Record that the running episode has ended, and that this was its task."""

    @abstractmethod
    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Handle the outcome of an episode; None withdraws an earlier label."""


class CalibratedThresholds(Thresholds):
    """Fixed thresholds: the band of the detector, without updates by labels.

    Parameters
    ----------
    calibrated, alpha, warning_alpha
        See :func:`choose_thresholds`, also for the errors.
    """

    def __init__(
        self, calibrated: CalibratedDetector, alpha: float = 0.0, warning_alpha: float = 0.0
    ) -> None:
        self._calibrated, self._alphas = calibrated, (alpha, warning_alpha)
        self._folder_band = calibrated.band
        self._learned: dict[str, Band] = {}
        self.use('')

    def take_learned(self, bands: Mapping[str, Band]) -> None:
        """Use these bands of learned tasks."""
        if bands != self._learned:
            self._learned = dict(bands)
            band = self._folder_band
            band = replace(band, tasks={**band.tasks, **bands}) if bands else band
            self._calibrated = replace(self._calibrated, band=band)

    def use(self, task: str) -> None:
        """Use the calibrated thresholds of a task."""
        self.alarm, self.warning = choose_thresholds(self._calibrated, *self._alphas, task)

    def change_task(self, task: str) -> None:
        """Use the thresholds of the new task."""
        self.use(task)

    def begin(self, episode_id: str) -> None:
        """Do nothing: without adaptation, episodes are not stored."""

    def scored(self, index: int, score: float) -> None:
        """Do nothing: without adaptation, scores are not stored."""

    def invalidate(self) -> None:
        """Do nothing: without adaptation, episodes are not stored."""

    def finish(self, task: str) -> None:
        """Do nothing: without adaptation, episodes are not stored."""

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Return the effect "labels do not change the thresholds"."""
        return LabelEffect.OFF


class AdaptiveThresholds(Thresholds):
    """Adaptive thresholds.

    At first, the thresholds are the thresholds of the band. Labelled successes update them.

    Parameters
    ----------
    calibrated, alpha, warning_alpha
        As in :func:`choose_thresholds`.
    adaptation_step : float
        Step size of the updates, positive.

    Raises
    ------
    MonitorError
        As :func:`choose_thresholds`; or the thresholds of the band cannot be updated.
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

    def take_learned(self, bands: Mapping[str, Band]) -> None:
        """Use these bands of learned tasks; the updates of a band that changed are lost."""
        self._feedback.forget(self._band.take_learned(bands))

    def use(self, task: str) -> None:
        """Use the current thresholds of a task."""
        self.alarm, self.warning = self._band.thresholds(task)
        self._feedback.use(task)
        moving = self._band.of(task)
        self.no_threshold = ''
        if moving.threshold == math.inf:
            self.no_threshold = (
                f'{name_of(self.alarm.task)}: expected a finite threshold, found none at the level '
                f'{moving.level:.3g}, because {moving.false_alarms} of {moving.successes} labelled '
                f'successes were false alarms (promised {moving.alpha:g}); continue to label '
                'episodes, because successes without alarms lower the threshold, or fit the '
                'detector again with recent episodes'
            )

    def change_task(self, task: str) -> None:
        """Use the current thresholds of the new task, if the new task has another band."""
        # The same band may have been updated since the episode began. The episode keeps the earlier
        # threshold.
        if self._band.task_of(task) != self.alarm.task:
            self.use(task)

    def begin(self, episode_id: str) -> None:
        """Start to store the data that an update by this episode needs."""
        self._feedback.begin(episode_id)

    def scored(self, index: int, score: float) -> None:
        """Keep the score of a step."""
        self._feedback.scored(index, score)

    def invalidate(self) -> None:
        """Exclude the running episode from updates."""
        self._feedback.invalidate()

    def finish(self, task: str) -> None:
        """Store the episode until its label arrives, or update now if the label is known."""
        self._feedback.finish(task)

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Update the thresholds of the next episodes, or undo an update."""
        return self._feedback.label(episode_id, success)
