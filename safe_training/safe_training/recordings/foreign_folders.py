# SPDX-License-Identifier: Apache-2.0
"""Describes a path that no reader recognises: data of another recorder, an archive."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safe_training.recordings.readers.openpi_episodes import ENV_RECORDS, POLICY_RECORDS
from safe_training.recordings.untrusted.bag import METADATA
from safe_training.recordings.untrusted.foreign_file import READ_KINDS, ForeignKind, foreign_kind_of

#: Number of files of a folder that are examined.
_MAX_FILES = 200
_NO_FEATURES = (
    'this format contains no features of the policy: record the policy with ROS 2 or with the '
    'bridge '
    '(see docs/how-to/use_your_recordings.md)'
)
_OPENPI_RECORDER = ForeignKind(
    'the records step_*.npy of the recorder of openpi, which holds no hidden states',
    f'record with hidden states: {ENV_RECORDS}/*.pkl for each episode and '
    f'{POLICY_RECORDS}/*meta.pkl for each inference (see '
    'docs/reference/dump_formats.md), or record with the bridge',
)
_OPENPI_NAME = re.compile(r'step_\d+.*\.npy')
_ENDINGS: tuple[tuple[str, ForeignKind], ...] = (
    ('.parquet', ForeignKind('a LeRobot dataset or other Parquet tables', _NO_FEATURES)),
    ('.arrow', ForeignKind('a dataset in Arrow tables', _NO_FEATURES)),
    ('.tfrecord', ForeignKind('an RLDS dataset (TFRecord files)', _NO_FEATURES)),
    ('.zarr', ForeignKind('a Zarr store', _NO_FEATURES)),
    ('.zgroup', ForeignKind('a Zarr store', _NO_FEATURES)),
)


def openpi_recorder(folder: Path) -> ForeignKind | None:
    """Return the kind of the records of openpi's own recorder; None if there is no such record."""
    names = [path.name for path in _files(folder)]
    return _OPENPI_RECORDER if any(map(_OPENPI_NAME.fullmatch, names)) else None


def foreign_place(place: Path) -> ForeignKind | None:
    """Return the format of a file or folder that no reader recognises; None if it is unknown."""
    if place.suffix == '.npz':
        return None  # an archive of other arrays; the caller lists the arrays
    if place.is_file():
        return foreign_kind_of(place)
    if found := openpi_recorder(place):
        return found
    files = list(itertools.islice(_files(place), _MAX_FILES))
    for file in files:
        for ending, kind in _ENDINGS:
            if ending in file.relative_to(place).as_posix():
                return ForeignKind(f'{kind.found}, for example {file.name}', kind.advice)
    for file in files:
        other = foreign_kind_of(file)
        if other is not None and other not in READ_KINDS and file.suffix != '.npz':
            return ForeignKind(f'{other.found} with the name {file.name}', other.advice)
    return _recordings(files) or _half_of_openpi(place)


def _recordings(files: list[Path]) -> ForeignKind | None:
    folders = sorted({file.parent for file in files if file.name == METADATA})
    if not folders:
        return None
    names = ', '.join(folder.name for folder in folders[:6])
    return ForeignKind(
        f'a folder of recordings: {names}',
        f'give the path of one recording, for example {folders[0]}',
    )


def _half_of_openpi(place: Path) -> ForeignKind | None:
    parts = {ENV_RECORDS, POLICY_RECORDS}
    present = {name for name in parts if (place / name).is_dir()}
    if len(present) != 1:
        return None
    return ForeignKind(
        f'a folder with {min(present)} and without {min(parts - present)}',
        f'an openpi dump needs both folders, {ENV_RECORDS} and {POLICY_RECORDS}: copy '
        'the other folder beside this folder',
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield the first files below a folder in a fixed order, without following links."""
    count = 0
    for place, names, files in os.walk(folder):
        names.sort()
        for name in sorted(files):
            yield Path(place, name)
            count += 1
            if count >= _MAX_FILES:
                return
