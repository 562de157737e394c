# SPDX-License-Identifier: Apache-2.0
"""The detector folder: a fitted detector, its band and the origin of both, on disk.

::

    FOLDER/detector.json         method, parameters, feature, action space, band, probability map,
                                 origin, checksum
    FOLDER/weights.safetensors   all arrays, named detector.* and band.*

Reading a folder executes no code and checks all data: a changed byte in one of the two files is
detected. A folder is written completely or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_runs import KIND as GOOD_RUNS
from safe_monitor_node.bands.good_runs import GoodRunsError, SeenScores
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import DetectorError, make_detector
from safe_monitor_node.storage.checksum import FileFormat, read_with_checksum, with_checksum
from safe_monitor_node.storage.shipped import SHIPPED, located
from vla_feature_bridge.atomic import replaced_folder
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError

DESCRIPTION = 'detector.json'
WEIGHTS = 'weights.safetensors'

_FIT_AGAIN = 'fit the detector again'
_MADE_BY_FIT = (
    'give a detector folder made by: python -m safe_training fit; or the name of a shipped '
    f'detector: {", ".join(SHIPPED)}'
)


class DetectorFolderError(SafeError):
    """A detector folder cannot be read or written; the message contains the name of the file."""


FORMAT = FileFormat(
    name='safe_detector',
    version=1,
    error=DetectorFolderError,
    repair='copy the detector folder again, or fit the detector again',
    renew=_FIT_AGAIN,
    other_format=_MADE_BY_FIT,
)
_CHANGED = f'the file was changed or damaged: {FORMAT.repair}'


def save_detector(
    folder: str | os.PathLike[str], calibrated: CalibratedDetector, *, overwrite: bool = False
) -> Path:
    """Write a calibrated detector to a folder and return its path.

    Parameters
    ----------
    folder : path
        Must not exist, unless ``overwrite`` and it is empty or a detector folder.
    calibrated : CalibratedDetector
        Its band must have its alpha; its provenance must be JSON values.

    Raises
    ------
    DetectorFolderError
        The folder exists, or detector, band and features do not match. Nothing is written in this
        case.
    OSError
        The folder cannot be written; an existing one is unchanged.
    """
    folder = Path(folder)
    if folder.exists():
        if not overwrite:
            raise DetectorFolderError(
                where=str(folder),
                expected='a path that does not exist',
                found='a file or folder',
                advice='choose another path, or overwrite the existing detector folder '
                '(--overwrite)',
            )
        if not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise DetectorFolderError(
                where=str(folder),
                expected='a detector folder to overwrite',
                found='a file or folder that is not a detector folder',
                advice='choose another path, or remove the file or folder yourself',
            )
    weights, description = _contents(folder, calibrated)
    with replaced_folder(folder, overwrite=overwrite) as new:
        (new / WEIGHTS).write_bytes(weights)
        (new / DESCRIPTION).write_text(description, encoding='utf-8')
    return folder


def _contents(folder: Path, calibrated: CalibratedDetector) -> tuple[bytes, str]:
    """Return the contents of the two files; refuse parts that do not fit together."""
    detector, feature, band = calibrated.detector, calibrated.feature, calibrated.band
    try:
        state = detector.state()
        band.at(calibrated.alpha)
    except (DetectorError, BandError) as error:
        raise DetectorFolderError(f'{folder}: {error}') from error
    if feature.dim != detector.dim_:
        raise DetectorFolderError(
            where=str(folder),
            expected=f'a detector that was fitted on {feature.dim} features, the width of '
            f'{str(feature)!r}',
            found=f'a detector that was fitted on {detector.dim_} features',
            advice=_FIT_AGAIN,
        )
    arrays = {f'detector.{name}': np.ascontiguousarray(a) for name, a in state.items()}
    _check_finite(folder, arrays)
    arrays |= {f'band.{name}': np.ascontiguousarray(a) for name, a in band.state().items()}
    weights = save_tensors(arrays)
    content = {
        'format': FORMAT.name,
        'version': FORMAT.version,
        'detector': detector.name,
        'params': detector.get_params(),
        'feature': feature.to_dict(),
        'action_space': calibrated.action_space,
        'alpha': calibrated.alpha,
        'band': band.meta(),
        'weights_bytes': len(weights),
        'weights_sha256': hashlib.sha256(weights).hexdigest(),
        'software': _versions(),
        'provenance': dict(calibrated.provenance),
    }
    if calibrated.probability is not None:
        content['probability'] = calibrated.probability.to_dict()
    if calibrated.seen_scores is not None:
        content['good_runs'] = calibrated.seen_scores.to_dict()
    try:
        return weights, with_checksum(content)
    except (TypeError, ValueError) as error:
        raise DetectorFolderError(
            where=str(folder),
            expected='parameters and a provenance of JSON values',
            found=f'another value ({error})',
        ) from error


def _versions() -> dict[str, str]:
    versions = {
        'python': platform.python_version(),
        'numpy': np.__version__,
        'safetensors': safetensors.__version__,
    }
    with suppress(PackageNotFoundError):
        # Importing torch would take a second, and a detector in NumPy does not need it.
        versions['torch'] = version('torch')
    return versions


def _check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if name.startswith('detector.') and not np.isfinite(array).all():
            raise DetectorFolderError(
                where=f'{path}: array {name!r}',
                expected='finite numbers',
                found='NaN or infinity',
                advice=_FIT_AGAIN,
            )


def load_detector(folder: str | os.PathLike[str]) -> CalibratedDetector:
    """Return the calibrated detector of a folder, after checking the whole folder.

    Parameters
    ----------
    folder : path
        A detector folder, or the name of a shipped detector: see ``storage.shipped``.

    Raises
    ------
    DetectorFolderError
        A file or entry is missing or damaged, detector, band and features do not match, or the
        folder contains no band. The message contains the name of the file.
    """
    try:
        return _load(located(folder))
    except OSError as error:
        raise DetectorFolderError(
            where=str(folder),
            expected='a detector folder',
            found=f'a file that cannot be read ({error})',
            advice='check the permissions of the folder, or copy the detector folder again',
        ) from error


def _load(folder: Path) -> CalibratedDetector:
    content = _read_description(folder)
    arrays = _read_arrays(folder, content)
    path = folder / DESCRIPTION
    _check_finite(folder / WEIGHTS, arrays)
    if content.get('band') is None:
        raise DetectorFolderError(
            where=str(path),
            expected='a band',
            found='none',
            advice='fit the detector again with: python -m safe_training fit, which also '
            'calibrates a band',
        )
    try:
        feature = FeatureSpec.from_dict(content['feature'])
        detector = make_detector(content['detector'], **content['params'])
        detector.load_state(_part(arrays, 'detector.'), feature.dim)
        alpha = float(content['alpha'])
        band = Band.from_state(_part(arrays, 'band.'), content['band'])
        band.at(alpha)
        provenance = dict(content['provenance'])
        # Folders of 0.1 do not have the entry, and a fit with few failures makes no map.
        given = content.get('probability')
        probability = None if given is None else ProbabilityMap.from_dict(given)
        action_space = content.get('action_space', '')  # Folders of 0.1 do not have the entry.
        if not isinstance(action_space, str):
            raise DetectorError(
                where="entry 'action_space'", expected='a text', found=f'{action_space!r:.80}'
            )
        # Folders of 0.1, and folders with successes of one task only, do not have the entry.
        stored = content.get('good_runs')
        seen_scores = None if stored is None else SeenScores.from_dict(stored)
    except (PoolingError, DetectorError, BandError, GoodRunsError) as error:
        raise DetectorFolderError(f'{path}: {error}') from error
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DetectorFolderError(
            where=str(path),
            expected='the entries of a detector description',
            found=f'an entry that is missing or has the wrong type or value ({error!r})',
            advice=FORMAT.repair,
        ) from error
    _check_surplus(folder, arrays, band)
    sha256 = str(content['weights_sha256'])
    return CalibratedDetector(
        detector,
        feature,
        band,
        alpha,
        provenance,
        sha256,
        action_space,
        probability,
        seen_scores,
    )


def _check_surplus(folder: Path, arrays: Mapping[str, np.ndarray], band: Band) -> None:
    known = {f'band.{name}' for name in band.state()}
    if surplus := sorted(n for n in arrays if n not in known and not n.startswith('detector.')):
        raise DetectorFolderError(
            where=str(folder / WEIGHTS),
            expected='only arrays of the detector and its band',
            found=f'the unknown array {surplus[0]!r}',
            advice='fit the detector again, or use the version of the software that wrote the '
            'folder',
        )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise DetectorFolderError(
            where=str(folder),
            expected='a detector folder',
            found='no such folder',
            advice=_MADE_BY_FIT,
        )
    if not path.is_file():
        raise DetectorFolderError(
            where=str(path),
            expected=f'the description of a detector folder (files {DESCRIPTION} and {WEIGHTS})',
            found='no such file',
            advice=_MADE_BY_FIT,
        )
    return read_with_checksum(path, FORMAT)


def _read_arrays(folder: Path, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise DetectorFolderError(
            where=str(path),
            expected='the weights of the detector',
            found='no such file',
            advice=f'copy the complete detector folder (files {DESCRIPTION} and {WEIGHTS})',
        )
    # Check the size first: a file of the wrong size is not read.
    size, expected_size = path.stat().st_size, content.get('weights_bytes')
    if size != expected_size:
        raise DetectorFolderError(
            where=str(path),
            expected=f'{expected_size} bytes, as {DESCRIPTION} says',
            found=f'{size} bytes',
            advice=_CHANGED,
        )
    expected_sha256 = str(content.get('weights_sha256'))
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected_sha256:
        raise DetectorFolderError(
            where=str(path),
            expected=f'the sha256 {expected_sha256[:12]}..., as {DESCRIPTION} says',
            found=f'the sha256 {found[:12]}...',
            advice=_CHANGED,
        )
    try:
        return load_tensors(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DetectorFolderError(
            where=str(path),
            expected='a safetensors file',
            found=f'a file that cannot be read as safetensors ({error})',
            advice=_FIT_AGAIN,
        ) from error


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a detector folder as JSON values, after checking the whole folder."""
    calibrated = load_detector(folder)
    band, probability = calibrated.band, calibrated.probability
    return {
        'kind': 'detector folder',
        'detector': calibrated.detector.name,
        'params': calibrated.detector.get_params(),
        'feature': str(calibrated.feature),
        'dim': calibrated.feature.dim,
        'action_space': calibrated.action_space,
        'alpha': calibrated.alpha,
        'alphas': band.alphas.tolist(),
        'band': {'steps': band.length, **band.meta()},
        **({} if probability is None else {'probability': _described(probability)}),
        'provenance': calibrated.provenance,
        **_describe_good_runs(calibrated),
    }


def _describe_good_runs(calibrated: CalibratedDetector) -> dict[str, Any]:
    """Return the data for good runs of new tasks, and the thresholds from good runs.

    Empty if the folder has no scores for good runs.
    """
    seen = calibrated.seen_scores
    if seen is None:
        return {}
    tasks = {
        task: {
            'threshold': _finite(band.at(calibrated.alpha).at(0)),
            'k': band.provenance.get('k'),
            'promise': band.provenance.get('promise'),
        }
        for task, band in calibrated.band.tasks.items()
        if band.kind == GOOD_RUNS
    }
    return {
        'good_runs': {
            'seen_tasks': {task: values.size for task, values in seen.largest.items()},
            'largest_k': seen.most_runs,
            'tasks': tasks,
        }
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _described(probability: ProbabilityMap) -> dict[str, Any]:
    names = ('described', 'rollouts', 'failures', 'median_steps')
    return {name: getattr(probability, name) for name in names}


def is_detector_folder(path: str | os.PathLike[str]) -> bool:
    """Return True if ``path`` looks like a detector folder. The content is not checked."""
    return (located(path) / DESCRIPTION).is_file()
