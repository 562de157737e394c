# SPDX-License-Identifier: Apache-2.0
"""A band with thresholds that are updated by the labels of episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.adaptive_threshold import (
    WINDOW,
    AdaptationError,
    AdaptiveThreshold,
    Observation,
)
from safe_monitor_node.bands.band import Band, BandShape
from safe_monitor_node.bands.threshold import Threshold


class AdaptiveBand:
    """Updates the thresholds of a band: ``upper(t) = center(t) + w width(t)`` with an adaptive w.

    The band of all tasks has an
    :class:`~safe_monitor_node.bands.adaptive_threshold.AdaptiveThreshold`. Each task with its own
    finite band has its own adaptive threshold. An episode updates only the adaptive threshold of
    the band that was used for it. Before the first update, the thresholds are the thresholds of the
    band.

    The warning threshold is the quantile of the same values at level + (warning_alpha - alpha).
    Therefore it is never above the alarm threshold. No false-alarm rate is promised for warnings.

    Parameters
    ----------
    band : Band
        The band with its shape, as `fit` stores both.
    alpha : float
        Target false-alarm rate; the band must contain this alpha.
    adaptation_step : float
        Step size gamma, positive.
    warning_alpha : float
        False-alarm rate of the warnings, at least alpha; a value equal to alpha disables warnings.
    window : int
        Number of observed values that are ranked for each threshold.

    Attributes
    ----------
    revision : int
        Number of updates of the thresholds, including updates that undo an earlier update.

    Raises
    ------
    AdaptationError
        The band has no shape, so that its thresholds cannot be updated.
    """

    def __init__(
        self,
        band: Band,
        alpha: float,
        adaptation_step: float,
        *,
        warning_alpha: float = 0.0,
        window: int = WINDOW,
    ) -> None:
        self.alpha, self.adaptation_step = alpha, adaptation_step
        self.warning_alpha = max(alpha, warning_alpha)
        self.revision = 0
        self._window = window
        self._row = band.row(alpha)
        self._shapes: dict[str, BandShape] = {}
        self._moving: dict[str, AdaptiveThreshold] = {}
        for task in ('', *band.tasks):
            if band.at(alpha, task).task != task:
                continue  # episodes of such tasks use the band of all tasks
            self._add(task, band.tasks[task] if task else band)
        self._learned: dict[str, Band] = {}

    def _add(self, task: str, band: Band) -> None:
        shape = band.shape
        if shape is None:
            raise AdaptationError(
                where=name_of(task),
                expected='center, width and nonconformities, which are needed to update the '
                'thresholds',
                found='only thresholds',
                advice='fit the detector again with this version of the software and '
                '--quantile finite_sample, or set adaptation_step to 0',
            )
        self._shapes[task] = shape
        self._moving[task] = AdaptiveThreshold(
            shape.nonconformity[self._row], self.alpha, self.adaptation_step, window=self._window
        )

    def take_learned(self, bands: Mapping[str, Band]) -> set[str]:
        """Replace the bands of all learned tasks.

        A learned task is a task that is not in the band of the detector folder. If its band is
        already in use, its updates are kept.

        Parameters
        ----------
        bands : mapping of task to Band
            With the alphas and the length of the band.

        Returns
        -------
        set of str
            Tasks whose updates are lost, because their band changed or is no longer used.
        """
        usable = {task: band for task, band in bands.items() if band.at(self.alpha).can_alarm}
        lost = {task for task, band in self._learned.items() if usable.get(task) is not band}
        for task in lost:
            del self._moving[task], self._shapes[task], self._learned[task]
        for task, band in usable.items():
            if task not in self._learned:
                self._add(task, band)
                self._learned[task] = band
        self.revision += len(lost)
        return lost

    def _runs(self, task: str) -> dict[str, Any]:
        """Return the good runs that made the band of a learned task."""
        band = self._learned.get(task)
        return {} if band is None else {'runs': band.provenance['calibration_rollouts']}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have their own adaptive band. The empty name stands for all other tasks."""
        return tuple(self._moving)

    def task_of(self, task: str) -> str:
        """Return the name of the band that is used for episodes of ``task``.

        The name is the task, or '' for the band of all tasks.
        """
        return task if task in self._moving else ''

    def of(self, task: str) -> AdaptiveThreshold:
        """Return the adaptive threshold that is used for episodes of a task."""
        return self._moving[self.task_of(task)]

    def thresholds(self, task: str = '') -> tuple[Threshold, Threshold]:
        """Return the present alarm and warning thresholds of a task; O(steps).

        The thresholds are infinite at all steps if the level needs a value that is larger than all
        observed values.
        """
        task = self.task_of(task)
        moving = self._moving[task]
        alarm = Threshold(self.alpha, self._upper(task, moving.threshold), task)
        if self.warning_alpha == self.alpha:
            return alarm, alarm
        higher = moving.quantile(moving.level + self.warning_alpha - self.alpha)
        return alarm, Threshold(self.warning_alpha, self._upper(task, higher), task)

    def _upper(self, task: str, w: float) -> NDArray[np.float64]:
        shape = self._shapes[task]
        if not math.isfinite(w):
            return np.full(shape.center.size, w)
        scaled = w * shape.width[self._row]
        # A score that is equal to the score which determines w is not above the threshold, as in
        # calibration.
        rounding = 8 * np.finfo(np.float64).eps * (np.abs(shape.center) + np.abs(scaled))
        return shape.center + scaled + rounding

    def nonconformity(self, task: str, scores: ArrayLike) -> float:
        """Return ``max_t (score(t) - center(t)) / width(t)`` over the scored steps of an episode.

        Parameters
        ----------
        task : str
            The task of the episode.
        scores : (t,) array
            Scores from step 0 on; at least one score; all finite.

        Returns
        -------
        float
            +inf if a score is too large to be divided.
        """
        shape = self._shapes[self.task_of(task)]
        values = np.asarray(scores, dtype=np.float64)
        center, width = shape.center[: values.size], shape.width[self._row, : values.size]
        with np.errstate(over='ignore'):
            return float(((values - center) / width).max())

    def observe(self, task: str, nonconformity: float, alarmed: bool) -> Observation:
        """Update the threshold with an episode that is labelled as a success.

        See ``AdaptiveThreshold.observe``.
        """
        self.revision += 1
        return self.of(task).observe(nonconformity, alarmed)

    def undo(self, task: str, observation: Observation) -> None:
        """Undo the update that `observe` returned for an episode of this task."""
        self.revision += 1
        self.of(task).undo(observation)

    def state(self) -> list[dict[str, Any]]:
        """Return the updates so far, as JSON values: one entry for each band."""
        return [
            {
                'task': task,
                'level': moving.level,
                'successes': moving.successes,
                'false_alarms': moving.false_alarms,
                'observed': list(moving.observed),
                **self._runs(task),
            }
            for task, moving in self._moving.items()
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore the values that an earlier call of `state` returned.

        The band must not have been updated before. Updates of a learned task are restored if the
        same good runs have made its band.

        Raises
        ------
        AdaptationError
            The state does not belong to these bands. Do not use this object after this error.
        """
        learned = [entry for entry in state if 'runs' in entry]
        own = [entry for entry in state if 'runs' not in entry]
        found = [entry['task'] for entry in own]
        expected = [task for task in self._moving if task not in self._learned]
        if found != expected:
            raise AdaptationError(
                expected=f'saved thresholds for {", ".join(map(name_of, expected))}',
                found=f'saved thresholds for {", ".join(map(name_of, found)) or "no band"}',
            )
        own += [
            entry for entry in learned if self._runs(entry['task']).get('runs') == entry['runs']
        ]
        for entry in own:
            self._moving[entry['task']].restore(
                entry['level'], entry['successes'], entry['false_alarms'], entry['observed']
            )


def name_of(task: str) -> str:
    """Return the name of a task's band, for a person; empty stands for the band of all tasks."""
    return f'the band of task {task!r}' if task else 'the band of all tasks'
