# SPDX-License-Identifier: Apache-2.0
"""All failure detectors.

This subpackage is the only definition of the scores, for whole rollouts and for live steps.

base              what a detector is
registry          detectors by name, and the functions that fit them
accumulation      sum or running mean of a score over an episode
stepwise          base class of detectors that learn nothing
controls          clock, constant, random, action_norm
signal            one named signal
tokens            probability and entropy of the emitted tokens
samples           variances of sampled action chunks
clustering        clusters of sampled action chunks
consistency       contradictions between consecutive action chunks
probe             the linear probe
embedding         base class of distances in the feature space
gaussian, neighbours, clusters   the distances: Mahalanobis, nearest neighbours, k-means
learned, networks SAFE-MLP and SAFE-LSTM (PyTorch)
density, unet     base class of density estimates (PyTorch)
rnd, logpzo       the density estimates RND and LogpZO (PyTorch)

:data:`DETECTORS` imports a detector on first use, so that PyTorch is loaded only for the detectors
that need it.
"""

from safe_monitor_node.detectors.base import Detector, DetectorError, StepError, Stream
from safe_monitor_node.detectors.registry import DETECTORS, ENTRIES, make_detector, register

__all__ = [
    'DETECTORS',
    'ENTRIES',
    'Detector',
    'DetectorError',
    'StepError',
    'Stream',
    'make_detector',
    'register',
]
