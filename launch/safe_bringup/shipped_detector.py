# SPDX-License-Identifier: Apache-2.0
"""Makes the detector folder that ``safe_monitor_node`` ships, from recorded rollouts.

``python -m safe_bringup.shipped_detector test/data/miniature_flow_signals.npz
safe_monitor_node/safe_monitor_node/shipped/signal_probe``

The detector is a linear probe on the history of one action signal, ``chunk_mse``. It reads no
features and no other signal, because both depend on the policy. Its threshold is the same at every
step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.evaluation.fit_and_calibrate import fit, labelled
from safe_training.evaluation.protocol import Protocol, choose_split
from safe_training.recordings.sources import load_rollouts

DETECTOR = 'linear_probe'
PARAMETERS = {'inputs': 'signals', 'signals': ['chunk_mse']}
MAX_STEPS = 1000
"""Inferences of an episode that the band covers."""


def shipped_detector(source: str) -> CalibratedDetector:
    """Return the detector, fitted and calibrated on all rollouts of a source."""
    rollouts = labelled(load_rollouts(source, feature='none'))
    protocol = Protocol(unseen_ratio=0.0, modulation='none', max_steps=MAX_STEPS)
    split = choose_split(rollouts, 0, protocol)
    fitted = fit(DETECTOR, rollouts, split, params=PARAMETERS, protocol=protocol)
    # The provenance names the rollouts by their file, not by a place on the machine that made it.
    provenance = {**fitted.provenance, 'source': Path(source).name}
    # Chunks of any action space: chunk_mse is compared with its size in successes.
    return replace(fitted, provenance=provenance, action_space='')


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit and write; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m safe_bringup.shipped_detector', description='Make the shipped detector.'
    )
    parser.add_argument('source', metavar='ROLLOUTS', help='any source that `convert` reads')
    parser.add_argument('out', type=Path, metavar='FOLDER', help='detector folder to write')
    args = parser.parse_args(arguments)
    made = shipped_detector(args.source).save(args.out, overwrite=True)
    print(f'written to {made}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
