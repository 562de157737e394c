# SPDX-License-Identifier: Apache-2.0
"""The arrays of a rollout set on disk: safetensors files, read without a copy if possible."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vla_feature_bridge.atomic import names_file
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.layout import ARRAYS, COPY_AGAIN, INDEX, RolloutSetError
from vla_feature_bridge.rollout_set.mapping import file_bytes
from vla_feature_bridge.step import STEP_FIELDS
from vla_feature_bridge.tensors import first_not_finite

#: Our headers describe fewer than a hundred arrays. This software does not write longer headers.
_MAX_HEADER_BYTES = 1 << 20
#: Memory limit for padded raw features: a fixed size plus a multiple of their stored size.
_MAX_PADDED_BYTES = 1 << 30
_MAX_PADDING = 16
OPTIONAL_ARRAYS = tuple(field.stacked for field in STEP_FIELDS)
_FINITE_ARRAYS = tuple(field.stacked for field in STEP_FIELDS if field.kind == 'tensor')
SIGNAL = 'signals.'
_OFFSETS = 'feature_offsets'

_DTYPES: dict[str, np.dtype[Any]] = {
    'F64': np.dtype('<f8'),
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype('<i8'),
    'I32': np.dtype('<i4'),
    'I16': np.dtype('<i2'),
    'I8': np.dtype('i1'),
    'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FEATURE_DTYPES = ('F64', 'F32', 'F16', 'BF16')


def write_rollout(
    folder: Path, number: int, rollout: Rollout, feature: FeatureSpec
) -> dict[str, Any]:
    """Write the arrays of one rollout into the folder of a growing set.

    Parameters
    ----------
    folder : Path
        ``RolloutSetWriter.folder``.
    number : int
        Number of the entry in the source; the name of the file contains this number.

    Returns
    -------
    dict
        The row of the index, plain values, for :meth:`RolloutSetWriter.add_row`.

    Raises
    ------
    RolloutSetError
        The features do not fit the set, or features or actions are NaN or infinite.
    """
    name = rollout.episode_id
    if problem := misfit(rollout, feature):
        raise RolloutSetError(f'rollout {name!r}: {problem}')
    if rollout.feature_name not in ('', str(feature)):
        raise RolloutSetError(
            where=f'rollout {name!r}',
            expected=f'the feature name {str(feature)!r}',
            found=repr(rollout.feature_name),
            advice='use the same feature and the same pooling for all rollouts of a set',
        )
    for what in ('features', *_FINITE_ARRAYS):
        array = getattr(rollout, what)
        step = None if array is None else first_not_finite(array)
        if step is not None:
            raise RolloutSetError(
                where=f'rollout {name!r}',
                expected=f'finite {what}',
                found=f'NaN or infinity at step {step}',
                advice='remove this rollout from the source, or record the episode again',
            )
    file = f'{number:06d}.safetensors'
    size, crc = _write_arrays(folder / ARRAYS / file, _arrays_of(rollout), name)
    return {
        'episode_id': name,
        'task': rollout.task,
        'task_id': int(rollout.task_id),
        'episode_index': int(rollout.episode_index),
        'success': None if rollout.success is None else bool(rollout.success),
        'length': len(rollout),
        'instruction': rollout.instruction,
        'policy': rollout.policy,
        'exec_horizon': int(rollout.exec_horizon),
        'failure_step': None if rollout.failure_step is None else int(rollout.failure_step),
        'video': rollout.video,
        'arrays': file,
        'arrays_bytes': size,
        'arrays_header_crc32': crc,
        'unseen': bool(rollout.unseen),
        'action_space': rollout.action_space,
    }


def misfit(rollout: Rollout, feature: FeatureSpec) -> str:
    """Return how the features differ from the specification; empty if they do not."""
    axes = () if feature.pooled else feature.axes
    shape = rollout.features.shape
    if rollout.features.ndim != 2 + len(axes) or shape[-1] != feature.dim:
        wanted = ', '.join(['steps', *axes, str(feature.dim)])
        return (
            f'expected features {str(feature)!r} of shape ({wanted}), found shape {shape}; '
            'use the same policy and the same pooling for all rollouts of a set'
        )
    if _DTYPE_NAMES.get(rollout.features.dtype) not in _FEATURE_DTYPES:
        return (
            f'expected features of dtype float64, float32, float16 or bfloat16, '
            f'found {rollout.features.dtype}'
        )
    return ''


def _arrays_of(rollout: Rollout) -> dict[str, np.ndarray]:
    arrays = {'features': rollout.features}
    lengths = rollout.feature_lengths
    if lengths is not None:
        arrays['features'] = np.concatenate(
            [row[:length] for row, length in zip(rollout.features, lengths, strict=True)]
        )
        arrays[_OFFSETS] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for name in OPTIONAL_ARRAYS:
        array = getattr(rollout, name)
        if array is not None:
            arrays[name] = array
    for name, values in rollout.signals.items():
        arrays[SIGNAL + name] = values
    return arrays


def features_of(file: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Remove the features from the arrays of a file and return them and their lengths.

    The lengths are the lengths of the first raw axis at each step; None if all steps have the same
    length.

    Raises
    ------
    KeyError
        The file has no features.
    RolloutSetError
        The features cannot be divided into steps.
    """
    flat = arrays.pop('features')
    if _OFFSETS not in arrays:
        return flat, None
    offsets = arrays.pop(_OFFSETS)
    if (
        offsets.ndim != 1
        or offsets.dtype != np.int64
        or len(offsets) < 2
        or flat.ndim < 2
        or offsets[0] != 0
        or offsets[-1] != len(flat)
        or (offsets[1:] <= offsets[:-1]).any()
    ):
        raise RolloutSetError(
            where=f'{file}: array {_OFFSETS!r}',
            expected=f'two or more int64 numbers that increase from 0 to {len(flat)} (the length '
            "of the array 'features')",
            found=f'{offsets.dtype} of shape {offsets.shape}'
            + (f' from {offsets[0]} to {offsets[-1]}' if offsets.size else ''),
            advice=COPY_AGAIN,
        )
    lengths = np.diff(offsets)
    padded = len(lengths) * int(lengths.max()) * (flat.nbytes // len(flat))
    if padded > max(_MAX_PADDED_BYTES, _MAX_PADDING * flat.nbytes):
        raise RolloutSetError(
            where=f"{file}: array 'features'",
            expected='steps of similar length, because every step is padded to the longest step',
            found=f'a step with {lengths.max()} entries, and {len(flat)} entries in all '
            f'{len(lengths)} steps together: padded, they need {padded} bytes',
        )
    features = np.zeros((len(lengths), int(lengths.max()), *flat.shape[1:]), flat.dtype)
    for step, (start, stop) in enumerate(itertools.pairwise(offsets)):
        features[step, : stop - start] = flat[start:stop]
    features.flags.writeable = False
    return features, lengths


# -- safetensors, one file per rollout


def _write_arrays(file: Path, arrays: dict[str, np.ndarray], episode: str) -> tuple[int, int]:
    """Write one file and return its size [bytes] and the CRC-32 of its header."""
    for name, array in arrays.items():
        if array.dtype not in _DTYPE_NAMES:
            raise RolloutSetError(
                where=f'rollout {episode!r}: array {name!r}',
                expected=f'one of the dtypes {", ".join(str(d) for d in _DTYPE_NAMES)}',
                found=str(array.dtype),
            )
    # Arrays with the widest dtype come first, so that every array is aligned in the mapped file.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    described: dict[str, Any] = {}
    position = 0
    for name in order:
        array = arrays[name]
        described[name] = {
            'dtype': _DTYPE_NAMES[array.dtype],
            'shape': list(array.shape),
            'data_offsets': [position, position + array.nbytes],
        }
        position += array.nbytes
    header = json.dumps(described, separators=(',', ':')).encode()
    header += b' ' * (-len(header) % 8)
    with names_file(file), file.open('wb') as stream:
        stream.write(len(header).to_bytes(8, 'little'))
        stream.write(header)
        for name in order:
            stream.write(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return 8 + len(header) + position, zlib.crc32(header)


def map_arrays(file: Path, size: int, crc: int) -> dict[str, np.ndarray]:
    """Return the arrays of one file, read-only; checks the whole header.

    Large files are mapped into memory: see :mod:`vla_feature_bridge.rollout_set.mapping`.

    Parameters
    ----------
    size, crc : int
        Size of the file [bytes] and CRC-32 of its header, as the index states.

    Raises
    ------
    RolloutSetError
        The file is missing, damaged or of another format.
    """
    try:
        data = file_bytes(file)
    except OSError as error:
        raise RolloutSetError(
            where=str(file),
            expected=f'a file of {size} bytes',
            found=f'a file that cannot be read ({error})',
            advice=COPY_AGAIN,
        ) from error
    if len(data) != size or len(data) < 8:
        raise RolloutSetError(
            where=str(file),
            expected=f'a file of {size} bytes',
            found=f'{len(data)} bytes',
            advice=COPY_AGAIN,
        )
    length = int.from_bytes(data[:8].tobytes(), 'little')
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise RolloutSetError(
            where=str(file),
            expected='a safetensors header of at most '
            f'{min(_MAX_HEADER_BYTES, len(data) - 8)} bytes',
            found=f'a header length of {length} bytes',
            advice=COPY_AGAIN,
        )
    header = data[8 : 8 + length].tobytes()
    if zlib.crc32(header) != crc:
        raise RolloutSetError(
            where=str(file),
            expected=f'a header with the checksum {crc}, as {INDEX} says',
            found=f'the checksum {zlib.crc32(header)}',
            advice=f'the file was changed: {COPY_AGAIN}',
        )
    return _slice_arrays(file, header, data[8 + length :])


def _part_of(name: str, entry: Any) -> tuple[int, int, str, str, tuple[Any, ...]]:
    """Return first byte, end, name, dtype and shape of an array, as the header describes them."""
    start, stop = map(int, entry['data_offsets'])
    return start, stop, name, str(entry['dtype']), tuple(entry['shape'])


def _slice_arrays(file: Path, header: bytes, data: np.ndarray) -> dict[str, np.ndarray]:
    try:
        parts = sorted(_part_of(name, entry) for name, entry in json.loads(header).items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RolloutSetError(
            where=str(file),
            expected='a safetensors header that describes each array',
            found=f'a header that cannot be read ({error!r})',
            advice=COPY_AGAIN,
        ) from error
    arrays: dict[str, np.ndarray] = {}
    position = 0
    for start, stop, name, code, shape in parts:
        dtype = _DTYPES.get(code)
        if dtype is None or any(type(n) is not int or n < 0 for n in shape):
            raise RolloutSetError(
                where=f'{file}: array {name!r}',
                expected=f'one of the dtypes {", ".join(_DTYPES)} and a shape of integers from 0',
                found=f'dtype {code[:40]!r} and shape {shape}',
                advice=COPY_AGAIN,
            )
        end = position + math.prod(shape) * dtype.itemsize
        if (start, stop) != (position, end):
            raise RolloutSetError(
                where=f'{file}: array {name!r}',
                expected=f'bytes {position} to {end} for shape {shape} and dtype {code}',
                found=f'bytes {start} to {stop}',
                advice=COPY_AGAIN,
            )
        if stop > len(data):
            raise RolloutSetError(
                where=f'{file}: array {name!r}',
                expected=f'an end at byte {len(data)} or before',
                found=f'an end at byte {stop}',
                advice=COPY_AGAIN,
            )
        try:
            arrays[name] = data[start:stop].view(dtype).reshape(shape)
        # An empty array can have axes that are too long for NumPy.
        except (ValueError, OverflowError) as error:
            raise RolloutSetError(
                where=f'{file}: array {name!r}',
                expected='a shape that NumPy allows',
                found=f'{shape} (NumPy: {error})',
                advice=COPY_AGAIN,
            ) from error
        position = stop
    if position != len(data):
        raise RolloutSetError(
            where=str(file),
            expected='only bytes that belong to an array',
            found=f'{len(data) - position} bytes that belong to no array',
            advice=COPY_AGAIN,
        )
    return arrays
