# SPDX-License-Identifier: Apache-2.0
"""Grids: detectors, parameters, poolings, task splits and subsets of tasks of a sweep.

A grid is a YAML file. Grids in the folder ``grids`` of this package are found by their names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from safe_monitor_node.detectors import DetectorError, make_detector
from safe_training.evaluation.protocol import HELD_OUT_PROTOCOL, SEEN_TRAIN_RATIO
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import parse_pooling


class SweepError(SafeError):
    """A sweep cannot run with these settings.

    The message contains the name of the grid, the file or the option.
    """


@dataclass(frozen=True)
class Variant:
    """One pooling of a raw source. Without feature and pooling, the source is used unchanged."""

    feature: str | None = None
    pooling: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One detector with the configurations to try."""

    detector: str
    configurations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Subset:
    """Tasks that form a separate benchmark: they are split, trained on and evaluated separately."""

    name: str
    patterns: tuple[str, ...]

    def has(self, task: str) -> bool:
        """Return whether a task matches a pattern (as in a shell; upper and lower case differ)."""
        return any(fnmatchcase(task, pattern) for pattern in self.patterns)


@dataclass(frozen=True)
class Grid:
    """The configurations of a sweep.

    Detectors and their parameters, poolings, subsets, and the published splits.

    Without subsets, all tasks of a source form one benchmark.
    """

    benchmark: str
    splits: tuple[int, ...]
    unseen_ratio: float
    seen_train_ratio: float
    variants: tuple[Variant, ...]
    families: tuple[Family, ...]
    subsets: tuple[Subset, ...] = ()


def shipped_grids() -> list[str]:
    """Return the names of the grids that come with this package."""
    folder = resources.files('safe_training.sweep') / 'grids'
    return sorted(f.name[: -len('.yaml')] for f in folder.iterdir() if f.name.endswith('.yaml'))


def read_grid(name_or_path: str) -> Grid:
    """Return the grid of a file, or a grid of this package by its name.

    Raises
    ------
    SweepError
        The file or name does not exist, the file is not YAML, or a field is missing, unknown or has
        the wrong type.
    """
    path = Path(name_or_path)
    if not path.exists() and name_or_path in shipped_grids():
        text = (
            resources.files('safe_training.sweep') / 'grids' / f'{name_or_path}.yaml'
        ).read_text()
    else:
        try:
            # An editor may have added a byte order mark.
            text = path.read_text(encoding='utf-8-sig')
        except (OSError, UnicodeDecodeError) as error:
            absent = isinstance(error, FileNotFoundError)
            raise SweepError(
                where=str(path),
                expected='a grid file (YAML) or the name of a grid',
                found='no such file' if absent else str(error),
                advice=f'give a grid file, or one of the names {", ".join(shipped_grids())}',
            ) from error
    try:
        values = YAML(typ='safe', pure=True).load(text)
    except YAMLError as error:
        raise SweepError(
            where=str(path),
            expected='YAML',
            found=f'text that is not valid YAML ({" ".join(str(error).split())})',
            advice='correct the file',
        ) from error
    return _grid(str(path), values)


_FIELDS: dict[str, Any] = {
    'benchmark': str,
    'splits': list,
    'unseen_ratio': float,
    'seen_train_ratio': float,
    'poolings': list,
    'detectors': list,
    'subsets': dict,
}
# The name of a subset becomes part of file names and of the benchmark's name.
_SUBSET_NAME = re.compile(r'[A-Za-z0-9_-]+')


def _grid(path: str, values: Any) -> Grid:
    fields = _mapping(path, 'a grid', _with_new_names(values), _FIELDS)
    for name in ('benchmark', 'detectors'):
        if name not in fields:
            raise SweepError(
                where=path,
                expected=f'the field {name!r}',
                found=f'only {", ".join(fields)}' if fields else 'no field',
                advice=f'add the field {name!r}; a grid has the fields {", ".join(_FIELDS)}',
            )
    names = {str(name).casefold(): name for name in fields.get('subsets', {})}
    if len(names) != len(fields.get('subsets', {})):
        raise SweepError(
            where=f"{path}, 'subsets'",
            expected='names that differ in more than capital letters, because they become names '
            'of files',
            found=', '.join(map(str, fields['subsets'])),
            advice='rename one of the subsets',
        )
    splits = tuple(fields.get('splits', [0, 1, 2]))
    if not splits or any(type(split) is not int or split < 0 for split in splits):
        raise SweepError(
            where=f"{path}, 'splits'",
            expected='a list of split numbers (integers from 0)',
            found=str(list(splits)),
        )
    return Grid(
        benchmark=fields['benchmark'],
        splits=splits,
        unseen_ratio=fields.get('unseen_ratio', HELD_OUT_PROTOCOL.unseen_ratio),
        seen_train_ratio=fields.get('seen_train_ratio', SEEN_TRAIN_RATIO),
        variants=tuple(_variant(path, v) for v in fields.get('poolings', [{}])),
        families=tuple(_family(path, v) for v in fields['detectors']),
        subsets=tuple(_subset(path, *item) for item in fields.get('subsets', {}).items()),
    )


def _with_new_names(values: Any) -> Any:
    """Return a grid with the current field name ``splits``.

    In version 0.1 the name was ``seeds``.
    """
    if isinstance(values, dict) and 'seeds' in values and 'splits' not in values:
        return {('splits' if name == 'seeds' else name): value for name, value in values.items()}
    return values


def _mapping(path: str, what: str, values: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SweepError(
            where=f'{path}, {what}',
            expected=f'a mapping with the fields {", ".join(fields)}',
            found=f'{values!r:.200}',
        )
    for name, value in values.items():
        if name not in fields:
            raise SweepError(
                where=f'{path}, {what}',
                expected=f'only the fields {", ".join(fields)}',
                found=repr(name),
                advice='remove or rename this field',
            )
        kind = fields[name]
        if kind is float and type(value) is int:
            values[name] = value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SweepError(
                where=f'{path}, {what}, {name!r}',
                expected=f'a value of type {kind.__name__}',
                found=f'{value!r:.200}',
            )
    return dict(values)


def _variant(path: str, values: Any) -> Variant:
    fields = _mapping(path, 'a pooling', values, {'feature': str, 'pooling': list})
    pooling = tuple(str(command) for command in fields.get('pooling', ()))
    parse_pooling(list(pooling))
    return Variant(fields.get('feature'), pooling)


def _subset(path: str, name: Any, patterns: Any) -> Subset:
    if not isinstance(name, str) or not _SUBSET_NAME.fullmatch(name):
        raise SweepError(
            where=f"{path}, 'subsets'",
            expected='names of letters, digits, "_" and "-"',
            found=repr(name),
        )
    if (
        not isinstance(patterns, list)
        or not patterns
        or not all(isinstance(pattern, str) and pattern for pattern in patterns)
    ):
        raise SweepError(
            where=f'{path}, subset {name!r}',
            expected="a list of task names or patterns, such as 'widowx_*'",
            found=f'{patterns!r:.200}',
        )
    return Subset(name, tuple(patterns))


def _family(path: str, values: Any) -> Family:
    fields = _mapping(path, 'a detector', values, {'name': str, 'fixed': dict, 'grid': dict})
    if 'name' not in fields:
        raise SweepError(
            where=f'{path}, a detector', expected="the field 'name'", found=f'{values!r:.200}'
        )
    grid = fields.get('grid', {})
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise SweepError(
                where=f'{path}, {fields["name"]}, {name!r}',
                expected='a list of values',
                found=f'{choices!r:.200}',
            )
    found = []
    for chosen in itertools.product(*grid.values()):
        params = {**fields.get('fixed', {}), **dict(zip(grid, chosen, strict=True))}
        try:
            # Check the name now. Otherwise the error would only appear after a long training.
            make_detector(fields['name'], **params)
        except DetectorError as error:
            raise SweepError(f'{path}: {error}') from error
        found.append(params)
    return Family(fields['name'], tuple(found))
