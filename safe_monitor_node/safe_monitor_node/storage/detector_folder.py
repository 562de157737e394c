# SPDX-License-Identifier: Apache-2.0
"""The detector folder: a fitted detector, its band and where both come from, on disk.

::

    FOLDER/detector.json         method, parameters, feature, band, provenance, checksum
    FOLDER/weights.safetensors   every array, named detector.* and band.*

Loading executes nothing and checks everything: one flipped byte in either file is found. Saving
writes beside the destination and renames, so a folder is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import Detector, DetectorError, make_detector
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError

FORMAT = 'safe_detector'
VERSION = 1
DESCRIPTION = 'detector.json'
WEIGHTS = 'weights.safetensors'

_LARGEST_DESCRIPTION = 64 << 20


class DetectorFolderError(SafeError):
    """A detector folder cannot be read or written; the message names the file."""


def _versions() -> dict[str, str]:
    return {
        'python': platform.python_version(),
        'numpy': np.__version__,
        'torch': torch.__version__,
        'safetensors': safetensors.__version__,
    }


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + '\n'


def sealed(content: Mapping[str, Any]) -> str:
    """Return a description with its own checksum, in the one formatting that reading accepts."""
    digest = hashlib.sha256(_canonical(content).encode()).hexdigest()
    return _canonical({**content, 'sha256': digest})


def is_intact(content: dict[str, Any], text: str) -> bool:
    """Tell whether a text is the sealed form of what was read from it; drops the checksum there."""
    content.pop('sha256', None)
    try:
        return sealed(content) == text
    except (ValueError, RecursionError):  # NaN, or nested too deeply: we wrote neither
        return False


def save_detector(
    folder: str | os.PathLike[str],
    detector: Detector,
    feature: FeatureSpec,
    *,
    band: Band | None = None,
    alpha: float = 0.1,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a fitted detector to a new folder.

    Parameters
    ----------
    folder : path
        Must not exist, unless ``overwrite`` and it is a detector folder.
    alpha : float
        The default false-alarm rate; the band must have it.
    provenance : dict
        JSON values.

    Raises
    ------
    DetectorFolderError
        The folder exists, or the parts do not belong together. Nothing is left half-written.
    """
    folder = Path(folder)
    if folder.exists():
        if not overwrite:
            raise DetectorFolderError(
                f'{folder}: exists already; give another folder, or overwrite it'
            )
        if not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise DetectorFolderError(
                f'{folder}: is not a detector folder, so it will not be overwritten'
            )
    weights, description = _contents(folder, detector, feature, band, alpha, provenance or {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(
        tempfile.mkdtemp(prefix=f'.{folder.name}.', suffix='.partial', dir=folder.parent)
    )
    try:
        new = scratch / 'new'
        new.mkdir()
        (new / WEIGHTS).write_bytes(weights)
        (new / DESCRIPTION).write_text(description, encoding='utf-8')
        _exchange(new, folder, scratch / 'old')
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _contents(
    folder: Path,
    detector: Detector,
    feature: FeatureSpec,
    band: Band | None,
    alpha: float,
    provenance: Mapping[str, Any],
) -> tuple[bytes, str]:
    """Return what goes into the two files, or refuse parts that do not belong together."""
    try:
        state = detector.state()
        if band is not None:
            band.at(alpha)
    except (DetectorError, BandError) as error:
        raise DetectorFolderError(f'{folder}: {error}') from error
    if feature.dim != detector.dim_:
        raise DetectorFolderError(
            f'{folder}: the detector was fitted on {detector.dim_} features, the feature '
            f'specification {feature} says {feature.dim}'
        )
    arrays = {f'detector.{name}': np.ascontiguousarray(a) for name, a in state.items()}
    _check_finite(folder, arrays)
    if band is not None:
        arrays |= {f'band.{name}': np.ascontiguousarray(a) for name, a in band.state().items()}
    weights = save_tensors(arrays)
    content = {
        'format': FORMAT,
        'version': VERSION,
        'detector': detector.name,
        'params': detector.get_params(),
        'feature': feature.to_dict(),
        'alpha': alpha,
        'band': None if band is None else band.meta(),
        'weights_bytes': len(weights),
        'weights_sha256': hashlib.sha256(weights).hexdigest(),
        'software': _versions(),
        'provenance': dict(provenance),
    }
    try:
        return weights, sealed(content)
    except (TypeError, ValueError) as error:
        raise DetectorFolderError(
            f'{folder}: a parameter or the provenance cannot be written as JSON: {error}'
        ) from error


def _check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if name.startswith('detector.') and not np.isfinite(array).all():
            raise DetectorFolderError(f'{path}: array {name!r} holds NaN or infinity; fit again')


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Put ``new`` in the place of ``folder``; if that fails, the old one is back where it was."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise DetectorFolderError(
            f'{folder}: no such folder; expected a detector folder made by `fit`'
        )
    if not path.is_file():
        raise DetectorFolderError(
            f'{path}: missing; expected a detector folder ({DESCRIPTION} and {WEIGHTS}) '
            'made by `fit`'
        )
    if path.stat().st_size > _LARGEST_DESCRIPTION:
        raise DetectorFolderError(
            f'{path}: {path.stat().st_size} bytes is too large for a description'
        )
    try:
        text = path.read_bytes().decode('utf-8')
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DetectorFolderError(
            f'{path}: not readable as JSON ({error}); copy the folder again'
        ) from error
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        found = content.get('format') if isinstance(content, dict) else type(content).__name__
        raise DetectorFolderError(f'{path}: expected format {FORMAT!r}, found {found!r}')
    if content.get('version') != VERSION:
        raise DetectorFolderError(
            f'{path}: expected version {VERSION}, found {content.get("version")!r}; '
            'fit again, or use the release that made it'
        )
    if not is_intact(content, text):
        raise DetectorFolderError(
            f'{path}: the checksum does not match its content; the file was changed or damaged, '
            'copy the folder again or fit again'
        )
    return content


def _read_arrays(folder: Path, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise DetectorFolderError(f'{path}: missing; copy the whole detector folder')
    # The size first: a file of another size is not even read.
    size, expected_size = path.stat().st_size, content.get('weights_bytes')
    if size != expected_size:
        raise DetectorFolderError(
            f'{path}: expected {expected_size} bytes, found {size}; '
            'the file was changed or damaged, copy the folder again or fit again'
        )
    expected_sha256 = str(content.get('weights_sha256'))
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected_sha256:
        raise DetectorFolderError(
            f'{path}: expected sha256 {expected_sha256[:12]}..., found {found[:12]}...; '
            'the file was changed or damaged, copy the folder again or fit again'
        )
    try:
        return load_tensors(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DetectorFolderError(f'{path}: not a safetensors file ({error}); fit again') from error


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def load_detector(folder: str | os.PathLike[str]) -> CalibratedDetector:
    """Read and check a detector folder.

    Raises
    ------
    DetectorFolderError
        Anything is missing, damaged, or does not fit together; the message names the file.
    """
    try:
        return _load(Path(folder))
    except OSError as error:
        raise DetectorFolderError(f'{folder}: cannot be read ({error})') from error


def _load(folder: Path) -> CalibratedDetector:
    content = _read_description(folder)
    arrays = _read_arrays(folder, content)
    path = folder / DESCRIPTION
    _check_finite(folder / WEIGHTS, arrays)
    try:
        feature = FeatureSpec.from_dict(content['feature'])
        detector = make_detector(content['detector'], **content['params'])
        detector.load_state(_part(arrays, 'detector.'), feature.dim)
        band, alpha = None, float(content['alpha'])
        if content.get('band') is not None:
            band = Band.from_state(_part(arrays, 'band.'), content['band'])
            band.at(alpha)
        provenance = dict(content['provenance'])
    except (PoolingError, DetectorError, BandError) as error:
        raise DetectorFolderError(f'{path}: {error}') from error
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DetectorFolderError(
            f'{path}: an entry is missing or of another type: {error!r}'
        ) from error
    known = set() if band is None else {f'band.{name}' for name in band.state()}
    if surplus := sorted(n for n in arrays if n not in known and not n.startswith('detector.')):
        raise DetectorFolderError(
            f'{folder / WEIGHTS}: nothing belongs to the array {surplus[0]!r}; '
            'fit again, or use the release that made it'
        )
    # Reading the arrays has checked that it is that of the file.
    sha256 = str(content['weights_sha256'])
    return CalibratedDetector(detector, feature, band, alpha, provenance, sha256)


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a detector folder says about itself, as JSON values, after checking all of it."""
    loaded = load_detector(folder)
    band = loaded.band
    return {
        'kind': 'detector folder',
        'detector': loaded.detector.name,
        'params': loaded.detector.get_params(),
        'feature': str(loaded.feature),
        'dim': loaded.feature.dim,
        'alpha': loaded.alpha,
        'alphas': [] if band is None else band.alphas.tolist(),
        'band': None if band is None else {'steps': band.length, **band.meta()},
        'provenance': loaded.provenance,
    }


def is_detector_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether ``path`` looks like a detector folder, without checking it."""
    return (Path(path) / DESCRIPTION).is_file()
