# SPDX-License-Identifier: Apache-2.0
"""Entropy of clusters of sampled action chunks.

A baseline of Gu et al. (arXiv 2506.09937, section 5), after the semantic entropy of Kuhn et al.
(ICLR 2023), in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.samples import SpreadDetector


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances (n, m) between the rows of (n, d) and (m, d)."""
    # Subtract the mean first, because the rounding error of |a|^2 + |b|^2 - 2ab grows with the
    # distance from 0.
    center = a.mean(axis=0)
    a, b = a - center, b - center
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    return np.maximum(squares, 0.0)


def ward_cluster_sizes(points: np.ndarray, threshold: float) -> list[int]:
    """Return the sizes of the Ward clusters of ``points`` (n, d), cut at a linkage distance.

    Two clusters are merged if their Ward distance is below ``threshold``, as scikit-learn's
    ``AgglomerativeClustering(linkage='ward', distance_threshold=...)`` does. The algorithm is the
    chain of nearest neighbours (Müllner, arXiv 1109.2378) with the Lance-Williams update; ties are
    resolved as SciPy resolves them.
    """
    n = len(points)
    distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
    np.fill_diagonal(distance, np.inf)
    size = np.ones(n)
    alive = np.ones(n, dtype=bool)
    members = [[i] for i in range(n)]
    group = list(range(n))
    chain: list[int] = []
    for _ in range(n - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        x, y = _nearest_pair(distance, chain)
        height = distance[x, y]
        rest = alive.copy()
        rest[[x, y]] = False
        merged = _ward_distances(distance, size, (x, y), rest)
        distance[y, rest] = distance[rest, y] = merged
        distance[x] = distance[:, x] = np.inf
        alive[x] = False
        size[y] += size[x]
        members[y] = members[y] + members[x]
        if height < threshold:
            first = group[members[y][0]]
            joined = {group[i] for i in members[y]}
            group = [first if g in joined else g for g in group]
    return [group.count(g) for g in sorted(set(group))]


def _nearest_pair(distance: np.ndarray, chain: list[int]) -> tuple[int, int]:
    """Follow the nearest neighbours until two clusters are nearest neighbours of each other.

    The pair is removed from the chain and returned in ascending order.
    """
    while True:
        x = chain[-1]
        y = int(np.argmin(distance[x]))
        # If distances are equal, choose the previous element. Otherwise the chain could loop.
        if len(chain) > 1 and distance[x, chain[-2]] <= distance[x, y]:
            y = chain[-2]
            del chain[-2:]
            return min(x, y), max(x, y)
        chain.append(y)


def _ward_distances(
    distance: np.ndarray, size: np.ndarray, pair: tuple[int, int], rest: np.ndarray
) -> np.ndarray:
    """Return the Ward distances of a merged pair to the clusters ``rest`` (a mask)."""
    x, y = pair
    to_x, to_y, others = distance[x, rest], distance[y, rest], size[rest]
    scale = 1.0 / (size[x] + size[y] + others)
    # In the order of operations of SciPy, so that equal distances stay equal.
    squared = (
        (others + size[x]) * scale * to_x * to_x
        + (others + size[y]) * scale * to_y * to_y
        - others * scale * distance[x, y] * distance[x, y]
    )
    return np.sqrt(np.maximum(squared, 0.0))


@dataclass(kw_only=True, eq=False)
class ActionClusterEntropy(SpreadDetector):
    """Entropy [nats] of the sizes of the clusters of the sampled chunks.

    The flattened chunks are clustered by Ward's method up to the distance ``threshold``. The
    entropy is 0 if all samples are in one cluster, and ``log(samples)`` if each sample is its own
    cluster.

    Parameters
    ----------
    threshold : float
        Clusters are merged if their Ward distance is below this value, in action units.
    """

    name = 'action_cluster_entropy'

    threshold: float = 0.05

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_number('threshold', least=0)

    def recorded_as(self) -> str:
        """Return the name of the signal in recordings without samples."""
        return 'entropy_linkage' + f'{self.threshold:g}'.removeprefix('0')

    def spread(self, samples: np.ndarray) -> float:
        """Return the entropy of the cluster sizes."""
        sizes = np.array(ward_cluster_sizes(samples.reshape(len(samples), -1), self.threshold))
        share = sizes / sizes.sum()
        return float(np.maximum(-(share * np.log(share)).sum(), 0.0))
