# SPDX-License-Identifier: Apache-2.0
"""Many rollouts on disk in one folder, opened without reading an array; never pickle.

::

    SET/rollout_set.json           what the set is: format, version, feature, policy, source
    SET/rollouts.parquet           one row per rollout: every scalar, its length, its arrays' file
    SET/arrays/000000.safetensors  the arrays of the first rollout, read by memory map

A set is written into a hidden folder beside its destination and renamed when it is complete, so
that a folder of this name is always a whole set. Work that has a name of its own survives an
interruption in that folder, with a journal of what is done, and is continued by the next writer.

Raw features whose first axis differs from step to step (the tokens of pi0-FAST) are stored without
padding: all steps' entries one after the other in ``features``, step t from ``feature_offsets[t]``
to ``feature_offsets[t + 1]``.
"""

from __future__ import annotations

import itertools
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
from typing import IO, Any, overload

import ml_dtypes
import numpy as np

from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.rollout import Rollout, RolloutError

FORMAT = 'safe_rollout_set'
VERSION = 1
MANIFEST = 'rollout_set.json'
INDEX = 'rollouts.parquet'
ARRAYS = 'arrays'
JOURNAL = 'journal.jsonl'

#: A header describes some dozen arrays; anything longer is not one of ours.
_MAX_HEADER_BYTES = 1 << 20
#: Elements that are looked at together when NaN is searched.
_PORTION = 1 << 18
#: What a ragged feature may take in memory: so much, or so many times its stored size.
_MAX_PADDED_BYTES = 1 << 30
_MAX_PADDING = 16
_ARRAY_FILE = re.compile(r'\d{6,12}\.safetensors')
_OPTIONAL_ARRAYS = ('actions', 'token_probability', 'token_entropy', 'stamps', 'inference_time')
_SIGNAL = 'signals.'
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
    'unseen': (bool,),
}
#: Columns that older sets lack, and what their rollouts have instead.
_LATER_COLUMNS = {'unseen': False}


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
    def unseen(self) -> list[bool]:
        """Return for each rollout whether its source sets the task aside as unseen."""
        return list(self._columns['unseen'])

    @property
    def array_files(self) -> list[str]:
        """Return the file name of each rollout's arrays."""
        return list(self._columns['arrays'])

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
            features, feature_lengths = _features(file, arrays)
            rollout = Rollout(
                features=features,
                feature_lengths=feature_lengths,
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
                unseen=row['unseen'],
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
    work : str
        Names the work exactly, source and options. When it is not empty, what is written when the
        process is interrupted (KeyboardInterrupt, a signal, a power cut) stays in the hidden
        folder ``.NAME.partial``, and the next writer of the same work begins with it.

    Attributes
    ----------
    folder : Path
        Where the set grows, for :func:`write_rollout` in another process.
    continued : int
        How many entries an interrupted writer of the same work had finished.
    left_out : list of str
        What :meth:`leave_out` was told, earlier writers of the same work included.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        feature: FeatureSpec,
        policy: str = '',
        source: str = '',
        overwrite: bool = False,
        work: str = '',
    ) -> None:
        self.path = Path(path)
        self.feature = feature
        self.policy = policy
        self.source = source
        self.overwrite = overwrite
        self.work = work

    def __enter__(self) -> RolloutSetWriter:
        self._check_destination()
        self._rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._known: set[str] = set()
        self._unseen: dict[str, bool] = {}
        self.left_out: list[str] = []
        self._journal: IO[str] | None = None
        self._made_parents = _make_parents(self.path.parent)
        self.folder = partial_folder(self.path) if self.work else _hidden(self.path, 'partial')
        (self.folder / ARRAYS).mkdir(parents=True, exist_ok=bool(self.work))
        if self.work:
            self._open_journal()
        self.continued = self.entries
        return self

    @property
    def entries(self) -> int:
        """Return how many rollouts were added or left out; the number of the next one."""
        return len(self._known) + len(self.left_out)

    @property
    def steps(self) -> list[int]:
        """Return the lengths of the rollouts so far."""
        return list(self._rows['length'])

    def add(self, rollout: Rollout) -> None:
        """Write one rollout.

        Raises
        ------
        RolloutSetError
            Its features are not what the set holds (width, axes, dtype), are NaN or infinite, or
            its ``episode_id`` is already in the set.
        """
        self._check_new(rollout.episode_id)
        try:
            row = write_rollout(self.folder, self.entries, rollout, self.feature)
        except RolloutSetError as error:
            raise RolloutSetError(f'{self.path}: {error}') from error
        self.add_row(row)

    def add_row(self, row: dict[str, Any]) -> None:
        """Take over a rollout that :func:`write_rollout` wrote into ``folder``.

        Raises
        ------
        RolloutSetError
            Its ``episode_id`` is already in the set.
        """
        self._check_new(row['episode_id'])
        if self._unseen.setdefault(row['task'], row['unseen']) != row['unseen']:
            raise RolloutSetError(
                f'{self.path}: rollout {row["episode_id"]!r}: expected the task {row["task"]!r} '
                'to be either seen or unseen, found rollouts of both kinds; check the unseen root'
            )
        self._note({'row': row})
        self._take(row)

    def leave_out(self, message: str) -> None:
        """Count an entry of the source that is not in the set, and remember why."""
        self._note({'left_out': message})
        self.left_out.append(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        kept = bool(self.work) and interrupted
        try:
            if kind is None:
                self._finish()
        finally:
            if not kept:
                # After success there is nothing of that name any more.
                shutil.rmtree(self.folder, ignore_errors=True)
            if self._journal:
                self._journal.close()
            if not kept and not self.path.exists():
                _remove_empty(self._made_parents)

    # -- the journal of named work: one line of JSON for each entry, after its arrays are written

    def _open_journal(self) -> None:
        self._journal = journal = (self.folder / JOURNAL).open('a+', encoding='utf-8')
        if not _lock(journal):
            journal.close()
            raise RolloutSetError(
                f'{self.folder}: expected nobody else to write this set, found another process '
                'at work; wait for it or choose another name'
            )
        journal.seek(0)
        good = 0
        for number, line in enumerate(iter(journal.readline, '')):
            if not self._replay(number, line):
                break
            good = journal.tell()
        journal.seek(good)
        journal.truncate()
        if not good:
            shutil.rmtree(self.folder / ARRAYS)
            (self.folder / ARRAYS).mkdir()
            self._note({'work': self.work})

    def _replay(self, number: int, line: str) -> bool:
        """Take over one line of an interrupted writer; False where it cannot be trusted."""
        try:
            entry = json.loads(line)
            if not line.endswith('\n') or type(entry) is not dict:
                return False
            if number == 0:
                return bool(entry == {'work': self.work})
            if 'left_out' in entry:
                self.left_out.append(str(entry['left_out']))
                return True
            row = entry['row']
            size = (self.folder / ARRAYS / row['arrays']).stat().st_size
            if set(row) != set(_COLUMNS) or size != row['arrays_bytes']:
                return False
            self._take(row)
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            return False
        return True

    def _note(self, entry: dict[str, Any]) -> None:
        if self._journal:
            self._journal.write(json.dumps(entry) + '\n')
            self._journal.flush()

    def _take(self, row: dict[str, Any]) -> None:
        self._known.add(row['episode_id'])
        self._unseen[row['task']] = row['unseen']
        for column in _COLUMNS:
            self._rows[column].append(row[column])

    def _check_new(self, name: str) -> None:
        if name in self._known:
            raise RolloutSetError(
                f'{self.path}: rollout {name!r} is in the set already; give each its own episode_id'
            )

    def _check_destination(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.overwrite:
            raise RolloutSetError(
                f'{self.path}: expected a name that is free, found a file or folder; '
                'choose another name, or overwrite it (--overwrite)'
            )
        if not (self.path / MANIFEST).is_file() or self.path.is_symlink():
            raise RolloutSetError(
                f'{self.path}: expected a rollout set to overwrite, found something else; '
                'remove it yourself or choose another name'
            )

    def _finish(self) -> None:
        if not self._known:
            raise RolloutSetError(
                f'{self.path}: expected at least one rollout to write, found none'
            )
        _write_index(self.folder / INDEX, self._rows)
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
        (self.folder / JOURNAL).unlink(missing_ok=True)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
        (self.folder / MANIFEST).write_text(text, encoding='utf-8')
        self._check_destination()
        if not self.path.exists():
            os.rename(self.folder, self.path)
            return
        old = _hidden(self.path, 'old')
        os.rename(self.path, old)
        try:
            os.rename(self.folder, self.path)
        except OSError:
            os.rename(old, self.path)
            raise
        shutil.rmtree(old)


def write_rollout(
    folder: Path, number: int, rollout: Rollout, feature: FeatureSpec
) -> dict[str, Any]:
    """Write the arrays of one rollout into the folder of a growing set.

    Parameters
    ----------
    folder : Path
        ``RolloutSetWriter.folder``.
    number : int
        Which entry of the source it is; names the file.

    Returns
    -------
    dict
        Its row of the index, plain values, for :meth:`RolloutSetWriter.add_row`.

    Raises
    ------
    RolloutSetError
        The features are not what the set holds, or are NaN or infinite.
    """
    name = rollout.episode_id
    if problem := _misfit(rollout, feature):
        raise RolloutSetError(f'rollout {name!r}: {problem}')
    if rollout.feature_name not in ('', str(feature)):
        raise RolloutSetError(
            f'rollout {name!r}: expected features {str(feature)!r}, '
            f'found {rollout.feature_name!r}; pool all rollouts of a set alike'
        )
    for what, array in (('features', rollout.features), ('actions', rollout.actions)):
        step = None if array is None else first_not_finite(array)
        if step is not None:
            raise RolloutSetError(
                f'rollout {name!r}: expected finite {what}, found NaN or infinity at '
                f'step {step}; leave this rollout out or record it again'
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
    }


def partial_folder(path: str | os.PathLike[str]) -> Path:
    """Return where a writer of named work keeps what an interruption leaves unfinished."""
    whole = Path(os.path.abspath(path))
    return whole.with_name(f'.{whole.name}.partial')


def first_not_finite(array: np.ndarray) -> int | None:
    """Return the first index of the first axis that holds NaN or infinity, None without any.

    Works in small portions, so that it needs no memory to speak of.
    """
    portion = max(1, _PORTION * len(array) // max(1, array.size))
    for start in range(0, len(array), portion):
        part = array[start : start + portion]
        if part.dtype == ml_dtypes.bfloat16 and part.ndim:
            # Its own isfinite goes through float32, element by element.
            finite = (part.view(np.uint16) & 0x7F80) != 0x7F80
        else:
            finite = np.isfinite(part)
        if not finite.all():
            return start + int(np.argmin(finite.reshape(len(part), -1).all(axis=1)))
    return None


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


def _arrays_of(rollout: Rollout) -> dict[str, np.ndarray]:
    arrays = {'features': rollout.features}
    lengths = rollout.feature_lengths
    if lengths is not None:
        arrays['features'] = np.concatenate(
            [row[:length] for row, length in zip(rollout.features, lengths, strict=True)]
        )
        arrays[_OFFSETS] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for name in _OPTIONAL_ARRAYS:
        array = getattr(rollout, name)
        if array is not None:
            arrays[name] = array
    for name, values in rollout.signals.items():
        arrays[_SIGNAL + name] = values
    return arrays


def _features(file: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Take the features out of the arrays of one file, and the lengths of ragged ones."""
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
            f'{file}: expected {_OFFSETS} that rise from 0 to {len(flat)}, the length of the '
            f'features, found other ones; copy or convert the set again'
        )
    lengths = np.diff(offsets)
    padded = len(lengths) * int(lengths.max()) * (flat.nbytes // len(flat))
    if padded > max(_MAX_PADDED_BYTES, _MAX_PADDING * flat.nbytes):
        raise RolloutSetError(
            f'{file}: expected steps of a similar number of entries, found {lengths.max()} in one '
            f'and {len(flat)} in all {len(lengths)}'
        )
    features = np.zeros((len(lengths), int(lengths.max()), *flat.shape[1:]), flat.dtype)
    for step, (start, stop) in enumerate(itertools.pairwise(offsets)):
        features[step, : stop - start] = flat[start:stop]
    features.flags.writeable = False
    return features, lengths


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
        table = pyarrow.parquet.ParquetFile(file, memory_map=True).read()
    except FileNotFoundError:
        raise RolloutSetError(
            f'{file}: expected the index of a rollout set, found none; convert again'
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise RolloutSetError(f'{file}: expected a parquet file, found {error}') from error
    columns: dict[str, list[Any]] = {}
    for name, kinds in _COLUMNS.items():
        if name in _LATER_COLUMNS and name not in table.column_names:
            columns[name] = [_LATER_COLUMNS[name]] * table.num_rows
            continue
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


def _lock(file: IO[str]) -> bool:
    """Take an open file for this process, until it is closed or the process ends."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _hidden(path: Path, what: str) -> Path:
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
