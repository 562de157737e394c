# SPDX-License-Identifier: Apache-2.0
"""Many rollouts on disk in one folder, opened without reading an array; never pickle.

::

    SET/rollout_set.json           what the set is: format, version, feature, policy, source
    SET/rollouts.parquet           one row per rollout: every scalar, its length, its arrays' file
    SET/arrays/000000.safetensors  the arrays of the first rollout, read by memory map

A set is written into a hidden folder beside its destination and renamed when it is complete, so
that a folder of this name is always a whole set.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import ml_dtypes
import numpy as np

from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.rollout import Rollout, RolloutError

FORMAT = 'safe_rollout_set'
VERSION = 1
MANIFEST = 'rollout_set.json'
INDEX = 'rollouts.parquet'
ARRAYS = 'arrays'

#: A header describes some dozen arrays; anything longer is not one of ours.
_MAX_HEADER_BYTES = 1 << 20
_ARRAY_FILE = re.compile(r'\d{6,12}\.safetensors')
_OPTIONAL_ARRAYS = ('actions', 'token_probability', 'token_entropy', 'stamps', 'inference_time')
_SIGNAL = 'signals.'

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

#: Column of the index -> the type that its values must have when read, None where it may be null.
_COLUMNS: dict[str, tuple[type, ...]] = {
    'episode_id': (str,),
    'task': (str,),
    'task_id': (int,),
    'episode_index': (int,),
    'success': (bool, type(None)),
    'length': (int,),
    'instruction': (str,),
    'policy': (str,),
    'exec_horizon': (int,),
    'failure_step': (int, type(None)),
    'video': (str,),
    'arrays': (str,),
    'arrays_bytes': (int,),
    'arrays_header_crc32': (int,),
}


class RolloutSetError(ValueError):
    """A rollout set cannot be read or written; names the file, what was expected and found."""


class RolloutSet(Sequence[Rollout]):
    """The rollouts of one folder, or a selection of them; arrays are mapped when asked for.

    Attributes
    ----------
    path : Path
        The folder.
    feature : FeatureSpec
        What the features of every rollout are.
    policy, source : str
        As given when the set was written.
    """

    def __init__(
        self,
        path: Path,
        feature: FeatureSpec,
        policy: str,
        source: str,
        columns: dict[str, list[Any]],
    ) -> None:
        self.path = path
        self.feature = feature
        self.policy = policy
        self.source = source
        self._columns = columns

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RolloutSet:
        """Open a set; reads the manifest and the index, no array.

        Raises
        ------
        RolloutSetError
            The folder is not a rollout set, a file is missing, truncated or of another version.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        columns = _read_index(folder / INDEX)
        count = len(columns['episode_id'])
        if count == 0:
            raise RolloutSetError(f'{folder / INDEX}: expected at least one rollout, found none')
        if manifest['rollouts'] != count:
            raise RolloutSetError(
                f'{folder / INDEX}: expected {manifest["rollouts"]} rollouts as {MANIFEST} says, '
                f'found {count}; the files belong to different sets, convert again'
            )
        _check_array_files(folder / ARRAYS, columns)
        return cls(folder, manifest['feature'], manifest['policy'], manifest['source'], columns)

    # -- columns, without touching an array

    @property
    def episode_ids(self) -> list[str]:
        """Return the unique name of each rollout."""
        return list(self._columns['episode_id'])

    @property
    def tasks(self) -> list[str]:
        """Return the task of each rollout."""
        return list(self._columns['task'])

    @property
    def task_ids(self) -> list[int]:
        """Return the task number of each rollout."""
        return list(self._columns['task_id'])

    @property
    def success(self) -> list[bool | None]:
        """Return the outcome of each rollout, None where it is unlabelled."""
        return list(self._columns['success'])

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of steps of each rollout, int64 (rollouts,)."""
        return np.array(self._columns['length'], dtype=np.int64)

    # -- rollouts

    def __len__(self) -> int:
        return len(self._columns['episode_id'])

    def __iter__(self) -> Iterator[Rollout]:
        for index in range(len(self)):
            yield self._rollout(index)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> RolloutSet: ...
    def __getitem__(self, index: int | slice) -> Rollout | RolloutSet:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f'rollout {index} of a set of {len(self)}')
        return self._rollout(position)

    def select(self, indices: Iterable[int]) -> RolloutSet:
        """Return a view of some rollouts, in the order given; copies no array."""
        chosen = [range(len(self))[index] for index in indices]
        columns = {
            name: [values[index] for index in chosen] for name, values in self._columns.items()
        }
        return RolloutSet(self.path, self.feature, self.policy, self.source, columns)

    def _rollout(self, position: int) -> Rollout:
        row = {name: values[position] for name, values in self._columns.items()}
        file = self.path / ARRAYS / row['arrays']
        arrays = _map_arrays(file, row['arrays_bytes'], row['arrays_header_crc32'])
        try:
            rollout = Rollout(
                features=arrays.pop('features'),
                task=row['task'],
                success=row['success'],
                episode_id=row['episode_id'],
                task_id=row['task_id'],
                episode_index=row['episode_index'],
                instruction=row['instruction'],
                policy=row['policy'] or self.policy,
                feature_name=str(self.feature),
                exec_horizon=row['exec_horizon'],
                failure_step=row['failure_step'],
                video=row['video'],
                signals={
                    name.removeprefix(_SIGNAL): arrays.pop(name)
                    for name in list(arrays)
                    if name.startswith(_SIGNAL)
                },
                **{name: arrays.pop(name) for name in _OPTIONAL_ARRAYS if name in arrays},
            )
        except KeyError:
            raise RolloutSetError(f"{file}: expected an array 'features', found none") from None
        except RolloutError as error:
            raise RolloutSetError(f'{file}: {error}') from error
        if arrays:
            raise RolloutSetError(
                f'{file}: expected the arrays of a rollout, found also {sorted(arrays)}; '
                'a newer version may have written this set'
            )
        if len(rollout) != row['length']:
            raise RolloutSetError(
                f'{file}: expected {row["length"]} steps as {INDEX} says, found {len(rollout)}'
            )
        if problem := _misfit(rollout, self.feature):
            raise RolloutSetError(f'{file}: {problem}')
        return rollout


class RolloutSetWriter:
    """Writes a rollout set, rollout by rollout; nothing is left behind when it does not finish.

    Use as a context manager::

        with RolloutSetWriter('sets/libero10', feature=spec, policy='openvla') as writer:
            for rollout in rollouts:
                writer.add(rollout)

    Parameters
    ----------
    path : path
        The folder to make.
    feature : FeatureSpec
        What the features of every rollout are.
    policy, source : str
        Which policy was recorded, and what the set was made from.
    overwrite : bool
        Replace an existing rollout set of this name (never any other folder).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        feature: FeatureSpec,
        policy: str = '',
        source: str = '',
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.feature = feature
        self.policy = policy
        self.source = source
        self.overwrite = overwrite

    def __enter__(self) -> RolloutSetWriter:
        self._check_destination()
        self._made_parents = _make_parents(self.path.parent)
        self._partial = _hidden_sibling(self.path, 'partial')
        self._rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._known: set[str] = set()
        (self._partial / ARRAYS).mkdir(parents=True)
        return self

    def add(self, rollout: Rollout) -> None:
        """Write one rollout.

        Raises
        ------
        RolloutSetError
            Its features are not what the set holds (width, axes, dtype), are NaN or infinite, or
            its ``episode_id`` is already in the set.
        """
        name = rollout.episode_id
        if problem := _misfit(rollout, self.feature):
            raise RolloutSetError(f'{self.path}: rollout {name!r}: {problem}')
        if rollout.feature_name not in ('', str(self.feature)):
            raise RolloutSetError(
                f'{self.path}: rollout {name!r}: expected features {str(self.feature)!r}, '
                f'found {rollout.feature_name!r}; pool all rollouts of a set alike'
            )
        if name in self._known:
            raise RolloutSetError(
                f'{self.path}: rollout {name!r} is in the set already; give each its own episode_id'
            )
        arrays = _arrays_of(rollout)
        for array_name in ('features', 'actions'):
            _check_finite(self.path, name, array_name, arrays.get(array_name))
        file = f'{len(self._known):06d}.safetensors'
        size, crc = _write_arrays(self._partial / ARRAYS / file, arrays, name)
        self._known.add(name)
        self._add_row(rollout, file, size, crc)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            # After success there is nothing of that name any more.
            shutil.rmtree(self._partial, ignore_errors=True)
            if not self.path.exists():
                _remove_empty(self._made_parents)

    def _check_destination(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.overwrite:
            raise RolloutSetError(
                f'{self.path}: expected a name that is free, found a file or folder; '
                'choose another name or ask to overwrite'
            )
        if not (self.path / MANIFEST).is_file() or self.path.is_symlink():
            raise RolloutSetError(
                f'{self.path}: expected a rollout set to overwrite, found something else; '
                'remove it yourself or choose another name'
            )

    def _add_row(self, rollout: Rollout, file: str, size: int, crc: int) -> None:
        row = {
            'episode_id': rollout.episode_id,
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
        }
        for column, value in row.items():
            self._rows[column].append(value)

    def _finish(self) -> None:
        if not self._known:
            raise RolloutSetError(
                f'{self.path}: expected at least one rollout to write, found none'
            )
        _write_index(self._partial / INDEX, self._rows)
        manifest = {
            'format': FORMAT,
            'version': VERSION,
            'feature': self.feature.to_dict(),
            'policy': self.policy,
            'source': self.source,
            'rollouts': len(self._known),
            'steps': sum(self._rows['length']),
            'software': _software(),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
        (self._partial / MANIFEST).write_text(text, encoding='utf-8')
        self._check_destination()
        if not self.path.exists():
            os.rename(self._partial, self.path)
            return
        old = _hidden_sibling(self.path, 'old')
        os.rename(self.path, old)
        try:
            os.rename(self._partial, self.path)
        except OSError:
            os.rename(old, self.path)
            raise
        shutil.rmtree(old)


def _misfit(rollout: Rollout, feature: FeatureSpec) -> str:
    """Say how the features differ from the specification; empty if they do not."""
    axes = () if feature.pooled else feature.axes
    shape = rollout.features.shape
    if rollout.features.ndim != 2 + len(axes) or shape[-1] != feature.dim:
        wanted = ', '.join(['steps', *axes, str(feature.dim)])
        return (
            f'expected {str(feature)!r} features of shape ({wanted}), found {shape}; '
            'all rollouts of a set must come from the same policy and pooling'
        )
    if _DTYPE_NAMES.get(rollout.features.dtype) not in _FEATURE_DTYPES:
        return (
            f'expected features of dtype float64, float32, float16 or bfloat16, '
            f'found {rollout.features.dtype}'
        )
    return ''


def _check_finite(path: Path, episode: str, name: str, array: np.ndarray | None) -> None:
    if array is None:
        return
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise RolloutSetError(
            f'{path}: rollout {episode!r}: expected finite {name}, found NaN or infinity at '
            f'step {int(np.argmin(finite))}; leave this rollout out or record it again'
        )


def _arrays_of(rollout: Rollout) -> dict[str, np.ndarray]:
    arrays = {'features': rollout.features}
    for name in _OPTIONAL_ARRAYS:
        array = getattr(rollout, name)
        if array is not None:
            arrays[name] = array
    for name, values in rollout.signals.items():
        arrays[_SIGNAL + name] = values
    return arrays


# -- safetensors, one file per rollout


def _write_arrays(file: Path, arrays: dict[str, np.ndarray], episode: str) -> tuple[int, int]:
    """Write one file; returns its size and the CRC-32 of its header."""
    for name, array in arrays.items():
        if array.dtype not in _DTYPE_NAMES:
            raise RolloutSetError(
                f'{file.parent.parent.name}: rollout {episode!r}: array {name!r} has dtype '
                f'{array.dtype}, expected one of {", ".join(str(d) for d in _DTYPE_NAMES)}'
            )
    # Widest numbers first keeps every array aligned in the mapped file.
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
    with file.open('wb') as stream:
        stream.write(len(header).to_bytes(8, 'little'))
        stream.write(header)
        for name in order:
            stream.write(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return 8 + len(header) + position, zlib.crc32(header)


def _map_arrays(file: Path, size: int, crc: int) -> dict[str, np.ndarray]:
    """Map the arrays of one file, read-only, after checking every word of its header."""
    try:
        mapped = np.memmap(file, dtype=np.uint8, mode='r')
    except (OSError, ValueError) as error:
        raise RolloutSetError(f'{file}: expected a file of {size} bytes, found {error}') from error
    if len(mapped) != size or len(mapped) < 8:
        raise RolloutSetError(
            f'{file}: expected {size} bytes, found {len(mapped)}; copy or convert the set again'
        )
    data: np.ndarray = mapped.view(np.ndarray)
    length = int.from_bytes(data[:8].tobytes(), 'little')
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise RolloutSetError(f'{file}: expected a safetensors header, found a length of {length}')
    header = data[8 : 8 + length].tobytes()
    if zlib.crc32(header) != crc:
        raise RolloutSetError(
            f'{file}: expected the header with checksum {crc} of {INDEX}, found '
            f'{zlib.crc32(header)}; the file was changed, copy or convert the set again'
        )
    return _slice_arrays(file, header, data[8 + length :])


def _slice_arrays(file: Path, header: bytes, data: np.ndarray) -> dict[str, np.ndarray]:
    try:
        described = json.loads(header)
        parts = sorted(
            (
                tuple(map(int, entry['data_offsets'])),
                name,
                str(entry['dtype']),
                tuple(entry['shape']),
            )
            for name, entry in described.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RolloutSetError(f'{file}: expected a safetensors header, found {error!r}') from error
    arrays: dict[str, np.ndarray] = {}
    position = 0
    for (start, stop), name, code, shape in parts:
        dtype = _DTYPES.get(code)
        if dtype is None or any(type(n) is not int or n < 0 for n in shape):
            raise RolloutSetError(f'{file}: array {name!r} has dtype {code!r} and shape {shape}')
        if start != position or stop - start != math.prod(shape) * dtype.itemsize:
            raise RolloutSetError(
                f'{file}: array {name!r} of shape {shape} and dtype {code} must follow byte '
                f'{position}, found bytes {start} to {stop}'
            )
        if stop > len(data):
            raise RolloutSetError(f'{file}: array {name!r} ends after the file')
        try:
            arrays[name] = data[start:stop].view(dtype).reshape(shape)
        except (ValueError, OverflowError) as error:  # an empty array of absurd lengths
            raise RolloutSetError(f'{file}: array {name!r} of shape {shape}: {error}') from error
        position = stop
    if position != len(data):
        raise RolloutSetError(f'{file}: {len(data) - position} bytes belong to no array')
    return arrays


# -- manifest and index


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise RolloutSetError(
            f'{file}: expected the manifest of a rollout set, found {error.strerror}; '
            'make one with: python -m safe_training convert SOURCE DEST'
        ) from error
    except (ValueError, RecursionError) as error:
        raise RolloutSetError(f'{file}: expected JSON, found {error}') from error
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        raise RolloutSetError(f"{file}: expected 'format': {FORMAT!r}, found another file")
    if manifest.get('version') != VERSION:
        raise RolloutSetError(
            f'{file}: expected version {VERSION}, found {manifest.get("version")!r}; '
            'convert again with this software, or use the software that wrote it'
        )
    for key, kind in {'policy': str, 'source': str, 'rollouts': int, 'feature': dict}.items():
        if type(manifest.get(key)) is not kind:
            raise RolloutSetError(f'{file}: expected {key!r} as {kind.__name__}, found none')
    try:
        manifest['feature'] = FeatureSpec.from_dict(manifest['feature'])
    except PoolingError as error:
        raise RolloutSetError(f'{file}: {error}') from error
    return manifest


def _read_index(file: Path) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file, memory_map=True)
    except FileNotFoundError:
        raise RolloutSetError(
            f'{file}: expected the index of a rollout set, found none; convert again'
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise RolloutSetError(f'{file}: expected a parquet file, found {error}') from error
    columns: dict[str, list[Any]] = {}
    for name, kinds in _COLUMNS.items():
        if name not in table.column_names:
            raise RolloutSetError(f'{file}: expected a column {name!r}, found {table.column_names}')
        columns[name] = table.column(name).to_pylist()
        if not {type(value) for value in columns[name]} <= set(kinds):
            expected = ' or '.join(kind.__name__ for kind in kinds)
            raise RolloutSetError(f'{file}: expected {expected} in column {name!r}')
    return columns


def _write_index(file: Path, rows: dict[str, list[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kinds[0]]) for name, kinds in _COLUMNS.items()])
    pyarrow.parquet.write_table(pyarrow.table(rows, schema=schema), file)


def _check_array_files(folder: Path, columns: dict[str, list[Any]]) -> None:
    try:
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
    except OSError as error:
        raise RolloutSetError(
            f'{folder}: expected the folder of the arrays, found {error.strerror}; '
            'copy or convert the set again'
        ) from error
    for name, size in zip(columns['arrays'], columns['arrays_bytes'], strict=True):
        if not _ARRAY_FILE.fullmatch(name):
            raise RolloutSetError(f'{folder.parent / INDEX}: {name!r} is no name of an array file')
        if sizes.get(name) != size:
            found = f'{sizes[name]} bytes' if name in sizes else 'none'
            raise RolloutSetError(
                f'{folder / name}: expected a file of {size} bytes, found {found}; '
                'copy or convert the set again'
            )


def _software() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {'python': platform.python_version(), 'numpy': np.__version__}
    try:
        found['vla_feature_bridge'] = version('vla_feature_bridge')
    except PackageNotFoundError:  # used from a source tree that is not installed
        found['vla_feature_bridge'] = 'source tree'
    return found


# -- folders


def _hidden_sibling(path: Path, what: str) -> Path:
    whole = Path(os.path.abspath(path))
    return whole.with_name(f'.{whole.name}.{uuid.uuid4().hex[:12]}.{what}')


def _make_parents(folder: Path) -> list[Path]:
    """Make missing folders; returns those that were made, innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # someone else uses it by now
            return
