# SPDX-License-Identifier: Apache-2.0
"""All failure detectors.

This subpackage defines all scores, for whole rollouts and for live steps.

base              the base class of detectors
registry          detectors by name, and the functions that fit them
accumulation      sum or running mean of a score over an episode
signal_history    signals of an episode so far, for the linear probe
stepwise          base class of detectors without training
embedding         base class of distances in the feature space
density, unet     base class of density estimates (PyTorch)
networks          the networks of the learned detectors (PyTorch)
learned_streams   live scores of the learned detectors (PyTorch)
together          scores the next steps of several streams together

All other modules contain detectors. :data:`registry.ENTRIES` lists the detectors of each module.
CONTRIBUTING.md has the recipe for a new detector.

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
