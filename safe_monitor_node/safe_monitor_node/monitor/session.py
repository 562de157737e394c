# SPDX-License-Identifier: Apache-2.0
"""A session: the monitor in use, the next one, the adaptation file and its own labels. No ROS.

A node has one session from configure to cleanup. Every ``now`` is a time of a steady clock [s].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from safe_monitor_node.monitor.alarm import Verdict
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.freshness import Freshness
from safe_monitor_node.monitor.good_runs import while_learning, why_no_good_runs
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.own_labels import EpisodeLabel, OwnLabels
from safe_monitor_node.monitor.remarks import Remarks
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.start_of_watch import StartOfWatch
from safe_monitor_node.monitor.steps import Publication, StepId, StepResult
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.storage.adaptation_file import AdaptationFile, AdaptationFileError
from vla_feature_bridge.step import PolicyStep

_KEPT_LATENCIES = 1000


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
    freshness : Freshness
        The age of the last step, and the ROS clock.
    watch : StartOfWatch
        What is known about episodes that began before the monitor was active.
    folder : str
        Folder of the detector that was loaded last.
    own_labels : OwnLabels
        The labels that the node itself has published.
    remarks : Remarks
        What a person should know about the last events and steps.
    problem : str
        Reason why a step of the episode could not be scored, the last one; empty if all were.
    first_problem : str
        The same of the first one, or why the episode cannot be judged.
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
        self.problem = self.first_problem = self.file_problem = ''
        self.latencies: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self.freshness = Freshness(settings.max_age)
        self.watch = StartOfWatch()
        self.remarks = Remarks()
        self._on_end = on_end
        self.own_labels = OwnLabels()
        self._next: EpisodeMonitor | None = None
        self.monitor = settings.monitor_of(folder)
        self._file = self._open_file()

    def _open_file(self) -> AdaptationFile | None:
        path = self.settings.adaptation_file
        if not path:
            return None
        monitor, good_runs = self.monitor, self.monitor.thresholds.good_runs
        if monitor.adaptation is None and good_runs is None:
            why = why_no_good_runs(monitor.calibrated, self.settings.good_runs)
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
    def verdict(self) -> Verdict:
        """The present verdict: of the monitor in use, if it is about the present."""
        verdict = while_learning(self.monitor.verdict, self.learning)
        return self.freshness.applied_to(self.watch.applied_to(verdict))

    @property
    def learning(self) -> str:
        """What is learned about the task of the running episode; empty if nothing."""
        return self.monitor.thresholds.learning if self.monitor.running else ''

    @property
    def running_id(self) -> str | None:
        """The running episode; None while no episode runs."""
        return self.monitor.episode_id if self.monitor.running else None

    # --- active or not

    def activate(self, now: float) -> None:
        """Begin to watch."""
        self.watch.activate(now)

    def deactivate(self) -> None:
        """Forget the running episode, except that it is running."""
        if self.monitor.running:
            self.watch.began(self.monitor.episode_id, self.monitor.task)
        self._forget_episode()
        self.monitor.abandon()

    def _forget_episode(self) -> None:
        self.freshness.forget()
        self.problem = self.first_problem = ''

    def began_earlier(self, episode_id: str, now: float, task: str = '') -> None:
        """Take the START of an episode that began before the monitor was active."""
        if episode_id == self.running_id:
            self.start(episode_id, now, task)
        else:
            self.watch.began(episode_id, task)
            self.remarks.know(episode_id)

    # --- episodes and steps

    def start(self, episode_id: str, now: float, task: str) -> None:
        """Take the START of an episode; see `EpisodeMonitor.start`."""
        self.watch.know()
        self.watch.forget()
        self.finish_episode()
        is_new = episode_id != self.running_id
        if is_new:
            self._take_next()
            self._forget_episode()
        has_steps = not is_new and self.monitor.order.next_index > 0
        self.remarks.started(episode_id, now, has_steps=has_steps)
        self.monitor.start(episode_id, now, task)

    def step(
        self,
        step: PolicyStep,
        now: float,
        age: float | None = None,
        publication: Publication | None = None,
    ) -> StepResult | None:
        """Score the next step; see `EpisodeMonitor.step`.

        Parameters
        ----------
        step : PolicyStep
        now : float
        age : float or None
            ROS time minus stamp of the step [s]; None if it is not known.
        publication : Publication, optional
        """
        step_id = StepId.of(step, publication)
        self._begin_with(step_id, now)
        return self._kept(self.monitor.continue_with(step, now, step_id), step_id, now, age)

    def refuse(
        self, step_id: StepId, problem: str, now: float, age: float | None = None
    ) -> StepResult | None:
        """Take a step whose message cannot be read; None if it is ignored."""
        self._begin_with(step_id, now)
        result = self.monitor.continue_without(step_id, problem, now)
        return self._kept(result, step_id, now, age)

    def _begin_with(self, step_id: StepId, now: float) -> None:
        self.watch.know()
        if self.monitor.begins(step_id):
            self.finish_episode()
            self._take_next()
            # The START may have come before the monitor was active.
            task = self.watch.forget(step_id.episode_id)
            self._forget_episode()
            self.monitor.begin(step_id.episode_id, now, task)

    def _kept(
        self, result: StepResult | None, step_id: StepId, now: float, age: float | None
    ) -> StepResult | None:
        if result is None:
            self.remarks.repeated(step_id.episode_id, step_id.index, now)
            return None
        if step_id.episode_id == self.running_id:
            self.remarks.stepped(step_id.episode_id, now)
            self.freshness.take(step_id.index, age)
            if self.monitor.order.changed_at == step_id.index:
                self.remarks.publisher_changed(step_id.episode_id, step_id.index, now)
        if result.problem:
            self.problem = result.problem
        self.first_problem = (
            self.monitor.alarms.history.cause or self.first_problem or result.problem
        )
        verdict = while_learning(result.verdict, self.learning)
        return replace(result, verdict=self.freshness.applied_to(verdict))

    def end(
        self,
        episode_id: str,
        now: float = 0.0,
        grace: float = 0.0,
        *,
        ended_at: int = 0,
        earlier: bool = False,
    ) -> bool:
        """Take the END of an episode; True if `finish_episode` is to be called after the grace.

        Parameters
        ----------
        episode_id : str
        now : float
        grace : float
            Time in which steps of the episode may arrive [s].
        ended_at : int
            Time of publication of END [ns]; 0 if it is not known.
        earlier : bool
            Whether the END was published before the monitor was active.
        """
        self.watch.know()
        self.watch.ended(episode_id)
        if not earlier:
            self.remarks.ended(episode_id, now)
        return self.monitor.end_after_grace(episode_id, now + grace, ended_at)

    def finish_episode(self) -> None:
        """End the episode for which END has arrived; do nothing if no END has arrived."""
        if self.monitor.finish():
            self.freshness.forget()
            self.keep_adaptation()
            self._take_next()
            self._on_end()

    def clock_ran_back(self) -> None:
        """Record that the ROS time ran back; see `EpisodeMonitor.clock_ran_back`."""
        self.monitor.clock_ran_back()

    def tick(self, now: float) -> None:
        """Look at the time, and write the adaptation file if its last write failed."""
        self.watch.tick(now)
        self.remarks.tick(now)
        if self.watch.earlier is not None and not self.monitor.running:
            episode_id, task = self.watch.earlier
            self.watch.know()
            self.watch.forget()
            self._take_next()
            self._forget_episode()
            self.remarks.know(episode_id)
            self.monitor.begin_inside(episode_id, now, task)
        self.monitor.tick(now)
        self.keep_adaptation()

    # --- other settings

    def check(self, settings: MonitorSettings) -> None:
        """Check that other rates, alarm settings or ages can be used.

        Raises
        ------
        SafeError
            They cannot; nothing has changed.
        """
        if settings.rates != self.settings.rates:
            for monitor in self._monitors():
                settings.thresholds_of(monitor.calibrated)

    def change(self, settings: MonitorSettings) -> None:
        """Use settings that `check` has accepted.

        The times are used at once. The false-alarm rates, and k of n, are used from the next
        episode on, so that an episode is judged by one rule.
        """
        for monitor in self._monitors():
            monitor.alarms.change(settings.alarm)
            if settings.rates != self.settings.rates:
                monitor.take_thresholds(settings.thresholds_of(monitor.calibrated))
        self.freshness.max_age = settings.max_age
        self.settings = settings

    def _monitors(self) -> list[EpisodeMonitor]:
        return [self.monitor] if self._next is None else [self.monitor, self._next]

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
        if monitor.adaptation is None and monitor.thresholds.good_runs is None:
            return ''
        belongs = self._file is None or self._file.belongs_to(
            monitor.calibrated, monitor.adaptation
        )
        if monitor.adaptation is None:
            return '' if belongs else f'; {self._file_path} does not keep its good runs'
        if belongs:
            return '; its adaptation starts from the calibrated thresholds'
        return (
            '; its adaptation starts from the calibrated thresholds and is only in memory: '
            f'{self._file_path} belongs to the previous detector'
        )

    @property
    def _file_path(self) -> str:
        return '' if self._file is None else str(self._file.path)

    def _take_next(self) -> None:
        if self._next is not None:
            self._use(self._next)

    def _use(self, monitor: EpisodeMonitor) -> None:
        # An earlier detector may still wait for the next episode. Only the latest detector is used.
        self._next = None
        self.keep_adaptation()
        monitor.take_over(self.monitor)
        self.monitor = monitor
        adaptation, good_runs = monitor.adaptation, monitor.thresholds.good_runs
        if self._file is None or (adaptation is None and good_runs is None):
            return
        if self._file.belongs_to(monitor.calibrated, adaptation):
            self._file.start_anew(adaptation, good_runs)

    # --- labels

    def label(self, label: EpisodeLabel) -> LabelEffect:
        """Process a label and store its update on disk."""
        effect = self.monitor.label(label.episode_id, label.success)
        self.keep_adaptation()
        return effect

    def take_news(self) -> list[str]:
        """Return what happened to good runs since the last call, one sentence each."""
        return self.monitor.thresholds.take_news()

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


def name_of_detector(monitor: EpisodeMonitor) -> str:
    """Return the detector of a monitor and its features, in words."""
    return f'{monitor.calibrated.detector.name} on {monitor.calibrated.feature}'
