# SPDX-License-Identifier: Apache-2.0
"""Distance to cluster centres after a principal component analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.embedding import (
    ClassModel,
    EmbeddingDetector,
    centred,
    check_positive,
    checked_array,
    norm,
    times,
)

# --- PCA and k-means


class _Clusters(ClassModel):
    """A principal subspace and centroids in it; the distance is that to the nearest centroid."""

    def __init__(self, mean: np.ndarray, components: np.ndarray, centroids: np.ndarray) -> None:
        self.mean = mean
        self.components = components
        self.centroids = centroids

    def distance(self, x: np.ndarray) -> float:
        return float(self._nearest(times(self.components, centred(x, self.mean))))

    def distances(self, x: np.ndarray) -> np.ndarray:
        return self._nearest(centred(x, self.mean) @ self.components.T)

    def _nearest(self, projected: np.ndarray) -> np.ndarray:
        return norm(projected[..., None, :].astype(np.float64) - self.centroids).min(axis=-1)

    def state(self) -> dict[str, np.ndarray]:
        return {
            'mean': self.mean,
            'components': self.components,
            'centroids': self.centroids,
        }


class PcaKmeans(EmbeddingDetector):
    """Distance to the nearest k-means centroid of successful steps, minus that of failed ones.

    Each class is clustered in its own principal subspace, and a step is compared with each in that
    space. The published code looks for the failures' centroids in the successes' subspace, where
    they mean nothing (methods.md D2).

    Parameters
    ----------
    pca_dim : int
        Principal components of each class.
    clusters : int
        Centroids of each class.
    success_only : bool
        Leave out the distance to failures.
    accumulate : {'mean', 'sum', 'none'}
        Running mean over the episode so far, cumulative sum (the paper's), or the step alone.
    reference_compatible : bool
        Mix up the subspaces as published; for comparison only.
    seed : int
        Of the clustering.
    """

    name = 'pca_kmeans'
    arrays = ('mean', 'components', 'centroids')

    def __init__(
        self,
        *,
        pca_dim: int = 64,
        clusters: int = 16,
        success_only: bool = False,
        accumulate: Accumulate = 'mean',
        reference_compatible: bool = False,
        seed: int = 0,
    ) -> None:
        self.pca_dim = pca_dim
        self.clusters = clusters
        self.success_only = success_only
        self.accumulate = accumulate
        self.reference_compatible = reference_compatible
        self.seed = seed

    def check_params(self) -> None:
        super().check_params()
        check_positive(self.name, pca_dim=self.pca_dim, clusters=self.clusters)

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> ClassModel:
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            'mean': ((dim,), np.float64),
            'components': ((self.pca_dim, dim), np.float32),
            'centroids': ((self.clusters, self.pca_dim), np.float32),
        }
        return _Clusters(
            *(
                checked_array(self.name, arrays, f'{outcome}.{name}', shape, dtype)
                for name, (shape, dtype) in shapes.items()
            )
        )

    def compared(self) -> tuple[ClassModel, ClassModel | None]:
        success, failure = self.success_, self.failure_
        if failure is None or not self.reference_compatible:
            return success, failure
        assert isinstance(success, _Clusters)
        assert isinstance(failure, _Clusters)
        return success, _Clusters(success.mean, success.components, failure.centroids)
