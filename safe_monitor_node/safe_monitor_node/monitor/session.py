# SPDX-License-Identifier: Apache-2.0
"""A session: its detectors, their alarm, the advice and its own labels. No ROS.

A node has one session from configure to cleanup. Every ``now`` is a time of a steady clock [s].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from safe_monitor_node.monitor.alarm import AlarmState, Latch, Verdict
from safe_monitor_node.monitor.alarm_policy import Advice
from safe_monitor_node.monitor.ensemble import make_ensemble
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.freshness import Freshness
from safe_monitor_node.monitor.good_runs import while_learning
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.own_labels import EpisodeLabel, OwnLabels
from safe_monitor_node.monitor.remarks import Remarks
from safe_monitor_node.monitor.scoring import Scoring, scored_alone
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.situation import Situation
from safe_monitor_node.monitor.slot import DetectorSlot
from safe_monitor_node.monitor.start_of_watch import StartOfWatch
from safe_monitor_node.monitor.steps import Publication, StepId, StepResult
from vla_feature_bridge.step import PolicyStep

_KEPT_LATENCIES = 1000


class MonitorSession:
    """All data of a monitor node between configure and cleanup.

    Parameters
    ----------
    folder : str
        Folder of the first detector; ``settings`` has the folders of the others.
    settings : MonitorSettings
    on_end : callable, optional
        Function that is called after an episode has ended by END and before the next episode
        begins.

    Attributes
    ----------
    ensemble : Ensemble
        The detectors and their alarm.
    situation : Situation
        What the table of advice judges.
    tasks : set of str
        The tasks of the table of advice that had an episode.
    freshness : Freshness
        The age of the last step, and the ROS clock.
    watch : StartOfWatch
        What is known about episodes that began before the monitor was active.
    own_labels : OwnLabels
        The labels that the node itself has published.
    remarks : Remarks
        What a person should know about the last events and steps.
    problem : str
        Reason why a step of the episode could not be scored, the last one; empty if all were.
    first_problem : str
        The same of the first one, or why the episode cannot be judged.
    effects : dict of str to LabelEffect
        Effect of the last label on each detector.
    latencies : deque of float
        Times from receiving each of the last steps to publishing its score [s].

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
        self.settings = settings
        self.problem = self.first_problem = ''
        self.latencies: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self.freshness = Freshness(settings.max_age)
        self.watch = StartOfWatch()
        self.remarks = Remarks()
        self.effects: dict[str, LabelEffect] = {}
        self._on_end = on_end
        self._next_start: tuple[str, float, str] | None = None
        self._late_start = ('', '')
        self.own_labels = OwnLabels()
        self.situation = Situation()
        self.tasks: set[str] = set()
        self.ensemble = make_ensemble(folder, settings)

    @property
    def monitor(self) -> EpisodeMonitor:
        """The monitor in use, of the first detector; it knows the episode and its steps."""
        return self.ensemble.lead

    @property
    def folder(self) -> str:
        """Folder of the first detector that was loaded last."""
        return self.ensemble.slots[0].folder

    @property
    def verdict(self) -> Verdict:
        """The current verdict of all detectors; it can be STALE or UNKNOWN, or say 'learning'."""
        verdict = while_learning(self.ensemble.verdict, self.learning)
        return self.freshness.applied_to(self.watch.applied_to(verdict))

    @property
    def learning(self) -> str:
        """Text about the good runs of the task that is learned; empty if no task is learned."""
        return self.ensemble.learning if self.monitor.running else ''

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
        self.ensemble.abandon()
        self.situation.forget()

    def _forget_episode(self) -> None:
        self.freshness.forget()
        self.problem = self.first_problem = ''

    def began_earlier(self, episode_id: str, now: float, task: str = '') -> None:
        """Handle the START of an episode that began before the monitor was active."""
        if episode_id == self.running_id:
            self.start(episode_id, now, task)
        else:
            self.watch.began(episode_id, task)
            self.remarks.know(episode_id)

    # --- episodes and steps

    def start(
        self, episode_id: str, now: float, task: str, grace: float = 0.0, started_at: int = 0
    ) -> bool:
        """Take the START of an episode; True if `finish_episode` is to be called after the grace.

        START can arrive before the last steps of the previous episode. Therefore it waits for the
        first step of its episode, or until the grace of the previous END is over. Without an END,
        the grace begins now [s]; 0: the previous episode ends at once. A START whose publication
        ``started_at`` [ns] is older than the running episode is ignored: it must not end an alarm.
        """
        if self.monitor.order.is_before_begin(episode_id, started_at):
            self.remarks.start_came_late(episode_id, self.monitor.episode_id, now)
            self._late_start = episode_id, task
            return False
        if self._next_start is not None:
            self.finish_episode()
        self.watch.know()
        self.watch.forget()
        ends, another = False, episode_id != self.running_id
        if another and grace > 0.0 and not self.monitor.order.ending:
            ends = self.ensemble.end_after_grace(self.running_id or '', now + grace, started_at)
        if another and self.monitor.order.ending:
            self._next_start = episode_id, now, task
            return ends
        self.finish_episode()
        is_new = episode_id != self.running_id
        if is_new:
            self.ensemble.take_next()
            self._forget_episode()
        has_steps = not is_new and self.monitor.order.next_index > 0
        self.remarks.started(episode_id, now, has_steps=has_steps)
        self.ensemble.start(episode_id, now, task)
        return False

    def step(
        self,
        step: PolicyStep,
        now: float,
        age: float | None = None,
        publication: Publication | None = None,
    ) -> StepResult | None:
        """Score the next step, whose age is ROS time minus stamp [s]; see `EpisodeMonitor.step`."""
        return scored_alone(self.scoring(step, now, age, publication))

    def scoring(
        self, step: PolicyStep, now: float, age: float | None, publication: Publication | None
    ) -> Scoring[StepResult | None]:
        """Do what `step` does, with scores of the caller."""
        step_id = StepId.of(step, publication)
        self._begin_with(step_id, now)
        return self._kept((yield from self.ensemble.scoring(step, now, step_id)), step_id, now, age)

    def refuse(
        self, step_id: StepId, problem: str, now: float, age: float | None = None
    ) -> StepResult | None:
        """Handle a step whose message cannot be read; None if it is ignored."""
        self._begin_with(step_id, now)
        result = self.ensemble.refuse(step_id, problem, now)
        return self._kept(result, step_id, now, age)

    def _start_waiting(self, episode_id: str) -> None:
        """Start an episode whose START waits for the end of the previous one."""
        if self._next_start is not None and self._next_start[0] == episode_id:
            self.finish_episode()

    def _begin_with(self, step_id: StepId, now: float) -> None:
        self.watch.know()
        self._start_waiting(step_id.episode_id)
        if self.monitor.begins(step_id):
            self.finish_episode()
            self.ensemble.take_next()
            # The START may have come before the monitor was active, or its clock is behind.
            (late_id, late_task), self._late_start = self._late_start, ('', '')
            task = self.watch.forget(step_id.episode_id)
            task = task or (late_task if late_id == step_id.episode_id else '')
            self._forget_episode()
            self.ensemble.begin(step_id.episode_id, now, task)

    def _kept(
        self, result: StepResult | None, step_id: StepId, now: float, age: float | None
    ) -> StepResult | None:
        if result is None:
            self.remarks.repeated(step_id.episode_id, step_id.index, now)
            return None
        monitor = self.monitor
        if monitor.running and step_id.episode_id == monitor.episode_id:
            self.remarks.stepped(step_id.episode_id, now)
            self.freshness.take(step_id.index, age)
            if monitor.order.changed_at == step_id.index:
                self.remarks.publisher_changed(step_id.episode_id, step_id.index, now)
        if result.problem:
            self.problem = result.problem
        self.first_problem = self.ensemble.cause or self.first_problem or result.problem
        if learning := self.learning:
            result = replace(result, verdict=while_learning(result.verdict, learning))
        return self.freshness.applied_to_result(result)

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

        In the grace [s], steps of the episode may arrive. ``ended_at`` is the time of publication
        [ns]; 0 if it is not known. ``earlier``: END was published before the monitor was active.
        """
        self._start_waiting(episode_id)
        self.watch.ended(episode_id)
        if not earlier:  # An earlier END does not show that no episode has begun without START.
            self.watch.know()
            self.remarks.ended(episode_id, now)
        return self.ensemble.end_after_grace(episode_id, now + grace, ended_at)

    def finish_episode(self) -> None:
        """End the episode for which END has arrived; do nothing if no END has arrived."""
        if self.ensemble.finish():
            self.freshness.forget()
            self.keep_adaptation()
            self.ensemble.take_next()
            self._on_end()
        if self._next_start is not None:
            waiting, self._next_start = self._next_start, None
            self.start(*waiting)

    def clock_ran_back(self) -> None:
        """Record that the ROS time went back; see `EpisodeMonitor.clock_ran_back`."""
        self.ensemble.clock_ran_back()

    def tick(self, now: float) -> None:
        """Check the time, and write the adaptation file if its last write failed."""
        self.watch.tick(now)
        self.remarks.tick(now)
        if self.watch.earlier is not None and not self.monitor.running:
            episode_id, task = self.watch.earlier
            self.watch.know()
            self.watch.forget()
            self.ensemble.take_next()
            self._forget_episode()
            self.remarks.know(episode_id)
            self.ensemble.begin_inside(episode_id, now, task)
        self.ensemble.tick(now)
        self.keep_adaptation()

    def reset(self) -> None:
        """Clear a latched alarm."""
        self.ensemble.reset()

    # --- advice

    def advise(self, verdict: Verdict, now: float, *, stepped: bool = False) -> Advice:
        """Return the advice for the present verdict.

        Call this function after every event, because the age of the state counts. ``stepped`` says
        whether the event was a step.
        """
        monitor, table = self.monitor, self.settings.advice
        self.situation.take(
            verdict.state,
            now,
            known=self.watch.knows,
            episode=monitor.episode_id,
            task=monitor.task,
            stepped=stepped,
            held=self.settings.alarm.latch is Latch.RESET,
        )
        if table.tasks:
            self.tasks.add(' '.join(monitor.task.split()))
            self.tasks &= table.tasks
        if table.needs_margin:
            self.situation.take_margins(self.ensemble.margins())
        advice = table.advice(self.situation)
        if verdict.state == AlarmState.WARNING and self.learning:
            # A row for WARNING must not weaken the advice of learning_advice.
            return max(advice, self.settings.learning_advice)
        return advice

    # --- other settings

    def check(self, settings: MonitorSettings) -> None:
        """Raise `SafeError` if other rates, alarm settings or ages cannot be used."""
        self.ensemble.check(self.settings, settings)

    def change(self, settings: MonitorSettings) -> None:
        """Use settings that `check` has accepted.

        The times and the table of advice are used at once. The false-alarm rates, k of n and the
        rule of several detectors are used from the next episode on, so that an episode is judged
        by one rule.
        """
        self.ensemble.change(self.settings, settings)
        self.freshness.max_age = settings.max_age
        self.settings = settings

    # --- another detector

    def replace(
        self, monitor: EpisodeMonitor, folder: str, slot: DetectorSlot | None = None
    ) -> str:
        """Replace a detector, now or at the next episode; return a sentence about what happens.

        Parameters
        ----------
        monitor : EpisodeMonitor
        folder : str
        slot : DetectorSlot, optional
            None: the first one.

        Raises
        ------
        MonitorError
            The same steps cannot have the features of all detectors. Nothing has changed.
        """
        return self.ensemble.replace(slot or self.ensemble.slots[0], monitor, folder)

    # --- labels

    def label(self, label: EpisodeLabel) -> LabelEffect:
        """Process a label and store its update on disk."""
        self._start_waiting(label.episode_id)  # or it is a label of an unknown episode
        self.effects = self.ensemble.label(label.episode_id, label.success)
        self.keep_adaptation()
        return self.effects[self.ensemble.names[0]]

    def take_news(self) -> list[str]:
        """Return what happened to good runs since the last call, one sentence each."""
        return self.ensemble.take_news()

    def keep_adaptation(self) -> None:
        """Write the adaptation files that are set and whose thresholds have changed."""
        for slot in self.ensemble.slots:
            slot.keep_adaptation()

    @property
    def file_problem(self) -> str:
        """Reason why an adaptation file could not be written; empty if all were written."""
        return '; '.join(filter(None, (slot.file_problem for slot in self.ensemble.slots)))

    @property
    def adaptation_kept_in(self) -> str:
        """The adaptation file of the first detector; empty if its updates are only in memory."""
        return self.ensemble.slots[0].adaptation_kept_in
