# SPDX-License-Identifier: Apache-2.0
"""All detectors by name, and the functions that fit them.

A new detector of this package is one entry in :data:`ENTRIES`. Its module is imported on first use,
so that a monitor with a detector that needs no PyTorch does not load it. Detectors of other
packages use :func:`register`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from safe_monitor_node.detectors.base import Detector, DetectorError

FITTERS = 'safe_monitor_node.fitters'
"""Group of the entry points that fit detectors: NAME = MODULE:FUNCTION."""

Fitter = Callable[..., None]


class NoFitterError(DetectorError):
    """No installed package fits this detector. The installation is incomplete."""


_TORCH_MODULES = frozenset({'learned', 'logpzo', 'rnd'})


@dataclass(frozen=True)
class DetectorEntry:
    """A detector in the registry.

    Attributes
    ----------
    module, cls : str
        Module of this package, and class in it.
    title : str
        Name in tables.
    group : str
        Group of rows in tables, as in Table 1 of the paper.
    """

    module: str
    cls: str
    title: str
    group: str

    @property
    def uses_torch(self) -> bool:
        """Whether the module imports PyTorch."""
        return self.module in _TORCH_MODULES


_TOKENS = 'Token uncertainty'
_EMBEDDING = 'Embedding distribution'
_SAMPLES = 'Sample consistency'
_CONSISTENCY = 'Action consistency'
_SAFE = 'SAFE'
_OURS = 'Ours'
_CONTROLS = 'Controls'
OTHERS = 'Others'
"""Group of detectors that other packages register."""

ENTRIES: dict[str, DetectorEntry] = {
    name: DetectorEntry(*entry)
    for name, entry in {
        'token_max_neg_log_prob': ('tokens', 'TokenMaxNegLogProb', 'Max prob.', _TOKENS),
        'token_avg_neg_log_prob': ('tokens', 'TokenAvgNegLogProb', 'Avg prob.', _TOKENS),
        'token_max_entropy': ('tokens', 'TokenMaxEntropy', 'Max entropy', _TOKENS),
        'token_avg_entropy': ('tokens', 'TokenAvgEntropy', 'Avg entropy', _TOKENS),
        'mahalanobis': ('gaussian', 'Mahalanobis', 'Mahalanobis dist.', _EMBEDDING),
        'euclidean_knn': ('neighbours', 'EuclideanKnn', 'Euclidean k-NN', _EMBEDDING),
        'cosine_knn': ('neighbours', 'CosineKnn', 'Cosine k-NN', _EMBEDDING),
        'pca_kmeans': ('clusters', 'PcaKmeans', 'PCA-KMeans', _EMBEDDING),
        'rnd': ('rnd', 'Rnd', 'RND', _EMBEDDING),
        'logpzo': ('logpzo', 'LogpZO', 'LogpZO', _EMBEDDING),
        'action_total_var': ('samples', 'ActionTotalVar', 'Action total var.', _SAMPLES),
        'action_general_var': ('samples', 'ActionGeneralVar', 'General var.', _SAMPLES),
        'action_translation_var': ('samples', 'ActionTranslationVar', 'Trans. var.', _SAMPLES),
        'action_rotation_var': ('samples', 'ActionRotationVar', 'Rot. var.', _SAMPLES),
        'action_gripper_var': ('samples', 'ActionGripperVar', 'Gripper var.', _SAMPLES),
        'action_cluster_entropy': (
            'clustering',
            'ActionClusterEntropy',
            'Cluster entropy',
            _SAMPLES,
        ),
        'stac': ('consistency', 'Stac', 'STAC', _CONSISTENCY),
        'stac_single': ('consistency', 'StacSingle', 'STAC-Single', _CONSISTENCY),
        'safe_lstm': ('learned', 'SafeLstm', 'SAFE-LSTM', _SAFE),
        'safe_mlp': ('learned', 'SafeMlp', 'SAFE-MLP', _SAFE),
        'linear_probe': ('probe', 'LinearProbe', 'Linear probe', _OURS),
        'signal': ('signal', 'Signal', 'Action signal', _OURS),
        'clock': ('controls', 'Clock', 'Clock', _CONTROLS),
        'action_norm': ('controls', 'ActionNorm', 'Action norm', _CONTROLS),
        'random': ('controls', 'Random', 'Random', _CONTROLS),
        'constant': ('controls', 'Constant', 'Constant', _CONTROLS),
    }.items()
}
"""Every detector of this package by its name, in the order of the rows of tables."""


class DetectorTable(Mapping[str, type[Detector]]):
    """Detector classes by name.

    Listing the names imports nothing. Getting a class imports its module.
    """

    def __init__(self, entries: Mapping[str, DetectorEntry]) -> None:
        self._entries = dict(entries)
        self._loaded: dict[str, type[Detector]] = {}

    def __getitem__(self, name: str) -> type[Detector]:
        if name not in self._loaded:
            entry = self._entries[name]
            module = importlib.import_module(f'safe_monitor_node.detectors.{entry.module}')
            self._loaded[name] = getattr(module, entry.cls)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._loaded})

    def __len__(self) -> int:
        return len({**self._entries, **self._loaded})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._loaded

    def add(self, cls: type[Detector]) -> None:
        """Add a detector of another package."""
        self._loaded[cls.name] = cls


DETECTORS = DetectorTable(ENTRIES)
"""Every registered detector class by its name."""

D = TypeVar('D', bound=type[Detector])


def register(cls: D) -> D:
    """Register a detector of another package by its name; a class decorator.

    Raises
    ------
    DetectorError
        Another detector has this name.
    """
    if cls.name in DETECTORS:
        raise DetectorError(
            where=f'detector {cls.name!r}',
            expected='a name that no other detector has',
            found='another detector with this name',
            advice='choose another name',
        )
    DETECTORS.add(cls)
    return cls


_REGISTERED: dict[str, EntryPoint] = {}


def register_fitters(functions: Mapping[str, str]) -> None:
    """Register fitters by the names of their detectors, without an installed entry point.

    Parameters
    ----------
    functions : mapping of detector to MODULE:FUNCTION
        Each function is imported on first use.
    """
    for name, function in functions.items():
        _REGISTERED[name] = EntryPoint(name, function, FITTERS)


def fitter_of(name: str) -> Fitter:
    """Return the function that fits the named detector.

    Raises
    ------
    NoFitterError
        No fitter is registered for this detector, and no installed package has an entry point.
    """
    if name in _REGISTERED:
        return _REGISTERED[name].load()
    for entry in _installed_fitters():
        if entry.name == name:
            return entry.load()
    raise NoFitterError(
        where=f'detector {name!r}',
        expected=f'an installed package with an entry point {name!r} in the group {FITTERS!r}',
        found='no such package',
        advice='install the package safe_training, which fits detectors; if safe_training is '
        'installed, build the workspace again, or import safe_training.fitting before the fit',
    )


@cache
def _installed_fitters() -> tuple[EntryPoint, ...]:
    """Return the entry points of all fitters. The search of all installed packages is slow."""
    return tuple(entry_points(group=FITTERS))


def make_detector(name: str, **params: Any) -> Detector:
    """Construct a detector by its registered name.

    Raises
    ------
    DetectorError
        The name or a parameter is unknown; the message lists the known names.
    """
    if name not in DETECTORS:
        raise DetectorError(
            where='detector',
            expected='a known name',
            found=repr(name),
            advice=f'choose one of: {", ".join(sorted(DETECTORS))}',
        )
    cls = DETECTORS[name]
    known = inspect.signature(cls).parameters
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise DetectorError(
            where=f'detector {name!r}',
            expected='a parameter of this detector',
            found=repr(unknown[0]),
            advice=f'choose one of: {", ".join(known)}'
            if known
            else 'this detector has no parameters',
        )
    return cls(**params)
