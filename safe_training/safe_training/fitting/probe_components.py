# SPDX-License-Identifier: Apache-2.0
"""The principal components of the linear probe: of all steps, and without the steps of a task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

Array = NDArray[np.float64]

# Randomised subspaces have a few columns more than components, and a few multiplications.
_MORE_COLUMNS = 10
_SVD_ITERATIONS = 3
_MULTIPLICATIONS = 4
# Narrower features are decomposed in no time. More products than this (512 MB) are not stored.
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
    mean = flat.mean(axis=0, dtype=np.float64)
    deviation = _without_constants(mean, flat.std(axis=0, dtype=np.float64))
    standard = ((flat - mean) / deviation).astype(np.float32)
    k = min(count, *standard.shape)
    _, singular, axes = randomized_svd(standard, k, n_iter=_SVD_ITERATIONS, random_state=0)
    spread = singular.astype(np.float64) / np.sqrt(len(standard))
    kept = spread > _LEAST_SPREAD * max(float(spread[0]), 1e-4)
    axes = axes[kept].astype(np.float64) / spread[kept][:, None]
    values = (standard @ axes.T.astype(np.float32)).astype(np.float64)
    projection = axes / deviation
    return Components(projection, -projection @ mean, values)


def _without_constants(mean: Array, deviation: Array) -> Array:
    """Return the deviations (D,); infinite for constant features, whose weight is then 0."""
    return np.where(deviation < 1e-6 * (np.abs(mean) + 1e-6), np.inf, deviation)


class TaskMoments:
    """Sums over the steps of each task, which give the components without any one task.

    The components without a task are those of :func:`principal` for the steps of the other tasks.
    The products of features are summed once for each task. Therefore leaving out every task in turn
    takes a fraction of the time of as many decompositions.

    Parameters
    ----------
    flat : ndarray of float32, shape (N, D)
        Features of all steps.
    task : ndarray of int, shape (N,)
        Task of each step.
    """

    def __init__(self, flat: NDArray[np.float32], task: NDArray[np.int64]) -> None:
        self._mean = flat.mean(axis=0, dtype=np.float64)
        deviation = _without_constants(self._mean, flat.std(axis=0, dtype=np.float64))
        self._used = np.isfinite(deviation)
        self._deviation = np.where(self._used, deviation, 1.0)
        # Standardised with all steps: the subtractions below then lose no precision.
        self.standard = ((flat - self._mean) / deviation).astype(np.float32)
        self._task = task
        self._sums: dict[int, Array] = {}
        self._products: dict[int, NDArray[np.float32]] = {}
        for number in np.unique(task):
            steps = self.standard[task == number]
            self._sums[int(number)] = steps.sum(axis=0, dtype=np.float64)
            self._products[int(number)] = steps.T @ steps
        self._sum = np.sum(list(self._sums.values()), axis=0)
        self._product = np.sum(list(self._products.values()), axis=0)

    @staticmethod
    def pay(steps: int, width: int, tasks: int, count: int) -> bool:
        """Return whether the sums cost fewer operations than a decomposition for each task."""
        columns = count + _MORE_COLUMNS
        passes = 2 * _SVD_ITERATIONS + 2
        of_sums = steps * width + tasks * _MULTIPLICATIONS * columns * width
        if width < _NARROW or tasks * width**2 > _MOST_PRODUCTS:
            return False
        return of_sums < tasks * passes * columns * steps

    def without(self, number: int, count: int) -> Components:
        """Return the components of the steps of all other tasks; at most ``count``."""
        others = self._task != number
        steps = int(others.sum())
        mean = (self._sum - self._sums[number]) / steps
        product = (self._product - self._products[number]) / np.float32(steps)
        variance = np.maximum(np.diag(product).astype(np.float64) - mean**2, 0.0)
        raw_mean = self._mean + mean * self._deviation
        raw_deviation = np.sqrt(variance) * self._deviation
        scale = _without_constants(raw_mean, raw_deviation) / self._deviation
        scale[~self._used] = np.inf
        axes, spread = _largest_axes(product, mean, scale, min(count, len(mean), steps))
        axes = axes / spread[:, None] / scale
        values = self.standard[others] @ axes.T.astype(np.float32) - axes @ mean
        projection = axes / self._deviation
        return Components(projection, -projection @ raw_mean, np.asarray(values, dtype=np.float64))


def _largest_axes(
    product: NDArray[np.float32], mean: Array, scale: Array, count: int
) -> tuple[Array, Array]:
    """Return the axes (k, D) and spreads (k,) of the correlation matrix, the largest first.

    Randomised subspace iteration: Halko, Martinsson and Tropp, "Finding structure with randomness"
    (SIAM Review 53, 2011), algorithm 4.4.
    """
    inverse, centre = (1.0 / scale).astype(np.float32), (mean / scale).astype(np.float32)

    def correlation(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled = product @ (inverse[:, None] * matrix)
        return np.asarray(inverse[:, None] * scaled - centre[:, None] * (centre @ matrix))

    columns = min(count + _MORE_COLUMNS, len(mean))
    start = np.random.default_rng(0).standard_normal((len(mean), columns), dtype=np.float32)
    basis = start
    for _ in range(_MULTIPLICATIONS):
        basis, _ = np.linalg.qr(correlation(basis))
    small = (basis.T @ correlation(basis)).astype(np.float64)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    order = np.argsort(values)[::-1][:count]
    spread = np.sqrt(np.maximum(values[order], 0.0))
    kept = spread > _LEAST_SPREAD_OF_PRODUCTS * max(float(spread[0]), 1e-4)
    axes = (basis.astype(np.float64) @ vectors[:, order[kept]]).T
    return axes, spread[kept]
