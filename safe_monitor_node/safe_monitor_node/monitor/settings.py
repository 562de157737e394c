# SPDX-License-Identifier: Apache-2.0
"""The settings of a session. No ROS."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.alarm import AlarmConfig, Latch
from safe_monitor_node.monitor.alarm_policy import Advice, AdviceTable
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.rules import ANY
from safe_monitor_node.monitor.thresholds import CalibratedThresholds, MonitorError
from safe_monitor_node.storage.shared_detectors import shared_detector
from safe_monitor_node.storage.shipped import SHIPPED


@dataclass(frozen=True)
class MonitorSettings:
    """Settings for making a monitor from a detector folder.

    Attributes
    ----------
    alpha, warning_alpha, adaptation_step : float
        Same meaning as in :class:`EpisodeMonitor`.
    alarm : AlarmConfig
    adaptation_file : str
        File that stores the updates of the thresholds; if empty, the updates are only in memory.
    max_age : float
        If a step is older than this when it arrives, the state is STALE [s]. 0: the age is only
        reported.
    good_runs : int
        Same meaning as in :class:`EpisodeMonitor`.
    learning_advice : Advice
        The advice in the state WARNING while a task is learned, unless the table gives a stronger
        advice.
    advice : AdviceTable
        The advice for each state.
    more_folders : tuple of str
        Folders of further detectors that score the same steps.
    names : tuple of str
        Names of all detectors; empty: the names of their kinds.
    rule : str
        The rule that combines the states of several detectors; see :class:`Rule`.
    """

    alpha: float = 0.0
    warning_alpha: float = 0.0
    adaptation_step: float = 0.0
    adaptation_file: str = ''
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    max_age: float = 0.0
    good_runs: int = 0
    learning_advice: Advice = Advice.NONE
    advice: AdviceTable = field(default_factory=AdviceTable)
    more_folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    rule: str = ANY

    def monitor_of(self, folder: str) -> EpisodeMonitor:
        """Return a new monitor with the detector of a folder.

        Raises
        ------
        SafeError
            The folder cannot be read, or has no thresholds for these settings.
        """
        if not folder:
            raise MonitorError(
                where='parameter detector_folder',
                expected='a detector folder',
                found='an empty text',
                advice='give a folder made by: python -m safe_training fit; or the name of a '
                f'shipped detector: {", ".join(SHIPPED)}',
            )
        return EpisodeMonitor(
            shared_detector(folder),
            alpha=self.alpha,
            warning_alpha=self.warning_alpha,
            config=self.detector_alarm,
            adaptation_step=self.adaptation_step,
            good_runs=self.good_runs,
        )

    @property
    def detector_alarm(self) -> AlarmConfig:
        """The parameters of the alarm of one detector.

        With several detectors, only the combined alarm is latched with RESET. Otherwise an old
        alarm of one detector could be combined with a new alarm of another detector.
        """
        return replace(self.alarm, latch=Latch.EPISODE) if self.more_folders else self.alarm

    @property
    def rates(self) -> tuple[float, float]:
        """The false-alarm rates of alarms and of warnings."""
        return self.alpha, self.warning_alpha

    def thresholds_of(self, calibrated: CalibratedDetector) -> CalibratedThresholds:
        """Return the thresholds of a detector at these rates.

        Raises
        ------
        MonitorError
            The thresholds are adaptive, or the detector has no thresholds at these rates.
        """
        if self.adaptation_step > 0.0:
            raise MonitorError(
                where='parameters alpha and warning_alpha',
                expected='no change while adaptation_step is above 0, because the updates of the '
                'thresholds belong to one alpha',
                found=f'alpha {self.alpha:g} and warning_alpha {self.warning_alpha:g}',
                advice='start the monitor again with these rates',
            )
        return CalibratedThresholds(calibrated, *self.rates)
