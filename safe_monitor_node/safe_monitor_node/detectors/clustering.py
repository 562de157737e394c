# SPDX-License-Identifier: Apache-2.0
"""Entropy of clusters of sampled action chunks."""

from __future__ import annotations

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.samples import SpreadDetector


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances ``(n, m)`` between rows of (n, d) and (m, d)."""
    # Centred first: what |a|^2 + |b|^2 - 2ab loses to rounding grows with the distance from 0.
    center = a.mean(axis=0)
    a, b = a - center, b - center
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    return np.maximum(squares, 0.0)


def ward_cluster_sizes(points: np.ndarray, threshold: float) -> list[int]:
    """Return the sizes of the Ward clusters of ``points`` (n, d), cut at a linkage distance.

    Clusters are merged while the Ward distance of the two is below ``threshold``, as
    scikit-learn's ``AgglomerativeClustering(linkage='ward', distance_threshold=...)`` does. By the
    chain of nearest neighbours (Müllner, arXiv 1109.2378) with the Lance-Williams update; ties
    are resolved as SciPy resolves them.
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
        while True:
            x = chain[-1]
            y = int(np.argmin(distance[x]))
            # Prefer the previous element among equals: the chain could go round in circles.
            if len(chain) > 1 and distance[x, chain[-2]] <= distance[x, y]:
                y = chain[-2]
                break
            chain.append(y)
        del chain[-2:]
        x, y = min(x, y), max(x, y)
        height = distance[x, y]
        rest = alive.copy()
        rest[[x, y]] = False
        to_x, to_y, others = distance[x, rest], distance[y, rest], size[rest]
        scale = 1.0 / (size[x] + size[y] + others)
        # In this order of operations, so that ties are ties here and there.
        squared = (
            (others + size[x]) * scale * to_x * to_x
            + (others + size[y]) * scale * to_y * to_y
            - others * scale * height * height
        )
        distance[y, rest] = distance[rest, y] = np.sqrt(np.maximum(squared, 0.0))
        distance[x] = distance[:, x] = np.inf
        alive[x] = False
        size[y] += size[x]
        members[y] = members[y] + members[x]
        if height < threshold:
            first = group[members[y][0]]
            joined = {group[i] for i in members[y]}
            group = [first if g in joined else g for g in group]
    return [group.count(g) for g in sorted(set(group))]


class ActionClusterEntropy(SpreadDetector):
    """Entropy [nats] of the sizes of the clusters that the sampled chunks fall into.

    Ward clustering of the flattened chunks, cut at ``threshold``: 0 when all samples agree,
    ``log(samples)`` when no two do.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    threshold : float
        Ward distance from which on clusters stay apart, in action units.
    """

    name = 'action_cluster_entropy'

    def __init__(self, *, accumulate: Accumulate = 'none', threshold: float = 0.05) -> None:
        self.accumulate = accumulate
        self.threshold = threshold

    def check_parameters(self) -> None:
        super().check_parameters()
        if not self.threshold >= 0:
            raise DetectorError(
                f'{self.name}: threshold must not be negative, found {self.threshold!r}'
            )

    def recorded_as(self) -> str:
        return 'entropy_linkage' + f'{self.threshold:g}'.removeprefix('0')

    def spread(self, samples: np.ndarray) -> float:
        sizes = np.array(ward_cluster_sizes(samples.reshape(len(samples), -1), self.threshold))
        share = sizes / sizes.sum()
        return float(np.maximum(-(share * np.log(share)).sum(), 0.0))
