# SPDX-License-Identifier: Apache-2.0
"""Builds failure detectors offline: reads recordings, fits, calibrates and evaluates.

The Python API, loaded on first use::

    load_rollouts   recordings of any known format -> Rollouts
    labelled        the rollouts that have a label
    choose_split    assigns rollouts to training, calibration and test
    fit             a fitted CalibratedDetector with its band
    add_good_runs   a threshold for a new task from a few successful rollouts
    judge           scores, alarms and tables of a calibrated detector on given rollouts
    evaluate        many detectors on many splits
    Protocol        how rollouts are split and bands calibrated
    Split           a split, from ``choose_split``

Subpackages. Each subpackage imports only subpackages that are listed above it::

    recordings    reads files of other projects and returns rollouts
    fitting       rollouts -> fitted detector
    calibration   scores of successes -> band
    metrics       scores and labels -> numbers; does not depend on detectors
    evaluation    splits rollouts; fits, calibrates and evaluates detectors
    sweep         many configurations; continues after an interruption; stores results on disk
    reporting     numbers -> tables, figures, a page, videos
    api           the functions above that need two subpackages
    cli           the command line, one module for each verb; nothing imports it

This package imports ``safe_monitor_node`` and ``vla_feature_bridge``. These packages do not import
this package. It does not use ROS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_training.api import judge
    from safe_training.evaluation.evaluate import evaluate
    from safe_training.evaluation.fit_and_calibrate import fit, labelled
    from safe_training.evaluation.good_runs import add_good_runs
    from safe_training.evaluation.protocol import Protocol, choose_split
    from safe_training.evaluation.splits import Split
    from safe_training.recordings.sources import load_rollouts

_MODULES = {
    'Protocol': 'evaluation.protocol',
    'Split': 'evaluation.splits',
    'add_good_runs': 'evaluation.good_runs',
    'choose_split': 'evaluation.protocol',
    'evaluate': 'evaluation.evaluate',
    'fit': 'evaluation.fit_and_calibrate',
    'judge': 'api',
    'labelled': 'evaluation.fit_and_calibrate',
    'load_rollouts': 'recordings.sources',
}

__all__ = [
    'Protocol',
    'Split',
    'add_good_runs',
    'choose_split',
    'evaluate',
    'fit',
    'judge',
    'labelled',
    'load_rollouts',
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
