# SPDX-License-Identifier: Apache-2.0
"""One or several detectors that score the same steps, and their combined alarm. No ROS.

With one detector, its alarm is used. With several detectors, each detector has its own thresholds
and state, and a :class:`Rule` combines the states. In this case, the combined alarm is latched
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from safe_monitor_node.monitor.alarm import (
    NOTHING,
    RESET_BY_REQUEST,
    SCORED,
    AlarmState,
    Latch,
    Verdict,
    held,
)
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.rules import Rule, checked_names
from safe_monitor_node.monitor.scoring import Scoring
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.slot import DetectorSlot, check_features, file_of, learns
from safe_monitor_node.monitor.step_order import shown
from safe_monitor_node.monitor.steps import StepId, StepResult
from vla_feature_bridge.step import PolicyStep


class Ensemble:
    """Passes every event to the monitor of each detector, and combines the verdicts.

    All monitors get the same steps and events. The first one, `lead`, answers questions about
    episodes.

    Parameters
    ----------
    slots : sequence of DetectorSlot
    settings : MonitorSettings

    Attributes
    ----------
    slots : tuple of DetectorSlot
    lead : EpisodeMonitor
        The monitor of the first detector.
    names : tuple of str
    rule : Rule
        The rule of the running episode.
    next_rule : Rule
        The rule of the next episode.
    results : tuple of StepResult
        Results of the last step, one for each detector.

    Raises
    ------
    SafeError
        The rule or the table of advice does not fit the detectors.
    """

    def __init__(self, slots: Sequence[DetectorSlot], settings: MonitorSettings) -> None:
        self.slots = tuple(slots)
        self.lead = self.slots[0].monitor
        self.names = tuple(slot.name for slot in slots)
        self.several = len(self.slots) > 1
        self.results: tuple[StepResult, ...] = ()
        self._latch = settings.alarm.latch
        self.rule = self.next_rule = self._rule_of(settings)
        self._verdict = NOTHING
        self._alarm: Verdict | None = None
        # Whether an alarm was reset after the last step.
        self._was_reset = False
        # The detector of the verdict, and the first detector that cannot score the episode.
        self._decisive = 0
        self._broken: int | None = None
        self._step = 0
        self._episode: tuple[int, bool] = (0, False)
        self._alarm_episode = ''

    def _rule_of(self, settings: MonitorSettings) -> Rule:
        settings.advice.check_detectors(self.names)
        return Rule.parse(settings.rule, self.names)

    # --- what it says

    @property
    def monitors(self) -> list[EpisodeMonitor]:
        """The monitors in use."""
        return [slot.monitor for slot in self.slots]

    @property
    def verdict(self) -> Verdict:
        """The present verdict of all detectors together."""
        return self._verdict if self.several else self.lead.verdict

    @property
    def detector(self) -> str:
        """Name of the detector whose score and threshold are in the verdict."""
        return self.names[self._decisive] if self.several else self.lead_name

    @property
    def lead_name(self) -> str:
        """Name of the first detector, for ``safe/score``."""
        return self.names[0] if self.several else self.lead.calibrated.detector.name

    @property
    def cause(self) -> str:
        """First cause why the episode can no longer be scored; empty if it can be scored."""
        if not self.several:
            return self.lead.alarms.history.cause
        if self._broken is None:
            return ''
        causes = [monitor.alarms.history.cause for monitor in self.monitors]
        return self._named(self._broken, causes)

    @property
    def learning(self) -> str:
        """Text about the good runs of the learned task; empty if no task is learned."""
        if not self.several:
            return self.lead.thresholds.learning
        texts = [monitor.thresholds.learning for monitor in self.monitors]
        first = next((i for i, text in enumerate(texts) if text), None)
        return '' if first is None else self._named(first, texts)

    def take_news(self) -> list[str]:
        """Return the changes of good runs since the last call, one sentence for each change."""
        each = [slot.monitor.thresholds.take_news() for slot in self.slots]
        if all(news == each[0] for news in each):
            return each[0]
        named = zip(self.names, each, strict=True)
        return [f'{name}: {text}' for name, news in named for text in news]

    def take_faults(self) -> list[str]:
        """Return the tracebacks of detectors that were not returned before."""
        return [text for monitor in self.monitors for text in monitor.faults.take()]

    def margins(self) -> dict[str, float]:
        """Return score minus threshold of each detector that has scored the last step."""
        return {
            slot.name: verdict.score - verdict.threshold
            for slot in self.slots
            if (verdict := slot.monitor.verdict).state in SCORED
        }

    def _named(self, index: int, texts: Sequence[str]) -> str:
        """Return the text of a detector with its name, unless all texts are equal."""
        same = len(set(texts)) == 1
        return texts[index] if same else f'{self.names[index]}: {texts[index]}'

    # --- events; the same for every detector

    def start(self, episode_id: str, now: float, task: str) -> None:
        """Handle the START of an episode; see `EpisodeMonitor.start`."""
        self._each(lambda monitor: monitor.start(episode_id, now, task))

    def begin(self, episode_id: str, now: float, task: str) -> None:
        """Begin an episode; see `EpisodeMonitor.begin`."""
        self._each(lambda monitor: monitor.begin(episode_id, now, task))

    def begin_inside(self, episode_id: str, now: float, task: str) -> None:
        """Begin an episode that may be running already; see `EpisodeMonitor.begin_inside`."""
        self._each(lambda monitor: monitor.begin_inside(episode_id, now, task))

    def end_after_grace(self, episode_id: str, late_until: float, ended_at: int) -> bool:
        """Handle an END; see `EpisodeMonitor.end_after_grace`."""
        return self._each(lambda m: m.end_after_grace(episode_id, late_until, ended_at))[0]

    def finish(self) -> bool:
        """End the episode for which END has arrived; False if there is no such episode."""
        return self._each(EpisodeMonitor.finish)[0]

    def abandon(self) -> None:
        """Forget the running episode."""
        self._each(EpisodeMonitor.abandon)

    def clock_ran_back(self) -> None:
        """Accept stamps that are earlier than those of previous steps."""
        self._each(EpisodeMonitor.clock_ran_back)

    def tick(self, now: float) -> None:
        """Check the time."""
        self._each(lambda monitor: monitor.tick(now))

    def reset(self) -> None:
        """Clear a latched alarm, and the alarms of the detectors."""
        self._was_reset |= self._verdict.state == AlarmState.ALARM
        self._alarm = None
        self._each(EpisodeMonitor.reset)

    def label(self, episode_id: str, success: bool | None) -> dict[str, LabelEffect]:
        """Process a label; return its effect on each detector."""
        effects = self._each(lambda monitor: monitor.label(episode_id, success))
        return dict(zip(self.names, effects, strict=True))

    def scoring(self, step: PolicyStep, now: float, step_id: StepId) -> Scoring[StepResult | None]:
        """Score a step with every detector; the caller computes the scores; None if ignored.

        The result has the score of the first detector and the verdict of all.
        """
        if not self.several:
            return (yield from self.lead.scoring(step, now, step_id))
        results = []
        for monitor in self.monitors:
            results.append((yield from monitor.scoring(step, now, step_id)))
        return self._judged(results, step_id)

    def refuse(self, step_id: StepId, problem: str, now: float) -> StepResult | None:
        """Handle a step whose message cannot be read; None if it is ignored."""
        if not self.several:
            return self.lead.continue_without(step_id, problem, now)
        results = [m.continue_without(step_id, problem, now) for m in self.monitors]
        return self._judged(results, step_id)

    def _judged(self, results: Sequence[StepResult | None], step_id: StepId) -> StepResult | None:
        if results[0] is None:
            self._update()
            return None
        self.results = tuple(result for result in results if result is not None)
        self._step, self._was_reset = step_id.index, False
        self._update()
        problems = [result.problem for result in self.results]
        first = next((i for i, problem in enumerate(problems) if problem), None)
        problem = '' if first is None else self._named(first, problems)
        return replace(results[0], verdict=self._verdict, problem=problem)

    def _each(self, call: Callable[[EpisodeMonitor], Any]) -> list[Any]:
        answers = [call(slot.monitor) for slot in self.slots]
        if self.several:
            self._update()
        return answers

    # --- the verdict of several detectors

    def _update(self) -> None:
        episode = (self.lead.counts.episodes, self.lead.running)
        if episode != self._episode:
            self._episode, self._broken, self._step = episode, None, 0
            self.results, self._was_reset = (), False
            self._alarm, self.rule = self._held_alarm(), self.next_rule
        monitors = self.monitors
        if self._broken is None:
            causes = (i for i, m in enumerate(monitors) if m.alarms.history.cause)
            self._broken = next(causes, None)
        verdicts = [monitor.verdict for monitor in monitors]
        if self._alarm is None:
            self._judge(verdicts, [monitor.alarms.raised_at for monitor in monitors])
            if self._was_reset and self._verdict.state in SCORED:
                unknown = AlarmState.UNKNOWN
                self._verdict = replace(self._verdict, state=unknown, reason=RESET_BY_REQUEST)
        else:
            own = verdicts[self._decisive]
            self._verdict = self._alarm
            if own.state in SCORED:
                self._verdict = replace(own, state=AlarmState.ALARM, reason=self._alarm.reason)

    def _held_alarm(self) -> Verdict | None:
        """Return the alarm that lasts when another episode begins; None if no alarm lasts."""
        if self._alarm is None or self._latch is not Latch.RESET:
            return None
        # The end of an episode and the beginning of the next one are two events.
        episode, self._alarm_episode = self._alarm_episode, ''
        return held(self._alarm, episode) if episode else self._alarm

    def _judge(self, verdicts: Sequence[Verdict], raised: Sequence[int | None]) -> None:
        states = [verdict.state for verdict in verdicts]
        state = self.rule.state(states, raised, self._step)
        reasons = [verdict.reason for verdict in verdicts]
        votes = self.rule.votes(states, raised, self._step)
        if state == AlarmState.ALARM:
            voters = [i for i, vote in enumerate(votes) if vote]
            self._decisive = max(voters, key=lambda i: -1 if (at := raised[i]) is None else at)
            reason = self._alarm_reason(votes, reasons, raised)
        elif state == AlarmState.WARNING:
            alone = AlarmState.ALARM if AlarmState.ALARM in states else state
            self._decisive = states.index(alone)
            reason = self._named(self._decisive, reasons)
            if alone == AlarmState.ALARM:
                reason += f'; the rule {self.rule.text!r} needs more detectors for an alarm'
        elif state == AlarmState.NOMINAL:
            self._decisive, reason = 0, 'the rule makes no warning and no alarm of the states'
            if set(states) == {state}:
                reason = reasons[0]
        else:
            first = self._broken
            if first is None or states[first] != state:
                first = states.index(state)
            self._decisive, reason = first, self._named(first, reasons)
        self._verdict = replace(verdicts[self._decisive], state=state, reason=reason)
        if state == AlarmState.ALARM:
            self._alarm, self._alarm_episode = self._verdict, shown(self.lead.episode_id)

    def _alarm_reason(
        self, votes: Sequence[bool], reasons: Sequence[str], raised: Sequence[int | None]
    ) -> str:
        """Return the names of the detectors that caused the alarm, and their reasons."""
        said = [
            f'{name}: {reason}'
            if self.rule.window is None
            else f'{name} was above its threshold at step {at}'
            for name, vote, reason, at in zip(self.names, votes, reasons, raised, strict=True)
            if vote
        ]
        prefix = '' if self.rule.needed == 1 else f'rule {self.rule.text!r}: '
        return prefix + '; '.join(said)

    # --- settings and other detectors

    def check(self, old: MonitorSettings, new: MonitorSettings) -> None:
        """Check that other settings can be used.

        Raises
        ------
        SafeError
            The settings cannot be used.
        """
        self._rule_of(new)
        for slot in self.slots:
            slot.check(old, new)

    def change(self, old: MonitorSettings, new: MonitorSettings) -> None:
        """Use other settings that `check` has accepted.

        A new rule is used from the next episode on.
        """
        for slot in self.slots:
            slot.change(old, new)
        self._latch, self.next_rule = new.alarm.latch, self._rule_of(new)
        if not self.lead.running:
            self.rule = self.next_rule

    def take_next(self) -> None:
        """Use the detectors that wait for the next episode."""
        for slot in self.slots:
            slot.take_next()
        self._replaced()

    def _replaced(self) -> None:
        # A plain attribute is faster: every step reads it several times.
        self.lead = self.slots[0].monitor
        if self.several:
            self._update()

    def replace(self, slot: DetectorSlot, monitor: EpisodeMonitor, folder: str) -> str:
        """Replace the detector of a slot; see `DetectorSlot.replace`.

        Raises
        ------
        MonitorError
            The same steps cannot have the features of all detectors. Nothing has changed.
        """
        latest = {other.name: other.monitors[-1].calibrated for other in self.slots}
        check_features({**latest, slot.name: monitor.calibrated})
        answer = slot.replace(monitor, folder)
        self._replaced()
        return answer


def make_ensemble(folder: str, settings: MonitorSettings) -> Ensemble:
    """Return the detectors of a session.

    Parameters
    ----------
    folder : str
        Folder of the first detector. ``settings`` has the folders of the others.
    settings : MonitorSettings

    Raises
    ------
    SafeError
        A folder cannot be read, or the detectors do not fit each other, the rule, the table of
        advice or the other settings.
    """
    folders = [folder, *settings.more_folders]
    monitors = [settings.monitor_of(each) for each in folders]
    kinds = [monitor.calibrated.detector.name for monitor in monitors]
    names = checked_names(kinds, settings.names)
    calibrated = [monitor.calibrated for monitor in monitors]
    check_features(dict(zip(names, calibrated, strict=True)))
    files = [settings.adaptation_file]
    files += [file_of(settings.adaptation_file, name) for name in names[1:]]
    learning = [learns(monitor) for monitor in monitors]
    if any(learning):
        # If no detector learns, the slot raises the error that explains why the file is refused.
        files = [file if can else '' for file, can in zip(files, learning, strict=True)]
    parts = zip(folders, monitors, names, files, strict=True)
    return Ensemble([DetectorSlot(*part, settings.good_runs) for part in parts], settings)
