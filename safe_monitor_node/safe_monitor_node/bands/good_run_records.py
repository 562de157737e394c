# SPDX-License-Identifier: Apache-2.0
"""The good runs that a monitor has counted, and the bands from these runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_runs import GoodRun, GoodRunsError, SeenScores, good_runs_band

KEPT_RUNS = 100
"""Number of good runs that are kept for a task."""

KEPT_TASKS = 1000
"""Number of new tasks whose good runs are kept."""


class GoodRunRecords:
    """Good runs by task. A task with enough good runs has its own band.

    The first k good runs of a task make its band. Later good runs are kept. If a run is removed, a
    later run replaces it. An episode counts only once, also if its recording is played again.

    Parameters
    ----------
    seen : SeenScores
    band : Band
        The band of the detector folder.
    known : collection of str
        Tasks that the detector knows. Their thresholds do not change.
    wanted : int
        k, the number of good runs that make a threshold; at least 1.

    Attributes
    ----------
    revision : int
        Number of changes.

    Raises
    ------
    GoodRunsError
        The seen tasks have too few successes for a threshold from k good runs.
    """

    def __init__(self, seen: SeenScores, band: Band, known: Collection[str], wanted: int) -> None:
        seen.shift(wanted)
        self.wanted = wanted
        self.revision = 0
        self._seen, self._band = seen, band
        self._known = {'', *known, *band.tasks}
        self._runs: dict[str, list[GoodRun]] = {}
        self._bands: dict[str, Band] = {}
        self._taken_out: dict[str, tuple[str, int, GoodRun]] = {}

    def is_new(self, task: str) -> bool:
        """Return whether the task has a name and the detector does not know the task."""
        return task not in self._known

    @property
    def tasks(self) -> tuple[str, ...]:
        """New tasks with at least one good run."""
        return tuple(self._runs)

    @property
    def bands(self) -> Mapping[str, Band]:
        """The bands of the tasks with enough good runs."""
        return self._bands

    def count(self, task: str) -> int:
        """Return the number of good runs of a task."""
        return len(self._runs.get(task, ()))

    def task_of(self, episode_id: str) -> str:
        """Return the task of a good run; empty if the episode is not a good run."""
        for task, runs in self._runs.items():
            if any(run.episode_id == episode_id for run in runs):
                return task
        return ''

    def add(self, task: str, run: GoodRun) -> bool:
        """Count a good run; return False if nothing changed.

        Nothing changes if the detector knows the task, if the episode already is a good run, or if
        enough runs are kept.
        """
        runs = self._runs.get(task, [])
        full = len(runs) >= KEPT_RUNS or (not runs and not self._has_room())
        if not self.is_new(task) or full or self.task_of(run.episode_id):
            return False
        self._set(task, [*runs, run])
        return True

    def remove(self, episode_id: str) -> str:
        """Remove a run; return its task, or an empty text if it was not a good run."""
        task = self.task_of(episode_id)
        if task:
            runs = list(self._runs[task])
            index = [run.episode_id for run in runs].index(episode_id)
            self._taken_out[episode_id] = task, index, runs.pop(index)
            if len(self._taken_out) > KEPT_RUNS:
                del self._taken_out[next(iter(self._taken_out))]
            self._set(task, runs)
        return task

    def put_back(self, episode_id: str) -> str:
        """Restore a removed run at its position; return its task, or an empty text.

        After a restart, the labels of an episode arrive again, and an earlier label may remove the
        run.
        """
        if self.task_of(episode_id) or episode_id not in self._taken_out:
            return ''
        task, index, run = self._taken_out.pop(episode_id)
        runs = list(self._runs.get(task, ()))
        runs.insert(index, run)
        self._set(task, runs)
        return task

    def take_from(self, other: GoodRunRecords) -> None:
        """Add the good runs of other records of the same detector.

        Tasks that the detector now knows, and tasks that already have good runs, are left out.
        """
        for task, runs in other._runs.items():
            if self.is_new(task) and task not in self._runs:
                self._set(task, list(runs))
        self._taken_out = {**other._taken_out, **self._taken_out}

    def _has_room(self) -> bool:
        """Return whether the runs of one more task can be kept; forget an old task if needed."""
        if len(self._runs) < KEPT_TASKS:
            return True
        unfinished = next((task for task in self._runs if task not in self._bands), '')
        if unfinished:
            self._set(unfinished, [])
        return bool(unfinished)

    def _set(self, task: str, runs: list[GoodRun]) -> None:
        before = self._runs.get(task, [])[: self.wanted]
        self.revision += 1
        if runs:
            self._runs[task] = runs
        else:
            self._runs.pop(task, None)
        first = runs[: self.wanted]
        if first == before:
            return
        self._bands.pop(task, None)
        if len(first) == self.wanted:
            self._bands[task] = good_runs_band(self._seen, first, self._band, 'this monitor')

    def state(self) -> list[dict[str, Any]]:
        """Return the good runs as JSON values: one entry for each task."""
        return [
            {
                'task': task,
                'runs': [{'episode': r.episode_id, 'largest': r.largest} for r in runs],
            }
            for task, runs in self._runs.items()
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore what an earlier call of :meth:`state` returned.

        Raises
        ------
        GoodRunsError
            The state has another form, or contains a task that the detector knows.
        """
        for entry in state:
            task = entry['task']
            for run in entry['runs']:
                episode, largest = run['episode'], float(run['largest'])
                valid = isinstance(task, str) and isinstance(episode, str)
                if not (
                    valid and math.isfinite(largest) and self.add(task, GoodRun(episode, largest))
                ):
                    raise GoodRunsError(
                        where='good runs',
                        expected='finite largest scores of different episodes of tasks that the '
                        'detector does not know',
                        found=f'task {task!r:.80}, episode {episode!r:.80}, largest score '
                        f'{largest}',
                    )
