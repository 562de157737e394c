# SPDX-License-Identifier: Apache-2.0
"""The principal components of the linear probe: of all steps, and without the steps of a task."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from weakref import ref

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from vla_feature_bridge.rollout import Rollout

Array = NDArray[np.float64]

# A randomised subspace has some more columns than components, and needs some multiplications.
_MORE_COLUMNS = 10
_SVD_ITERATIONS = 3
_MULTIPLICATIONS = 4
# The decomposition of narrower features is fast. Larger products (more than 512 MB) are not stored.
_NARROW, _MOST_PRODUCTS = 256, 1 << 27
# Smallest spread of a component, relative to the largest spread. Products of float32 are less
# precise than a decomposition of the steps.
_LEAST_SPREAD, _LEAST_SPREAD_OF_PRODUCTS = 1e-4, 1e-3


@dataclass(frozen=True)
class Components:
    """A map from features to principal components of unit variance.

    Attributes
    ----------
    projection : ndarray, shape (k, D)
    offset : ndarray, shape (k,)
        The components of features x are ``projection @ x + offset``.
    values : ndarray, shape (N, k)
        Components of the steps that the map was computed from.
    """

    projection: Array
    offset: Array
    values: Array

    @classmethod
    def none(cls, steps: int, width: int) -> Components:
        """Return no components, for a probe that does not read features."""
        return cls(np.zeros((0, width)), np.zeros(0), np.zeros((steps, 0)))


def principal(flat: NDArray[np.float32], count: int) -> Components:
    """Return the components of standardised steps (N, D); at most ``count``."""
    mean, deviation, standard = _standardised(flat)
    k = min(count, *standard.shape)
    _, singular, axes = randomized_svd(standard, k, n_iter=_SVD_ITERATIONS, random_state=0)
    spread = singular.astype(np.float64) / np.sqrt(len(standard))
    kept = spread > _LEAST_SPREAD * max(float(spread[0]), 1e-4)
    axes = axes[kept].astype(np.float64) / spread[kept][:, None]
    values = (standard @ axes.T.astype(np.float32)).astype(np.float64)
    projection = axes / deviation
    return Components(projection, -projection @ mean, values)


def _standardised(flat: NDArray[np.float32]) -> tuple[Array, Array, NDArray[np.float32]]:
    """Return mean (D,), deviation (D,) and the standardised steps (N, D).

    The returned mean is exactly the subtracted mean in float32, so its rounding causes no error.
    """
    rounded = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    standard = flat - rounded
    rest = standard.mean(axis=0, dtype=np.float64)
    variance = np.einsum('nd,nd->d', standard, standard, dtype=np.float64) / len(flat) - rest**2
    mean = rounded.astype(np.float64)
    deviation = _without_constants(mean, np.sqrt(np.maximum(variance, 0.0)))
    standard *= (1.0 / deviation).astype(np.float32)
    return mean, deviation, standard


def _without_constants(mean: Array, deviation: Array) -> Array:
    """Return the deviations (D,); infinite for constant features, whose weight is then 0."""
    return np.where(deviation < 1e-6 * (np.abs(mean) + 1e-6), np.inf, deviation)


@dataclass(frozen=True)
class TaskSums:
    """Number of steps, mean (D,) and centred products (D, D) of the steps of one task."""

    count: int
    mean: Array
    products: NDArray[np.float32]

    @classmethod
    def of(cls, flat: NDArray[np.float32]) -> TaskSums:
        """Return the sums of the steps (n, D) of a task."""
        rounded = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = flat - rounded
        return cls(len(flat), rounded.astype(np.float64), centred.T @ centred)


class SumsOfTasks:
    """Keeps the sums of the tasks that were used last, because splits share tasks.

    An entry is only used for the rollout objects from which it was computed. It does not keep the
    rollouts in memory.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[tuple[int, ...], tuple[list[ref[Rollout]], TaskSums]] = (
            OrderedDict()
        )

    def of(
        self, rollouts: Sequence[Rollout], steps: Callable[[Sequence[int]], NDArray[np.float32]]
    ) -> TaskSums:
        """Return the sums of the steps of these rollouts.

        The result does not depend on the order of the rollouts, because the steps are summed in the
        order of the episode ids. Each split has another order.

        Parameters
        ----------
        rollouts : sequence of B Rollout
        steps : callable
            Called with an order of the B rollouts, only if the sums are not known; returns the
            steps (n, D) of the rollouts in this order.
        """
        order = sorted(range(len(rollouts)), key=lambda i: rollouts[i].episode_id)
        members = [rollouts[i] for i in order]
        key = tuple(map(id, members))
        known = self._kept.pop(key, None)
        if known is None or any(r() is not o for r, o in zip(known[0], members, strict=True)):
            known = [ref(rollout) for rollout in members], TaskSums.of(steps(order))
        self._kept[key] = known
        while len(self._kept) > 1 and self._bytes() > self._most:
            self._kept.popitem(last=False)
        return known[1]

    def _bytes(self) -> int:
        return sum(sums.products.nbytes for _, sums in self._kept.values())


class TaskMoments:
    """Sums over the steps of each task, to compute the components without one task.

    The components without a task are equal to :func:`principal` for the steps of the other tasks.
    The products of features are summed only once for each task. Therefore, leaving out each task
    once takes much less time than a decomposition for each task.

    Parameters
    ----------
    flat : ndarray of float32, shape (N, D)
        Features of all steps.
    task : ndarray of int, shape (N,)
        Task of each step.
    sums : mapping of task to TaskSums, optional
        Computed from the steps if not given.
    """

    def __init__(
        self,
        flat: NDArray[np.float32],
        task: NDArray[np.int64],
        sums: Mapping[int, TaskSums] | None = None,
    ) -> None:
        numbers = np.unique(task).tolist()
        self._sums = sums or {number: TaskSums.of(flat[task == number]) for number in numbers}
        self._task = task
        self._mean, self._deviation, self._standard = _standardised(flat)
        self._products = self._sums[numbers[0]].products.copy()
        for number in numbers[1:]:
            self._products += self._sums[number].products

    @staticmethod
    def pay(steps: int, width: int, tasks: int, count: int) -> bool:
        """Return whether the sums need fewer operations than a decomposition for each task."""
        columns = count + _MORE_COLUMNS
        passes = 2 * _SVD_ITERATIONS + 2
        of_sums = steps * width + tasks * _MULTIPLICATIONS * columns * width
        if width < _NARROW or tasks * width**2 > _MOST_PRODUCTS:
            return False
        return of_sums < tasks * passes * columns * steps

    def components(self, count: int, without: int | None = None) -> Components:
        """Return the components of all steps, or without the steps of a task; at most ``count``."""
        used = [sums for number, sums in self._sums.items() if number != without]
        steps = sum(sums.count for sums in used)
        share = np.array([sums.count / steps for sums in used])
        means = np.stack([sums.mean for sums in used])
        mean = share @ means
        products = self._products
        if without is not None:
            products = products - self._sums[without].products
        between = np.sqrt(share)[:, None] * (means - mean)
        variance = np.diag(products).astype(np.float64) / steps + (between**2).sum(axis=0)
        deviation = _without_constants(mean, np.sqrt(np.maximum(variance, 0.0)))
        deviation[np.isinf(self._deviation)] = np.inf
        matrix = _Correlation(products, between, deviation, steps)
        axes, spread = matrix.largest_axes(min(count, len(mean), steps))
        projection = axes / spread[:, None] / deviation
        # The steps are standardised with the mean and deviation of all steps.
        rescaled = projection * np.where(np.isinf(self._deviation), 0.0, self._deviation)
        shift = projection @ (self._mean - mean)
        values = (self._standard @ rescaled.T.astype(np.float32)).astype(np.float64) + shift
        if without is not None:
            values = values[self._task != without]
        return Components(projection, -projection @ mean, values)


@dataclass(frozen=True)
class _Correlation:
    """The correlation matrix (D, D) of steps, as a product with other matrices.

    Attributes
    ----------
    products : ndarray of float32, shape (D, D)
        Products inside the tasks.
    between : ndarray, shape (T, D)
        Differences between the means of the tasks and the mean, weighted.
    deviation : ndarray, shape (D,)
    steps : int
    """

    products: NDArray[np.float32]
    between: Array
    deviation: Array
    steps: int

    def times(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the product with a matrix (D, k)."""
        inverse = (1.0 / self.deviation).astype(np.float32)[:, None]
        between = self.between.astype(np.float32)
        scaled = inverse * matrix
        inside = (self.products @ scaled) / np.float32(self.steps)
        return np.asarray(inverse * (inside + between.T @ (between @ scaled)))

    def largest_axes(self, count: int) -> tuple[Array, Array]:
        """Return the axes (k, D) and spreads (k,), the largest first.

        Randomised subspace iteration: Halko, Martinsson and Tropp, "Finding structure with
        randomness" (SIAM Review 53, 2011), algorithm 4.4.
        """
        width = len(self.deviation)
        columns = min(count + _MORE_COLUMNS, width)
        generator = np.random.default_rng(0)
        basis = generator.standard_normal((width, columns), dtype=np.float32)
        for _ in range(_MULTIPLICATIONS):
            basis, _ = np.linalg.qr(self.times(basis))
        small = (basis.T @ self.times(basis)).astype(np.float64)
        values, vectors = np.linalg.eigh((small + small.T) / 2)
        order = np.argsort(values)[::-1][:count]
        spread = np.sqrt(np.maximum(values[order], 0.0))
        kept = spread > _LEAST_SPREAD_OF_PRODUCTS * max(float(spread[0]), 1e-4)
        axes = (basis.astype(np.float64) @ vectors[:, order[kept]]).T
        return axes, spread[kept]
