# SPDX-License-Identifier: Apache-2.0
"""Good runs: the threshold of a new task from a few successful rollouts of this task.

The largest score of a success differs from task to task. The good runs of the new task show its
typical largest score. The seen tasks show how much the next success differs from the good runs of
its task. Let m be the mean of the largest scores of the k good runs. The threshold is ``mu + B (m -
mu) + q``: mu is the mean of the seen tasks, B is the share of the task in the spread of m (1 from k
= 5 on), and q is the conformal quantile of the same difference within the seen tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safe_monitor_node.bands.adaptive_threshold import conformal_rank
from safe_monitor_node.bands.band import Band, BandShape
from vla_feature_bridge.errors import SafeError

KIND = 'good_runs'
"""Kind of the band of a task that has its threshold from good runs."""

DEFAULT_RUNS = 5
"""Default number of good runs; from this number on, B is 1."""

DRAWS = 15
"""How many times good runs are drawn from each seen task."""

OTHERS = 5
"""Largest number of other successes that each draw is compared with."""

FEWEST_TASKS = 2
"""Number of seen tasks that a threshold needs."""

_SEED = 0

Form = Literal['plain', 'shrunk']

PROMISE = (
    'At most a share alpha of the next successes raises an alarm. This is an average over tasks '
    'and runs that are drawn like the seen tasks and their runs. It is not a promise for this task '
    'alone.'
)


class GoodRunsError(SafeError):
    """A threshold cannot be made from good runs; the message contains what is missing."""


@dataclass(frozen=True)
class GoodRun:
    """A successful rollout of a new task.

    Attributes
    ----------
    episode_id : str
    largest : float
        Its largest score.
    """

    episode_id: str
    largest: float


@dataclass(frozen=True, eq=False)
class Shift:
    """The shift of the threshold of a new task by k good runs.

    Attributes
    ----------
    k : int
        Number of good runs.
    form : str
        'plain' if B is 1, 'shrunk' if B is computed from the spread of the seen tasks.
    mu : float
        Mean over the seen tasks of the mean largest score of the task.
    factor : float
        B, in [0, 1].
    differences : (n,) float64 array
        ``M - mu - B (m - mu)`` of successes of the seen tasks, ascending.
    tasks : int
        Number of seen tasks from which the differences were computed.
    """

    k: int
    form: Form
    mu: float
    factor: float
    differences: NDArray[np.float64]
    tasks: int

    def center(self, mean: float) -> float:
        """Return ``mu + B (m - mu)`` for good runs with the mean largest score m."""
        return self.mu + self.factor * (mean - self.mu)

    def quantile(self, alpha: float) -> float:
        """Return q, the ceil((n + 1)(1 - alpha))-th smallest difference; +inf if n is too small."""
        rank = conformal_rank(self.differences.size, alpha)
        return float(self.differences[rank - 1]) if rank <= self.differences.size else math.inf


@dataclass(frozen=True, eq=False)
class SeenScores:
    """The largest scores of successes of the seen tasks, from which good runs make a threshold.

    Attributes
    ----------
    largest : mapping of str to (n,) float64 array
        Largest score of each success, by task. Each score comes from a detector that was fitted
        without the task, because no detector was fitted with a new task either.
    """

    largest: Mapping[str, NDArray[np.float64]]

    def __post_init__(self) -> None:
        """Sort the tasks and check the scores."""
        tasks = {}
        for task in sorted(self.largest):
            values = np.array(self.largest[task], dtype=np.float64)
            if not task or values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise GoodRunsError(
                    where=f'largest scores of task {task!r}',
                    expected='a named task with finite scores of shape (n,), n >= 1',
                    found=f'shape {values.shape} with {int(np.isfinite(values).sum())} finite '
                    'scores',
                )
            values.setflags(write=False)
            tasks[task] = values
        if len(tasks) < FEWEST_TASKS:
            raise GoodRunsError(
                where='largest scores of the seen tasks',
                expected=f'successes of at least {FEWEST_TASKS} seen tasks with a name',
                found=f'{len(tasks)} such tasks',
                advice='fit the detector on successes of more tasks',
            )
        object.__setattr__(self, 'largest', tasks)

    @property
    def most_runs(self) -> int:
        """The largest k for which a threshold exists; 0 if there is none."""
        counts = sorted((values.size for values in self.largest.values()), reverse=True)
        return counts[FEWEST_TASKS - 1] - 1

    def spread(self) -> tuple[float, float, float]:
        """Return mu, sigma2 and tau2.

        mu is the mean of the task means. sigma2 is the mean over tasks of the variance inside a
        task. tau2 is the variance of the task means without the part that comes from sigma2, at
        least 0.
        """
        values = list(self.largest.values())
        means = np.array([task.mean() for task in values])
        inside = [float(task.var(ddof=1)) for task in values if task.size > 1]
        sigma2 = float(np.mean(inside)) if inside else 0.0
        noise = sigma2 * float(np.mean([1 / task.size for task in values]))
        return float(means.mean()), sigma2, max(0.0, float(means.var(ddof=1)) - noise)

    def shift(self, k: int, form: Form | None = None) -> Shift:
        """Return the shift of the threshold of a task by k good runs.

        From every seen task with more than k successes, k successes are drawn 15 times, with a
        fixed seed. Up to five other successes of the task are compared with them.

        Parameters
        ----------
        k : int
        form : {'plain', 'shrunk'}, optional
            The default is 'plain' from k = 5 on, and 'shrunk' below.

        Raises
        ------
        GoodRunsError
            Fewer than two seen tasks have more than k successes, or k is below 1.
        """
        if not 1 <= k <= self.most_runs:
            counts = ', '.join(str(values.size) for values in self.largest.values())
            raise GoodRunsError(
                where='good runs',
                expected=f'k >= 1 and at least {FEWEST_TASKS} seen tasks with more than {k} '
                'successes',
                found=f'k = {k}, and seen tasks with {counts} successes',
                advice=f'use at most {self.most_runs} good runs'
                if 1 <= self.most_runs < k
                else 'use at least 1 good run, or fit the detector on more successes',
            )
        mu, sigma2, tau2 = self.spread()
        total = tau2 + sigma2 / k
        form = form or ('plain' if k >= DEFAULT_RUNS else 'shrunk')
        factor = 1.0 if form == 'plain' or total == 0.0 else tau2 / total
        generator = np.random.default_rng(_SEED)
        used = [values for values in self.largest.values() if values.size > k]
        parts = []
        for values in used:
            drawn = generator.permuted(np.tile(values, (DRAWS, 1)), axis=1)
            mean = drawn[:, :k].mean(axis=1, keepdims=True)
            others = drawn[:, k : k + OTHERS]
            parts.append((others - mu - factor * (mean - mu)).ravel())
        return Shift(k, form, mu, factor, np.sort(np.concatenate(parts)), len(used))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values for :meth:`from_dict`."""
        return {'largest': {task: values.tolist() for task, values in self.largest.items()}}

    @classmethod
    def from_dict(cls, content: Any) -> SeenScores:
        """Read the values that :meth:`to_dict` wrote.

        Raises
        ------
        GoodRunsError
            The content has another form.
        """
        largest = content.get('largest') if isinstance(content, dict) else None
        if not isinstance(largest, dict):
            raise GoodRunsError(
                where="entry 'good_runs'",
                expected="an object with the entry 'largest'",
                found=f'{content!r:.80}',
            )
        try:
            arrays = {task: np.array(values, dtype=np.float64) for task, values in largest.items()}
        except (TypeError, ValueError) as error:
            raise GoodRunsError(
                where="entry 'good_runs'", expected='lists of numbers', found=str(error)
            ) from error
        return cls(arrays)


def good_runs_band(
    seen: SeenScores, runs: Sequence[GoodRun], like: Band, described: str = ''
) -> Band:
    """Return the band of a new task from its good runs, one threshold for all steps.

    Parameters
    ----------
    seen : SeenScores
    runs : sequence of GoodRun
        The k good runs of the task, all scored by the detector.
    like : Band
        The band of all tasks. The new band has the same alphas and the same length.
    described : str
        Origin of the runs, for people.

    Raises
    ------
    GoodRunsError
        See :meth:`SeenScores.shift`.
    """
    shift = seen.shift(len(runs))
    mean = float(np.mean([run.largest for run in runs]))
    center = shift.center(mean)
    alphas = like.alphas
    rows = np.array([shift.quantile(float(alpha)) for alpha in alphas])
    # A score that is equal to the score which determines q is not above the threshold.
    scale = abs(center) + np.where(np.isfinite(rows), np.abs(rows), 0.0)
    thresholds = center + rows + 8 * np.finfo(np.float64).eps * scale
    source = f' from {described}' if described else ''
    provenance: dict[str, Any] = {
        'promise': PROMISE,
        'calibrated_on': f'{shift.k} good runs of the task{source}, and {shift.differences.size} '
        f'differences between successes of {shift.tasks} seen tasks',
        'k': shift.k,
        'form': shift.form,
        'factor': shift.factor,
        'mu': shift.mu,
        'mean_of_good_runs': mean,
        'seen_tasks': shift.tasks,
        'calibration_rollouts': [run.episode_id for run in runs],
        'largest_scores': [float(run.largest) for run in runs],
        'alphas': alphas.tolist(),
        'max_steps': like.length,
    }
    return Band(
        alphas=alphas,
        upper=np.repeat(thresholds[:, None], like.length, axis=1),
        kind=KIND,
        n_calibration=int(shift.differences.size),
        provenance=provenance,
        shape=BandShape(
            center=np.full(like.length, center),
            width=np.ones((alphas.size, like.length)),
            nonconformity=np.tile(shift.differences, (alphas.size, 1)),
        ),
    )
