# SPDX-License-Identifier: Apache-2.0
"""One detector of a session: the monitor in use, the next monitor, and the adaptation file.

No ROS.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.alarm import Verdict
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.good_runs import while_learning, why_no_good_runs
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.storage.adaptation_file import AdaptationFile, AdaptationFileError


class DetectorSlot:
    """A detector of a session, which another detector can replace.

    Parameters
    ----------
    folder : str
        Detector folder.
    monitor : EpisodeMonitor
        Made from this folder.
    name : str
        Name of the slot; it does not change if another detector is loaded.
    adaptation_file : str
        File that stores the updates of the thresholds and the good runs; empty: they are only in
        memory.
    wanted_runs : int
        Number of good runs that a new task needs; 0: never.

    Attributes
    ----------
    folder : str
        Folder of the detector that was loaded last.
    monitor : EpisodeMonitor
        The monitor in use.
    next_monitor : EpisodeMonitor or None
        The monitor of the next episode, if it is a different monitor.
    file_problem : str
        Reason why the adaptation file could not be written; empty if it was written.

    Raises
    ------
    SafeError
        The adaptation file cannot be used.
    """

    def __init__(
        self,
        folder: str,
        monitor: EpisodeMonitor,
        name: str,
        adaptation_file: str = '',
        wanted_runs: int = 0,
    ) -> None:
        self.folder, self.monitor, self.name = folder, monitor, name
        self.next_monitor: EpisodeMonitor | None = None
        self.file_problem = ''
        self._wanted_runs = wanted_runs
        self._file = self._open_file(adaptation_file)

    def _open_file(self, path: str) -> AdaptationFile | None:
        if not path:
            return None
        monitor, good_runs = self.monitor, self.monitor.thresholds.good_runs
        if not learns(monitor):
            why = why_no_good_runs(monitor.calibrated, self._wanted_runs)
            raise MonitorError(
                where='parameter adaptation_file',
                expected='an empty text, because adaptation_step is 0 and labels do not change the '
                'thresholds',
                found=repr(path),
                advice='set adaptation_step (for example to alpha / 10), or leave adaptation_file '
                f'empty; good runs are {why}',
            )
        return AdaptationFile(path, monitor.calibrated, monitor.adaptation, good_runs)

    @property
    def monitors(self) -> list[EpisodeMonitor]:
        """The monitor in use, and the next monitor if it is different."""
        return [self.monitor] if self.next_monitor is None else [self.monitor, self.next_monitor]

    @property
    def learning(self) -> str:
        """Text about the good runs of the task that is learned; empty if no task is learned."""
        return self.monitor.thresholds.learning if self.monitor.running else ''

    def shown(self, verdict: Verdict) -> Verdict:
        """Return a verdict of this detector for publishing: never NOMINAL while it learns."""
        return while_learning(verdict, self.learning)

    def check(self, old: MonitorSettings, new: MonitorSettings) -> None:
        """Check that other settings can be used.

        Raises
        ------
        SafeError
            They cannot.
        """
        if new.rates != old.rates:
            for monitor in self.monitors:
                new.thresholds_of(monitor.calibrated)

    def change(self, old: MonitorSettings, new: MonitorSettings) -> None:
        """Use other settings that `check` has accepted."""
        for monitor in self.monitors:
            monitor.alarms.change(new.detector_alarm)
            if new.rates != old.rates:
                monitor.take_thresholds(new.thresholds_of(monitor.calibrated))

    # --- another detector

    def replace(self, monitor: EpisodeMonitor, folder: str) -> str:
        """Replace the monitor, now or at the next episode.

        Return a sentence that describes what happens.
        """
        self.folder = folder
        adaptation = self._adaptation_after(monitor)
        name = name_of_detector(monitor)
        if self.monitor.running:
            self.next_monitor = monitor
            return f'{name} is used from the next episode on{adaptation}'
        self._use(monitor)
        return f'{name} is in use{adaptation}'

    def _adaptation_after(self, monitor: EpisodeMonitor) -> str:
        """Return a text that describes the effect on the adaptation.

        Empty if there is no adaptation.
        """
        if not learns(monitor):
            return ''
        belongs = self._file is None or self._file.belongs_to(
            monitor.calibrated, monitor.adaptation
        )
        path = '' if self._file is None else self._file.path
        if monitor.adaptation is None:
            return '' if belongs else f'; {path} does not keep its good runs'
        if belongs:
            return '; its adaptation starts from the calibrated thresholds'
        return (
            '; its adaptation starts from the calibrated thresholds and is only in memory: '
            f'{path} belongs to the previous detector'
        )

    def take_next(self) -> None:
        """Use the next monitor, if there is one, because an episode begins or has ended."""
        if self.next_monitor is not None:
            self._use(self.next_monitor)

    def _use(self, monitor: EpisodeMonitor) -> None:
        # An earlier detector may still wait for the next episode. Only the latest detector is used.
        self.next_monitor = None
        self.keep_adaptation()
        monitor.take_over(self.monitor)
        self.monitor = monitor
        adaptation, good_runs = monitor.adaptation, monitor.thresholds.good_runs
        if self._file is None or not learns(monitor):
            return
        if self._file.belongs_to(monitor.calibrated, adaptation):
            self._file.start_anew(adaptation, good_runs)

    # --- the adaptation file

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
        kept = self.monitor.adaptation, self.monitor.thresholds.good_runs
        if self._file is None or not self._file.keeps(*kept):
            return ''
        return str(self._file.path)


def learns(monitor: EpisodeMonitor) -> bool:
    """Return whether labels change the thresholds of a monitor."""
    return monitor.adaptation is not None or monitor.thresholds.good_runs is not None


def file_of(adaptation_file: str, name: str) -> str:
    """Return the adaptation file of a further detector: ``updates.NAME.json``."""
    if not adaptation_file:
        return ''
    path = Path(adaptation_file)
    return str(path.with_name(f'{path.stem}.{name}{path.suffix}'))


def name_of_detector(monitor: EpisodeMonitor) -> str:
    """Return the detector of a monitor and its features, in words."""
    calibrated = monitor.calibrated
    features = str(calibrated.feature)
    if not calibrated.feature.dim:
        reads_actions = calibrated.detector.reads_actions
        features = 'action signals (no features)' if reads_actions else 'no features'
    return f'{calibrated.detector.name} on {features}'


def check_features(detectors: dict[str, CalibratedDetector]) -> None:
    """Check that the same steps can have the features of all detectors.

    Raises
    ------
    MonitorError
        The features differ; the message has the names of two detectors.
    """
    reading = [
        (name, calibrated.feature)
        for name, calibrated in detectors.items()
        if calibrated.reads_features
    ]
    for (name, one), (other, another) in combinations(reading, 2):
        pooled = str(one) == str(another) and one.dim == another.dim
        raw = one.axes and (one.name, one.axes) == (another.name, another.axes)
        if not pooled and not raw:
            raise MonitorError(
                where=f'detectors {name} and {other}',
                expected='detectors of the same features, because all of them get the same steps',
                found=f'{one} (width {one.dim}) and {another} (width {another.dim})',
                advice='fit both on the same features, or start a second monitor in a namespace',
            )
