# SPDX-License-Identifier: Apache-2.0
"""Functions that fit detectors on rollouts, one module for each family of detectors.

data              the rollouts of a training part, stacked and checked
losses            the losses of the learned detectors
learned           SAFE-MLP and SAFE-LSTM
batched           many learned detectors at once
lstm_kernel       the LSTM layer of many detectors at once
precision         number formats of their matrix products
density           RND and logpZO
embedding         distances in the feature space
probe             the linear probe
probe_components  its principal components
probe_regression  its logistic regressions

A fitter is ``fit(detector, rollouts, *, validation=None, progress=None)``; it fits the detector in
place. :data:`FITTERS` is the table of the fitters. The import of this subpackage registers it, so
that a source tree can fit without installation. ``setup.py`` makes an entry point for each fitter,
so that ``Detector.fit`` also finds it if this subpackage has not been imported. Detectors without
training (:mod:`safe_monitor_node.detectors.stepwise`) do not need a fitter. This subpackage imports
only ``safe_monitor_node`` and ``vla_feature_bridge``.
"""

from __future__ import annotations

from safe_monitor_node.detectors.registry import register_fitters

# setup.py reads this table without importing the module: write literals only.
FITTERS: dict[str, str] = {
    'rnd': 'safe_training.fitting.density:fit_density',
    'logpzo': 'safe_training.fitting.density:fit_density',
    'mahalanobis': 'safe_training.fitting.embedding:fit_embedding',
    'euclidean_knn': 'safe_training.fitting.embedding:fit_embedding',
    'cosine_knn': 'safe_training.fitting.embedding:fit_embedding',
    'pca_kmeans': 'safe_training.fitting.embedding:fit_embedding',
    'safe_lstm': 'safe_training.fitting.learned:fit_learned',
    'safe_mlp': 'safe_training.fitting.learned:fit_learned',
    'linear_probe': 'safe_training.fitting.probe:fit_probe',
}
"""The function that fits each detector with training: name -> MODULE:FUNCTION."""

register_fitters(FITTERS)
