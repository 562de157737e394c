# SPDX-License-Identifier: Apache-2.0
"""The index of a rollout set, with one row for each rollout, and the manifest."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from vla_feature_bridge.atomic import names_file
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.rollout_set.layout import (
    ARRAY_FILE,
    COPY_AGAIN,
    FORMAT,
    INDEX,
    MANIFEST,
    VERSION,
    RolloutSetError,
)

#: Columns of the index, and the types that their values may have when read.
COLUMNS: dict[str, tuple[type, ...]] = {
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
    'action_space': (str,),
}
#: Columns that are missing in older sets, with their default values.
LATER_COLUMNS: dict[str, Any] = {'unseen': False, 'action_space': ''}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a set; its ``feature`` is a :class:`FeatureSpec`.

    Raises
    ------
    RolloutSetError
        The file is missing, damaged, of another format or of another version.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise RolloutSetError(
            where=str(file),
            expected='the manifest of a rollout set',
            found=f'a file that cannot be read ({error.strerror})',
            advice='make a rollout set with: python -m safe_training convert SOURCE DEST',
        ) from error
    except (ValueError, RecursionError) as error:
        raise RolloutSetError(
            where=str(file),
            expected='JSON',
            found=f'text that is not valid JSON ({error})',
            advice=COPY_AGAIN,
        ) from error
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        found = manifest.get('format') if isinstance(manifest, dict) else type(manifest).__name__
        raise RolloutSetError(
            where=str(file),
            expected=f"the entry 'format' with the value {FORMAT!r}",
            found=f'{found!r:.80}',
            advice='give the folder of a rollout set',
        )
    if manifest.get('version') != VERSION:
        raise RolloutSetError(
            where=str(file),
            expected=f'version {VERSION} of the format',
            found=f'{manifest.get("version")!r:.80}',
            advice='convert the source again with this software, or use the version of the '
            'software that wrote the rollout set',
        )
    for key, kind in {'policy': str, 'source': str, 'rollouts': int, 'feature': dict}.items():
        if type(manifest.get(key)) is not kind:
            raise RolloutSetError(
                where=str(file),
                expected=f'the entry {key!r} of type {kind.__name__}',
                found=f'{manifest.get(key)!r:.80}' if key in manifest else 'no such entry',
                advice=COPY_AGAIN,
            )
    try:
        manifest['feature'] = FeatureSpec.from_dict(manifest['feature'])
    except PoolingError as error:
        raise RolloutSetError(f'{file}: {error}') from error
    return manifest


def read_index(file: Path) -> dict[str, list[Any]]:
    """Return the columns of the index, each with one plain value for each rollout.

    Raises
    ------
    RolloutSetError
        The file is missing or damaged, or a column is missing or of another type.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, memory_map=True).read()
    except FileNotFoundError:
        raise RolloutSetError(
            where=str(file),
            expected='the index of a rollout set',
            found='no such file',
            advice=COPY_AGAIN,
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise RolloutSetError(
            where=str(file),
            expected='a parquet file',
            found=f'a file that cannot be read ({error})',
            advice=COPY_AGAIN,
        ) from error
    columns: dict[str, list[Any]] = {}
    for name, kinds in COLUMNS.items():
        if name in LATER_COLUMNS and name not in table.column_names:
            columns[name] = [LATER_COLUMNS[name]] * table.num_rows
            continue
        if name not in table.column_names:
            raise RolloutSetError(
                where=str(file),
                expected=f'a column {name!r}',
                found=f'the columns {table.column_names}',
                advice=COPY_AGAIN,
            )
        columns[name] = table.column(name).to_pylist()
        wrong = {type(value).__name__ for value in columns[name] if type(value) not in kinds}
        if wrong:
            raise RolloutSetError(
                where=f'{file}: column {name!r}',
                expected=f'values of type {" or ".join(kind.__name__ for kind in kinds)}',
                found=f'values of type {", ".join(sorted(wrong))}',
                advice=COPY_AGAIN,
            )
    return columns


def write_index(file: Path, rows: dict[str, list[Any]]) -> None:
    """Write the columns of the index."""
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kinds[0]]) for name, kinds in COLUMNS.items()])
    with names_file(file):
        pyarrow.parquet.write_table(pyarrow.table(rows, schema=schema), file)


def check_array_files(folder: Path, columns: dict[str, list[Any]]) -> None:
    """Check that the folder holds the file of every rollout, in its full size.

    Raises
    ------
    RolloutSetError
        A file is missing or has another size.
    """
    try:
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
    except OSError as error:
        raise RolloutSetError(
            where=str(folder),
            expected='the folder of the arrays',
            found=f'a folder that cannot be read ({error.strerror})',
            advice=COPY_AGAIN,
        ) from error
    for name, size in zip(columns['arrays'], columns['arrays_bytes'], strict=True):
        if not ARRAY_FILE.fullmatch(name):
            raise RolloutSetError(
                where=f"{folder.parent / INDEX}: column 'arrays'",
                expected='names of array files, for example 000000.safetensors',
                found=repr(name[:80]),
                advice=COPY_AGAIN,
            )
        if sizes.get(name) != size:
            raise RolloutSetError(
                where=str(folder / name),
                expected=f'a file of {size} bytes',
                found=f'{sizes[name]} bytes' if name in sizes else 'no such file',
                advice=COPY_AGAIN,
            )


def software() -> dict[str, str]:
    """Return the versions of the software that writes a set."""
    from importlib.metadata import PackageNotFoundError, version

    found = {'python': platform.python_version(), 'numpy': np.__version__}
    try:
        found['vla_feature_bridge'] = version('vla_feature_bridge')
    except PackageNotFoundError:  # The package is used from the source tree without installation.
        found['vla_feature_bridge'] = 'source tree'
    return found
