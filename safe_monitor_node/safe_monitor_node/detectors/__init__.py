# SPDX-License-Identifier: Apache-2.0
"""All failure detectors, by name. The only place where a score is defined: batch and stream alike.

base              what a detector is
registry          detectors by name, and the functions that fit them
accumulation      running sum or mean of a score over an episode
stepwise          what detectors share that score each step by itself
controls          clock, constant, random, action_norm
signal            one named signal
tokens            probability and entropy of the emitted tokens
samples           spread of sampled action chunks
clustering        clusters of sampled action chunks
consistency       contradictions of consecutive action chunks
probe             the linear probe
embedding         what distances in the feature space share
gaussian, neighbours, clusters   those distances
networks, learned SAFE-MLP and SAFE-LSTM (PyTorch)
unet, density, rnd, logpzo       density estimates (PyTorch)

A detector class is imported when it is first used, so that PyTorch is loaded only where it is
needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from safe_monitor_node.detectors.base import Detector, DetectorError, StepError, Stream
from safe_monitor_node.detectors.registry import CLASSES, DETECTORS, make_detector, register

if TYPE_CHECKING:
    from safe_monitor_node.detectors.clustering import ActionClusterEntropy
    from safe_monitor_node.detectors.clusters import PcaKmeans
    from safe_monitor_node.detectors.consistency import Stac, StacSingle
    from safe_monitor_node.detectors.controls import ActionNorm, Clock, Constant, Random
    from safe_monitor_node.detectors.gaussian import Mahalanobis
    from safe_monitor_node.detectors.learned import SafeLstm, SafeMlp
    from safe_monitor_node.detectors.logpzo import LogpZO
    from safe_monitor_node.detectors.neighbours import CosineKnn, EuclideanKnn
    from safe_monitor_node.detectors.probe import LinearProbe
    from safe_monitor_node.detectors.rnd import Rnd
    from safe_monitor_node.detectors.samples import (
        ActionGeneralVar,
        ActionGripperVar,
        ActionRotationVar,
        ActionTotalVar,
        ActionTranslationVar,
    )
    from safe_monitor_node.detectors.signal import Signal
    from safe_monitor_node.detectors.tokens import (
        TokenAvgEntropy,
        TokenAvgNegLogProb,
        TokenMaxEntropy,
        TokenMaxNegLogProb,
    )

__all__ = [
    'DETECTORS',
    'ActionClusterEntropy',
    'ActionGeneralVar',
    'ActionGripperVar',
    'ActionNorm',
    'ActionRotationVar',
    'ActionTotalVar',
    'ActionTranslationVar',
    'Clock',
    'Constant',
    'CosineKnn',
    'Detector',
    'DetectorError',
    'EuclideanKnn',
    'LinearProbe',
    'LogpZO',
    'Mahalanobis',
    'PcaKmeans',
    'Random',
    'Rnd',
    'SafeLstm',
    'SafeMlp',
    'Signal',
    'Stac',
    'StacSingle',
    'StepError',
    'Stream',
    'TokenAvgEntropy',
    'TokenAvgNegLogProb',
    'TokenMaxEntropy',
    'TokenMaxNegLogProb',
    'make_detector',
    'register',
]

_MODULES = {cls: module for module, cls in CLASSES.values()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__() -> list[str]:
    return sorted(__all__)
