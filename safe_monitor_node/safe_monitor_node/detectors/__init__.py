# SPDX-License-Identifier: Apache-2.0
"""All failure detectors, by name.

The only place where a score is defined: batch and stream alike.
"""

from safe_monitor_node.detectors.base import (
    DETECTORS,
    Detector,
    DetectorError,
    StepError,
    Stream,
    fitter_for,
    make_detector,
)
from safe_monitor_node.detectors.controls import ActionNorm, Clock, Constant, Random
from safe_monitor_node.detectors.density import LogpZO, Rnd
from safe_monitor_node.detectors.embedding import (
    CosineKnn,
    EuclideanKnn,
    Mahalanobis,
    PcaKmeans,
)
from safe_monitor_node.detectors.learned import SafeLstm, SafeMlp
from safe_monitor_node.detectors.probe import LinearProbe
from safe_monitor_node.detectors.samples import (
    ActionClusterEntropy,
    ActionGeneralVar,
    ActionGripperVar,
    ActionRotationVar,
    ActionTotalVar,
    ActionTranslationVar,
    Stac,
    StacSingle,
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
    'fitter_for',
    'make_detector',
]
