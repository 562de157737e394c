# SPDX-License-Identifier: Apache-2.0
"""Distance to cluster centres after a principal component analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.base import ArraySpec
from safe_monitor_node.detectors.embedding import (
    EmbeddingDetector,
    OutcomeModel,
    centred,
    norm,
)


class _Clusters(OutcomeModel):
    """A principal subspace with centroids.

    The distance of a vector is its distance to the nearest centroid.
    """

    def __init__(self, mean: np.ndarray, components: np.ndarray, centroids: np.ndarray) -> None:
        self.mean = mean
        self.components = components
        self.centroids = centroids

    def distance(self, x: np.ndarray) -> float:
        return float(self._nearest(self.components @ centred(x, self.mean)))

    def distances(self, x: np.ndarray) -> np.ndarray:
        return self._nearest(centred(x, self.mean) @ self.components.T)

    def _nearest(self, projected: np.ndarray) -> np.ndarray:
        return norm(projected[..., None, :].astype(np.float64) - self.centroids).min(axis=-1)

    def state(self) -> dict[str, np.ndarray]:
        return {'mean': self.mean, 'components': self.components, 'centroids': self.centroids}


@dataclass(kw_only=True, eq=False)
class PcaKmeans(EmbeddingDetector):
    """Distance to the nearest centroid (k-means) of successes, minus the distance for failures.

    The steps of each outcome are clustered in their own principal subspace, and a step is compared
    with each outcome in that subspace. The published code computes the centroids of the failures in
    the subspace of the successes, where they have no meaning (departures.md D2).

    Parameters
    ----------
    pca_dim : int
        Principal components of each outcome.
    clusters : int
        Centroids of each outcome.
    reference_compatible : bool
        Use the subspace of the successes for both outcomes, as published; for comparison only.
    seed : int
        Seed of the clustering.
    """

    name = 'pca_kmeans'

    pca_dim: int = 64
    clusters: int = 16
    reference_compatible: bool = False
    seed: int = 0

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_integer('pca_dim', 'clusters')
        self._check_flag('reference_compatible')
        self._check_integer('seed', least=0)

    def array_specs(self, dim: int) -> dict[str, ArraySpec]:
        """Return shape and type of the subspace and the centroids."""
        return {
            'mean': ArraySpec((dim,), np.float64),
            'components': ArraySpec((self.pca_dim, dim), np.float32),
            'centroids': ArraySpec((self.clusters, self.pca_dim), np.float32),
        }

    def model_of(self, arrays: Mapping[str, np.ndarray], outcome: str) -> OutcomeModel:
        """Return the clusters of one outcome."""
        return _Clusters(arrays['mean'], arrays['components'], arrays['centroids'])

    def compared(self) -> tuple[OutcomeModel, OutcomeModel | None]:
        """Return the model of successes and the model of failures.

        The score is the difference of their distances.
        """
        success, failure = self.success_, self.failure_
        if failure is None or not self.reference_compatible:
            return success, failure
        assert isinstance(success, _Clusters)
        assert isinstance(failure, _Clusters)
        return success, _Clusters(success.mean, success.components, failure.centroids)
