# SPDX-License-Identifier: Apache-2.0
"""All failure detectors.

This subpackage is the only definition of the scores, for whole rollouts and for live steps.

base              what a detector is
registry          detectors by name, and the functions that fit them
accumulation      sum or running mean of a score over an episode
signal_history    signals of an episode so far, for the linear probe
stepwise          base class of detectors that learn nothing
embedding         base class of distances in the feature space
density, unet     base class of density estimates (PyTorch)
networks          the networks of the learned detectors (PyTorch)
learned_streams   their live scores, of one step or of many (PyTorch)
together          the next steps of several streams

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
