# SPDX-License-Identifier: Apache-2.0
"""Fit the embedding distances: covariance factors, banks of neighbours, PCA and k-means."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, blas, cholesky, lapack
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.clusters import PcaKmeans
from safe_monitor_node.detectors.embedding import EmbeddingDetector
from safe_monitor_node.detectors.gaussian import Mahalanobis
from safe_monitor_node.detectors.neighbours import (
    CosineKnn,
    NeighbourDetector,
    fingerprint,
    unit_vectors,
)
from safe_training.fitting.data import require_both_outcomes, require_successes, stack_rollouts
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout


@dataclass(frozen=True)
class OutcomeSteps:
    """All training steps of one outcome.

    Attributes
    ----------
    features : ndarray of float32, shape (N, D)
    rollouts : ndarray of int64, shape (N,)
        Fingerprint of the rollout of each step.
    plural : str
        'successes' or 'failures', for messages.
    """

    features: np.ndarray
    rollouts: np.ndarray
    plural: str


def steps_by_outcome(
    detector: EmbeddingDetector, rollouts: Sequence[Rollout]
) -> dict[str, OutcomeSteps]:
    """Return the steps of successes and, if the detector uses failures, the steps of failures.

    Raises
    ------
    DetectorError
        There are no rollouts, features have different widths, a rollout has no label, or an outcome
        is missing.
    """
    data = stack_rollouts(rollouts)
    (require_successes if detector.success_only else require_both_outcomes)(rollouts, detector.name)
    features = np.split(data.flat, np.cumsum(data.lengths)[:-1])
    outcomes = {'success': (False, 'successes'), 'failure': (True, 'failures')}
    steps = {}
    for outcome in detector.outcomes():
        is_failure, plural = outcomes[outcome]
        members = [f for f, fails in zip(features, data.failed, strict=True) if fails == is_failure]
        steps[outcome] = OutcomeSteps(
            np.concatenate(members),
            np.repeat(np.array([fingerprint(f) for f in members]), [len(f) for f in members]),
            plural,
        )
    return steps


def gaussian(detector: Mahalanobis, steps: OutcomeSteps) -> dict[str, np.ndarray]:
    """Return mean and L with L^T L = (covariance + ridge I)^-1, computed in float64."""
    count, dim = steps.features.shape
    if count < 2:
        raise DetectorError(
            where=detector.name,
            expected=f'at least 2 steps of {steps.plural} for a covariance',
            found=str(count),
            advice=f'add {steps.plural}',
        )
    wide = steps.features.astype(np.float64)
    mean = wide.mean(axis=0)
    wide -= mean
    # Compute only the lower triangle, here and below. This halves the work.
    covariance = blas.dsyrk(1 / (count - 1), wide.T, lower=True)
    covariance[np.diag_indices(dim)] += detector.ridge
    try:
        lower = cholesky(covariance, lower=True, overwrite_a=True)
    except LinAlgError as error:
        raise DetectorError(
            where=detector.name,
            expected=f'a covariance of the {steps.plural} that can be inverted',
            found=f'a singular matrix with ridge={detector.ridge}',
            advice='set ridge to a larger value',
        ) from error
    factor, info = lapack.dtrtri(lower, lower=True, overwrite_c=True)
    assert info == 0, 'a Cholesky factor has a positive diagonal'
    return {'mean': mean, 'factor': np.tril(factor).astype(np.float32)}


def neighbours(detector: NeighbourDetector, steps: OutcomeSteps) -> dict[str, np.ndarray]:
    """Return the centred steps of one outcome, and the rollout of each step."""
    count = len(steps.features)
    longest = int(np.unique(steps.rollouts, return_counts=True)[1].max())
    # Each rollout needs enough neighbours in other rollouts, because its own steps are excluded.
    others = count - longest
    if others < detector.neighbours:
        raise DetectorError(
            where=detector.name,
            expected=f'a value of neighbours of at most {others}',
            found=f'neighbours={detector.neighbours}',
            advice=('set neighbours to a smaller value, or ' if others else '')
            + f'add {steps.plural} (without the longest rollout, the {steps.plural} have {others} '
            'steps together)',
        )
    wide = steps.features.astype(np.float64)
    if isinstance(detector, CosineKnn):
        wide = unit_vectors(wide)
    centre = wide.mean(axis=0)
    wide -= centre
    return {'centre': centre, 'rows': wide.astype(np.float32), 'rollouts': steps.rollouts}


def clusters(detector: PcaKmeans, steps: OutcomeSteps) -> dict[str, np.ndarray]:
    """Return the principal subspace of one outcome and the centroids of its steps in it."""
    count, dim = steps.features.shape
    if detector.pca_dim > min(count, dim):
        raise DetectorError(
            where=detector.name,
            expected=f'a value of pca_dim of at most {min(count, dim)} (the {steps.plural} have '
            f'{count} steps of {dim} features)',
            found=f'pca_dim={detector.pca_dim}',
            advice='set pca_dim to a smaller value',
        )
    if detector.clusters > count:
        raise DetectorError(
            where=detector.name,
            expected=f'a value of clusters of at most {count} (the {steps.plural} have {count} '
            'steps)',
            found=f'clusters={detector.clusters}',
            advice=f'set clusters to a smaller value, or add {steps.plural}',
        )
    wide = steps.features.astype(np.float64)
    pca = PCA(detector.pca_dim, random_state=detector.seed)
    projected = pca.fit_transform(wide)
    with warnings.catch_warnings():
        # If there are fewer distinct steps than clusters, some centroids are equal. This does not
        # change distances.
        warnings.simplefilter('ignore', ConvergenceWarning)
        means = KMeans(
            detector.clusters, init='k-means++', n_init='auto', random_state=detector.seed
        ).fit(projected)
    return {
        'mean': np.asarray(pca.mean_, dtype=np.float64),
        'components': np.asarray(pca.components_, dtype=np.float32),
        'centroids': np.asarray(means.cluster_centers_, dtype=np.float32),
    }


def fit_embedding(
    detector: EmbeddingDetector,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit an embedding distance.

    Parameters
    ----------
    detector : EmbeddingDetector
        Fitted in place.
    rollouts : sequence of Rollout
        Labelled training rollouts with pooled features; both outcomes unless ``success_only``.
    validation : sequence of Rollout, optional
        Not used: nothing is trained by gradients here.
    progress : callable, optional
        Called with (outcomes done, outcomes, note).

    Raises
    ------
    DetectorError
        The rollouts are not suitable for fitting with these parameters.
    """
    detector.check_params()
    by_outcome = steps_by_outcome(detector, rollouts)
    state: dict[str, np.ndarray] = {}
    for done, (outcome, steps) in enumerate(by_outcome.items(), start=1):
        match detector:
            case Mahalanobis():
                arrays = gaussian(detector, steps)
            case NeighbourDetector():
                arrays = neighbours(detector, steps)
            case PcaKmeans():
                arrays = clusters(detector, steps)
            case _:
                raise AssertionError(
                    f'{detector.name}: expected an embedding detector with a fitting function, '
                    'found none'
                )
        state |= {f'{outcome}.{name}': array for name, array in arrays.items()}
        if progress is not None:
            progress(done, len(by_outcome), f'{len(steps.features)} steps of {steps.plural}')
    detector.load_state(state, by_outcome['success'].features.shape[1])
