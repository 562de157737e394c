# SPDX-License-Identifier: Apache-2.0
"""A session: the monitor in use, the next one, the adaptation file and its own labels. No ROS.

A node has one session from configure to cleanup.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from safe_monitor_node.monitor.alarm import AlarmConfig, Verdict
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.steps import StepId, StepResult
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.storage.adaptation_file import AdaptationFile, AdaptationFileError
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.step import PolicyStep

_KEPT_LATENCIES = 1000
_KEPT_OWN_LABELS = 100


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
    """

    alpha: float = 0.0
    warning_alpha: float = 0.0
    adaptation_step: float = 0.0
    adaptation_file: str = ''
    alarm: AlarmConfig = field(default_factory=AlarmConfig)

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
                advice='give a folder made by: python -m safe_training fit',
            )
        return EpisodeMonitor(
            load_detector(folder),
            alpha=self.alpha,
            warning_alpha=self.warning_alpha,
            config=self.alarm,
            adaptation_step=self.adaptation_step,
        )


@dataclass(frozen=True)
class EpisodeLabel:
    """The outcome of an episode as a label on ``vla/episode`` states it.

    Attributes
    ----------
    episode_id : str
    success : bool or None
        None: unknown; it withdraws an earlier label.
    stamp : int
        Time of the label [ns].
    reason : str
        Who labelled, and why.
    """

    episode_id: str
    success: bool | None
    stamp: int = 0
    reason: str = ''


class MonitorSession:
    """Everything that a monitor node keeps between configure and cleanup.

    Parameters
    ----------
    folder : str
        Detector folder.
    settings : MonitorSettings
    on_end : callable, optional
        Function that is called after an episode has ended by END and before the next episode
        begins.

    Attributes
    ----------
    monitor : EpisodeMonitor
        The current monitor.
    folder : str
        Folder of the detector that was loaded last.
    problem : str
        Reason why the last step could not be scored; empty if it was scored.
    file_problem : str
        Reason why the adaptation file could not be written; empty if it was written.
    latencies : deque of float
        Latencies of the last steps: time from receiving the step to publishing its score [s].

    Raises
    ------
    SafeError
        The detector folder, the settings or the adaptation file cannot be used.
    """

    def __init__(
        self,
        folder: str,
        settings: MonitorSettings,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.settings = folder, settings
        self.problem = self.file_problem = ''
        self.latencies: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._on_end = on_end
        self._own_labels: deque[EpisodeLabel] = deque(maxlen=_KEPT_OWN_LABELS)
        self._next: EpisodeMonitor | None = None
        self.monitor = settings.monitor_of(folder)
        self._file = self._open_file()

    def _open_file(self) -> AdaptationFile | None:
        path = self.settings.adaptation_file
        if not path:
            return None
        if self.monitor.adaptation is None:
            raise MonitorError(
                where='parameter adaptation_file',
                expected='an empty text, because adaptation_step is 0 and labels do not change the '
                'thresholds',
                found=repr(path),
                advice='set adaptation_step (for example to alpha / 10), or leave adaptation_file '
                'empty',
            )
        return AdaptationFile(path, self.monitor.calibrated, self.monitor.adaptation)

    @property
    def verdict(self) -> Verdict:
        """The present verdict of the monitor in use."""
        return self.monitor.verdict

    @property
    def running_id(self) -> str | None:
        """The running episode; None while no episode runs."""
        return self.monitor.episode_id if self.monitor.running else None

    # --- episodes and steps

    def start(self, episode_id: str, now: float, task: str) -> None:
        """Take the START of an episode; see `EpisodeMonitor.start`."""
        self.finish_episode()
        if episode_id != self.running_id:
            self._take_next()
        self.monitor.start(episode_id, now, task)

    def step(self, step: PolicyStep, now: float) -> StepResult | None:
        """Score the next step; see `EpisodeMonitor.step`."""
        self._begin_with(StepId.of(step), now)
        return self._kept(self.monitor.continue_with(step, now))

    def refuse(self, step_id: StepId, problem: str, now: float) -> StepResult | None:
        """Take a step whose message cannot be read; None if it is ignored."""
        self._begin_with(step_id, now)
        return self._kept(self.monitor.continue_without(step_id, problem, now))

    def _begin_with(self, step_id: StepId, now: float) -> None:
        if self.monitor.begins(step_id):
            self.finish_episode()
            self._take_next()
            self.monitor.begin(step_id.episode_id, now)

    def _kept(self, result: StepResult | None) -> StepResult | None:
        if result is not None:
            self.problem = result.problem
        return result

    def end(self, episode_id: str) -> bool:
        """Take the END of an episode; True if `finish_episode` is to be called after the grace."""
        return self.monitor.end_after_grace(episode_id)

    def finish_episode(self) -> None:
        """End the episode for which END has arrived; do nothing if no END has arrived."""
        if self.monitor.finish():
            self.keep_adaptation()
            self._take_next()
            self._on_end()

    def abandon(self) -> None:
        """Forget the running episode."""
        self.monitor.abandon()

    def tick(self, now: float) -> None:
        """Look at the clock, and write the adaptation file if its last write failed."""
        self.monitor.tick(now)
        self.keep_adaptation()

    # --- another detector

    def replace(self, monitor: EpisodeMonitor, folder: str) -> str:
        """Replace the monitor, now or at the next episode.

        Return a sentence that describes what happens.
        """
        self.folder = folder
        adaptation = self._adaptation_after(monitor)
        name = name_of_detector(monitor)
        if self.monitor.running:
            self._next = monitor
            return f'{name} is used from the next episode on{adaptation}'
        self._use(monitor)
        return f'{name} is in use{adaptation}'

    def _adaptation_after(self, monitor: EpisodeMonitor) -> str:
        """Return a text that describes the effect on the adaptation.

        Empty if there is no adaptation.
        """
        if monitor.adaptation is None:
            return ''
        if self._file is None or self._file.belongs_to(monitor.calibrated, monitor.adaptation):
            return '; its adaptation starts from the calibrated thresholds'
        return (
            '; its adaptation starts from the calibrated thresholds and is only in memory: '
            f'{self._file.path} belongs to the previous detector'
        )

    def _take_next(self) -> None:
        if self._next is not None:
            self._use(self._next)

    def _use(self, monitor: EpisodeMonitor) -> None:
        # An earlier detector may still wait for the next episode. Only the latest detector is used.
        self._next = None
        self.keep_adaptation()
        monitor.take_over(self.monitor)
        self.monitor = monitor
        adaptation = monitor.adaptation
        if self._file is None or adaptation is None:
            return
        if self._file.belongs_to(monitor.calibrated, adaptation):
            self._file.start_anew(adaptation)

    # --- labels

    def label(self, label: EpisodeLabel) -> LabelEffect:
        """Process a label and store its update on disk."""
        effect = self.monitor.label(label.episode_id, label.success)
        self.keep_adaptation()
        return effect

    def expect_own(self, label: EpisodeLabel) -> None:
        """Record that the node itself published this label and will receive it."""
        self._own_labels.append(label)

    def is_own(self, label: EpisodeLabel) -> bool:
        """Return True if the node itself published this received label.

        True only once for each label.

        Such a label had its effect when the node published the label. The label must not have a
        second effect when the node receives the label, possibly after a label from another node.
        """
        if label not in self._own_labels:
            return False
        self._own_labels.remove(label)
        return True

    def keep_adaptation(self) -> None:
        """Write the adaptation file if a file is set and the thresholds have changed."""
        if self._file is None:
            return
        try:
            self._file.keep()
        except AdaptationFileError as error:
            self.file_problem = str(error)
        else:
            self.file_problem = ''

    @property
    def adaptation_kept_in(self) -> str:
        """The adaptation file in use; empty if updates are kept in memory only."""
        if self._file is None or not self._file.keeps(self.monitor.adaptation):
            return ''
        return str(self._file.path)


def name_of_detector(monitor: EpisodeMonitor) -> str:
    """Return the detector of a monitor and its features, in words."""
    return f'{monitor.calibrated.detector.name} on {monitor.calibrated.feature}'
