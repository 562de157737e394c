# SPDX-License-Identifier: Apache-2.0
"""Learns the threshold of a new task from its labelled successes, while a robot works. No ROS.

Until a task has enough good runs, its episodes are compared with the band of all tasks, and the
monitor is *learning*: the reason contains "learning", and NOMINAL becomes WARNING. Alarms are
raised as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_run_records import GoodRunRecords
from safe_monitor_node.bands.good_runs import KIND as GOOD_RUNS
from safe_monitor_node.bands.good_runs import GoodRun, GoodRunsError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.alarm import AlarmState, Verdict
from safe_monitor_node.monitor.label_feedback import KEPT_EPISODES, LabelEffect
from safe_monitor_node.monitor.step_order import shown
from safe_monitor_node.monitor.thresholds import (
    AdaptiveThresholds,
    CalibratedThresholds,
    Thresholds,
)

_SHOWN_STATES = (AlarmState.NOMINAL, AlarmState.WARNING, AlarmState.ALARM)


@dataclass(slots=True)
class _Episode:
    """An episode that may become a good run: its largest score, task and label."""

    episode_id: str
    largest: float | None = None
    invalid: bool = False
    label: bool | None = None
    task: str = ''


class GoodRunsThresholds(Thresholds):
    """Wraps other thresholds, and adds thresholds of new tasks from good runs.

    A good run is an episode of a new task that is labelled as a success and of which all steps were
    scored. If its label is withdrawn or becomes failure, the episode is no longer a good run.
    Changes are used from the next episode on.

    Parameters
    ----------
    base : Thresholds
        The thresholds without good runs. They also handle the labels.
    records : GoodRunRecords
    """

    def __init__(self, base: Thresholds, records: GoodRunRecords) -> None:
        self._base = base
        self.good_runs: GoodRunRecords = records
        self._running: _Episode | None = None
        self._past: dict[str, _Episode] = {}
        self._news: list[str] = []
        self._task = ''
        self._follow()

    def _follow(self) -> None:
        base = self._base
        self.alarm, self.warning = base.alarm, base.warning
        self.no_threshold, self.adaptation = base.no_threshold, base.adaptation

    def succeeded_by(self, other: Thresholds) -> Thresholds:
        """Use other base thresholds; the good runs are kept."""
        self._base = other._base if isinstance(other, GoodRunsThresholds) else other
        self.take_learned(self.good_runs.bands)
        self._follow()
        return self

    def take_over(self, previous: Thresholds) -> None:
        """Take the good runs of a monitor with the same detector."""
        if isinstance(previous, GoodRunsThresholds):
            self.good_runs.take_from(previous.good_runs)
            self._past = previous._past

    @property
    def learning(self) -> str:
        """Text with the number of good runs of the task; empty if the task needs none."""
        if not self.good_runs.is_new(self._task) or self.alarm.task == self._task:
            return ''
        count, wanted = self.good_runs.count(self._task), self.good_runs.wanted
        text = f'learning, {min(count, wanted)} of {wanted} good runs of task {shown(self._task)}'
        band = self.good_runs.bands.get(self._task)
        if band is not None and band.at(self.alarm.alpha).can_alarm:
            return f'{text}: its own threshold is used from the next episode on'
        if band is not None:
            return (
                f'{text}: no finite threshold keeps the promise of alpha {self.alarm.alpha:g}: the '
                'seen tasks have too few successes; choose a larger alpha'
            )
        return (
            f'{text}: the detector was not fitted on this task, and its promised false-alarm rate '
            'may not hold; label the episodes that succeed'
        )

    def take_news(self) -> list[str]:
        """Return the changes of good runs since the last call, one sentence for each change."""
        news, self._news = self._news, []
        return news

    def take_learned(self, bands: Mapping[str, Band]) -> None:
        """Use these bands of learned tasks."""
        self._base.take_learned(bands)

    # --- events of an episode

    def use(self, task: str) -> None:
        """Use the current thresholds of a task."""
        self._task = task
        self._base.use(task)
        self._follow()

    def change_task(self, task: str) -> None:
        """Record that the task of the running episode differs from the earlier task."""
        self._task = task
        self._base.change_task(task)
        self._follow()

    def begin(self, episode_id: str) -> None:
        """Begin an episode: from now on, the thresholds from good runs are used."""
        self._running = _Episode(episode_id)
        self.take_learned(self.good_runs.bands)
        self._base.begin(episode_id)

    def scored(self, index: int, score: float) -> None:
        """Keep the largest score of the episode."""
        running = self._running
        if running is not None and (running.largest is None or score > running.largest):
            running.largest = score
        self._base.scored(index, score)

    def invalidate(self) -> None:
        """Exclude the running episode from good runs."""
        if self._running is not None:
            self._running.invalid = True
        self._base.invalidate()

    def finish(self, task: str) -> None:
        """Keep the episode until its label arrives, or count it now if the label is known."""
        self._base.finish(task)
        if (episode := self._running) is None:
            return
        self._running, episode.task = None, task
        self._past.pop(episode.episode_id, None)
        self._past[episode.episode_id] = episode
        if len(self._past) > KEPT_EPISODES:
            del self._past[next(iter(self._past))]
        if episode.label:
            self._count(episode)
        elif episode.label is False:
            self._take_out(episode.episode_id)

    # --- labels

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Count a success of a new task as a good run, or remove an earlier good run."""
        effect = self._base.label(episode_id, success)
        running = self._running
        if running is not None and running.episode_id == episode_id:
            running.label = success
            if success and not running.invalid and self.good_runs.is_new(self._task):
                self._news.append(
                    f'episode {shown(episode_id)} is counted as a good run of task '
                    f'{shown(self._task)} when it ends, if all of its steps are scored'
                )
            return effect
        episode = self._past.get(episode_id)
        if episode is not None:
            episode.label = success
        if success and episode is not None:
            self._count(episode)
        elif success and (task := self.good_runs.put_back(episode_id)):
            self._say(episode_id, f'a good run of task {shown(task)} again', task)
        elif not success:
            self._take_out(episode_id)
        return effect

    def _take_out(self, episode_id: str) -> None:
        if task := self.good_runs.remove(episode_id):
            self._say(episode_id, f'no good run of task {shown(task)} any more', task)

    def _count(self, episode: _Episode) -> None:
        """Count a success as a good run, if all its steps were scored."""
        name, task = episode.episode_id, episode.task
        if not self.good_runs.is_new(task) or self.good_runs.task_of(name):
            return
        if episode.invalid or episode.largest is None:
            self._say(name, 'no good run, because not all of its steps were scored', task)
        elif self.good_runs.add(task, GoodRun(name, float(episode.largest))):
            self._say(name, f'a good run of task {shown(task)}', task)
        else:
            self._say(name, 'no good run, because enough good runs are stored', task)

    def _say(self, episode_id: str, what: str, task: str) -> None:
        count, wanted = self.good_runs.count(task), self.good_runs.wanted
        text = f'episode {shown(episode_id)} is {what}; {count} of {wanted} good runs'
        if count >= wanted:
            text += ': the task has its own threshold from the next episode on'
        else:
            text += ': the task has the band of all tasks'
        self._news.append(text)


def make_thresholds(
    calibrated: CalibratedDetector,
    alpha: float = 0.0,
    warning_alpha: float = 0.0,
    adaptation_step: float = 0.0,
    good_runs: int = 0,
) -> Thresholds:
    """Return the thresholds of a monitor; see `EpisodeMonitor` for the parameters and errors.

    New tasks are learned unless :func:`why_no_good_runs` returns a reason.
    """
    base: Thresholds = (
        AdaptiveThresholds(calibrated, alpha, warning_alpha, adaptation_step)
        if adaptation_step > 0.0
        else CalibratedThresholds(calibrated, alpha, warning_alpha)
    )
    seen = calibrated.seen_scores
    if seen is None or why_no_good_runs(calibrated, good_runs):
        return base
    usable = _without_hopeless(calibrated, alpha or calibrated.alpha)
    records = GoodRunRecords(seen, usable.band, usable.known_tasks, good_runs)
    return GoodRunsThresholds(base, records)


def _without_hopeless(calibrated: CalibratedDetector, alpha: float) -> CalibratedDetector:
    """Return the detector without those bands from good runs that have no finite threshold.

    Such a task uses the band of all tasks, and is not treated as a task with good runs.
    """
    tasks = {
        task: band
        for task, band in calibrated.band.tasks.items()
        if band.kind != GOOD_RUNS or band.at(alpha).can_alarm
    }
    return replace(calibrated, band=replace(calibrated.band, tasks=tasks))


def why_no_good_runs(calibrated: CalibratedDetector, wanted: int) -> str:
    """Return why a monitor with this detector learns no new tasks; empty if it learns them."""
    if not wanted:
        return 'off: the parameter good_runs is 0'
    try:
        calibrated.scores_for_good_runs().shift(wanted)
    except GoodRunsError as error:
        return f'off: {error}'
    return ''


def while_learning(verdict: Verdict, learning: str) -> Verdict:
    """Return the verdict of a monitor that is learning: with this reason, and never NOMINAL.

    Parameters
    ----------
    verdict : Verdict
    learning : str
        Text about the learned task; if it is empty, the verdict does not change.
    """
    if not learning or verdict.state not in _SHOWN_STATES:
        return verdict
    state = max(verdict.state, AlarmState.WARNING)
    return replace(verdict, state=AlarmState(state), reason=f'{verdict.reason}; {learning}')
