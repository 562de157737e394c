# SPDX-License-Identifier: Apache-2.0
"""All detectors by name, and the functions that fit them.

A detector is imported when it is first asked for: a monitor with a detector that needs no PyTorch
does not load it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from safe_monitor_node.detectors.base import Detector, DetectorError

FITTERS = 'safe_monitor_node.fitters'
"""Group of the entry points that fit detectors: NAME = MODULE:FUNCTION."""

Fitter = Callable[..., None]

CLASSES: dict[str, tuple[str, str]] = {
    'action_cluster_entropy': ('clustering', 'ActionClusterEntropy'),
    'action_general_var': ('samples', 'ActionGeneralVar'),
    'action_gripper_var': ('samples', 'ActionGripperVar'),
    'action_norm': ('controls', 'ActionNorm'),
    'action_rotation_var': ('samples', 'ActionRotationVar'),
    'action_total_var': ('samples', 'ActionTotalVar'),
    'action_translation_var': ('samples', 'ActionTranslationVar'),
    'clock': ('controls', 'Clock'),
    'constant': ('controls', 'Constant'),
    'cosine_knn': ('neighbours', 'CosineKnn'),
    'euclidean_knn': ('neighbours', 'EuclideanKnn'),
    'linear_probe': ('probe', 'LinearProbe'),
    'logpzo': ('logpzo', 'LogpZO'),
    'mahalanobis': ('gaussian', 'Mahalanobis'),
    'pca_kmeans': ('clusters', 'PcaKmeans'),
    'random': ('controls', 'Random'),
    'rnd': ('rnd', 'Rnd'),
    'safe_lstm': ('learned', 'SafeLstm'),
    'safe_mlp': ('learned', 'SafeMlp'),
    'signal': ('signal', 'Signal'),
    'stac': ('consistency', 'Stac'),
    'stac_single': ('consistency', 'StacSingle'),
    'token_avg_entropy': ('tokens', 'TokenAvgEntropy'),
    'token_avg_neg_log_prob': ('tokens', 'TokenAvgNegLogProb'),
    'token_max_entropy': ('tokens', 'TokenMaxEntropy'),
    'token_max_neg_log_prob': ('tokens', 'TokenMaxNegLogProb'),
}
"""Module of this package and class of every detector, by its name."""


class DetectorTable(Mapping[str, type[Detector]]):
    """Detector classes by name. Listing the names imports nothing; looking one up imports it."""

    def __init__(self, classes: Mapping[str, tuple[str, str]]) -> None:
        self._classes = dict(classes)
        self._loaded: dict[str, type[Detector]] = {}

    def __getitem__(self, name: str) -> type[Detector]:
        if name not in self._loaded:
            module, cls = self._classes[name]
            module_of = importlib.import_module(f'safe_monitor_node.detectors.{module}')
            self._loaded[name] = getattr(module_of, cls)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._classes, **self._loaded})

    def __len__(self) -> int:
        return len({**self._classes, **self._loaded})

    def add(self, cls: type[Detector]) -> None:
        """Add a detector of another package."""
        self._loaded[cls.name] = cls


DETECTORS = DetectorTable(CLASSES)

D = TypeVar('D', bound=type[Detector])


def register(cls: D) -> D:
    """Class decorator: make a detector of another package known by its name.

    Raises
    ------
    DetectorError
        Another detector has this name.
    """
    if cls.name in DETECTORS:
        raise DetectorError(f'two detectors are named {cls.name!r}')
    DETECTORS.add(cls)
    return cls


def fitter_of(name: str) -> Fitter:
    """Return the function that fits the named detector.

    Raises
    ------
    DetectorError
        No installed package has an entry point for it.
    """
    for entry in entry_points(group=FITTERS, name=name):
        return entry.load()
    raise DetectorError(
        f'no installed package fits the detector {name!r}: expected an entry point {name!r} in the '
        f'group {FITTERS!r}; install the package safe_training (a robot scores only)'
    )


def make_detector(name: str, **params: Any) -> Detector:
    """Construct a detector by its registered name.

    Raises
    ------
    DetectorError
        The name or a parameter is unknown; the message lists what there is.
    """
    if name not in DETECTORS:
        raise DetectorError(f'unknown detector {name!r}; there are: {", ".join(sorted(DETECTORS))}')
    cls = DETECTORS[name]
    known = inspect.signature(cls).parameters
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise DetectorError(
            f'detector {name!r} has no parameter {unknown[0]!r}; it has: '
            f'{", ".join(known) or "none"}'
        )
    return cls(**params)
