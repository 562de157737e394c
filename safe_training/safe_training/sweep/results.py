# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations on disk: Parquet files with one row per configuration, split and part.

A results folder is any folder of ``*.parquet`` files. Each evaluation and each unit of a sweep adds
one file; tables read all files of a folder. Columns::

    benchmark  string   name of the rollouts; 'NAME/SUBSET' if a grid divides the tasks of NAME
    protocol   string   'paper', 'robust' or 'loto'
    detector   string   registered name
    params     string   its parameters as JSON with sorted keys, without the detector's seed
    feature    string   which features were given, and how they were pooled
    split      int64    number of the split; for 'loto', number of the unseen task
    part       string   'train', 'seen' or 'unseen'
    per_task   string   numbers of each task as a JSON object, named as in `per_task`, null for a
                        number that does not exist; files up to version 0.2 lack this column
    ...        float64  named as in `flatten_report`; NaN for a number that does not exist
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.evaluation.protocol import PROTOCOLS
from vla_feature_bridge.atomic import replaced_file
from vla_feature_bridge.errors import SafeError

PARTS = ('train', 'seen', 'unseen')
# Separates the name of a benchmark from the name of a subset of its tasks.
SUBSET_MARK = '/'
_TEXT = ('benchmark', 'protocol', 'detector', 'params', 'feature', 'part')
# Names in files of version 0.1, and the current names.
_RENAMED = {
    'seed': 'split',
    **{
        f'{rate}_by_earliest_stop': f'{rate}_until_min_length'
        for rate in ('detection_rate', 'false_alarm_rate', 'balanced_accuracy', 'detection_time')
    },
    **{
        f'{value}_{old}': f'{value}_{new}'
        for value in (
            f'{control}{average}{area}'
            for control in ('', 'clock_')
            for average in ('', 'macro_')
            for area in ('roc_auc', 'average_precision')
        )
        for old, new in (
            ('at_earliest_stop', 'score_at_min_length'),
            ('by_earliest_stop', 'max_score_until_min_length'),
            ('by_end', 'max_score'),
        )
    },
    'brier_at_earliest_stop': 'brier_score_at_min_length',
    'calibration_error_at_earliest_stop': 'calibration_error_score_at_min_length',
}
# The numbers of each task; optional.
_TASKS = 'per_task'
KEY = ('benchmark', 'protocol', 'detector', 'params', 'feature', 'split', 'part')

# Limits far above the size of a real sweep. If the header of a damaged or manipulated file contains
# larger sizes, the file is refused before it is read.
_MOST_ROWS = 5_000_000
_MOST_COLUMNS = 1_000
_MOST_BYTES = 4 << 30


class ResultsError(SafeError):
    """A results folder cannot be read or written. The message contains the name of the file."""


@dataclass(frozen=True)
class Result:
    """One detector configuration on one part of one split.

    Attributes
    ----------
    benchmark : str
        ``NAME/SUBSET`` for a subset of the tasks of NAME that was split and evaluated separately.
    protocol : {'paper', 'robust', 'loto'}
        Published task splits; random task splits; leave-one-task-out, with each task unseen once.
    detector : str
    params : str
        From `canonical`.
    feature : str
        ``str(FeatureSpec)``.
    split : int
        Number of the split; for 'loto', number of the unseen task in sorted order.
    part : {'train', 'seen', 'unseen'}
    values : dict of str to float
        Numbers by name; NaN for a number that does not exist.
    tasks : dict of task to dict of str to float
        The same for each task; empty in results up to version 0.2.
    """

    benchmark: str
    protocol: str
    detector: str
    params: str
    feature: str
    split: int
    part: str
    values: dict[str, float]
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """The benchmark without its subset."""
        return self.benchmark.partition(SUBSET_MARK)[0]

    @property
    def subset(self) -> str:
        """The subset of the benchmark's tasks; empty for results of all tasks."""
        return self.benchmark.partition(SUBSET_MARK)[2]

    @property
    def key(self) -> tuple[Any, ...]:
        """Key of the result. Two results of a table never have the same key."""
        return tuple(getattr(self, name) for name in KEY)


def canonical(params: Mapping[str, Any]) -> str:
    """Return parameters as JSON with sorted keys, without ``seed``.

    Equal parameters give equal text.

    Raises
    ------
    ResultsError
        A value is not JSON.
    """
    kept = {name: value for name, value in params.items() if name != 'seed'}
    try:
        return json.dumps(kept, sort_keys=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ResultsError(
            where='results',
            expected='parameters of numbers, text, lists and mappings',
            found=f'{kept!r} ({error})',
        ) from error


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write one Parquet file, completely or not at all.

    A number that is missing in a result is NaN in its row. If there are no results, a file without
    rows is written to show that the unit has finished.

    Raises
    ------
    ResultsError
        The name does not end in ``.parquet`` (the file would not be found again), a field of a
        result has another type than `Result` says, or two results have the same key.
    OSError
        The file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    if path.suffix != '.parquet':
        raise ResultsError(
            where=str(path),
            expected='a name that ends in .parquet',
            found=repr(path.name),
            advice='choose another name, because results are read from *.parquet',
        )
    seen: dict[tuple[Any, ...], Path] = {}
    for result in results:
        _check(path, result)
        _add_key(seen, path, result)
    names = list(dict.fromkeys(name for result in results for name in result.values))
    for name in set(names) & {*KEY, _TASKS}:
        raise ResultsError(
            where=str(path),
            expected='no number with the name of another column',
            found=f'the name {name!r}',
            advice='rename this number',
        )
    columns: dict[str, Any] = {
        name: pyarrow.array(
            [getattr(result, name) for result in results],
            type=pyarrow.int64() if name == 'split' else pyarrow.string(),
        )
        for name in KEY
    }
    columns[_TASKS] = pyarrow.array([_tasks_text(r.tasks) for r in results], pyarrow.string())
    for name in names:
        values = [float(result.values.get(name, np.nan)) for result in results]
        columns[name] = pyarrow.array(np.array(values, dtype=np.float64))
    with replaced_file(path) as aside:
        parquet.write_table(pyarrow.table(columns), aside)


def read_results(*folders: Path) -> list[Result]:
    """Read every ``*.parquet`` of some folders, in the order of their names.

    Raises
    ------
    ResultsError
        The folder or its files do not exist, a file is not Parquet or has wrong columns, or two
        rows have the same key (they would count as two splits).
    """
    results: list[Result] = []
    seen: dict[tuple[Any, ...], Path] = {}
    for folder in folders:
        for path in _files(Path(folder)):
            for result in _read(path):
                _add_key(seen, path, result)
                results.append(result)
    return results


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        raise ResultsError(
            where=str(folder),
            expected='a results folder',
            found='a file',
            advice='give the folder of this file',
        )
    if not folder.is_dir():
        raise ResultsError(
            where=str(folder),
            expected='a results folder',
            found='nothing',
            advice='check the path',
        )
    files = sorted(p for p in folder.glob('*.parquet') if not p.name.startswith('.'))
    if not files:
        raise ResultsError(
            where=str(folder),
            expected='*.parquet files',
            found='none',
            advice='give a folder that `sweep --out` or `evaluate --out` wrote',
        )
    return files


def _read(path: Path) -> list[Result]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=False) as file:
            _check_size(path, file)
            table = file.read()
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise ResultsError(
            where=str(path),
            expected='a Parquet file of results',
            found=f'a damaged file ({error})',
            advice='move this file to another folder, and run the command that wrote it again',
        ) from error
    names = [_RENAMED.get(name, name) for name in table.column_names]
    missing = [name for name in KEY if name not in names]
    if missing or len(set(names)) != len(names):
        what = f'without {", ".join(missing)}' if missing else 'with the same name twice'
        raise ResultsError(
            where=str(path),
            expected=f'the columns {", ".join(KEY)} and columns of numbers',
            found=f'columns {what}',
            advice='move this file to another folder, because it is not a results file',
        )
    table = table.rename_columns(names)
    columns = {name: _column(path, name, table.column(name)) for name in names}
    values = [name for name in names if name not in KEY and name != _TASKS]
    results = []
    for row in range(table.num_rows):
        result = Result(
            **{name: columns[name][row] for name in KEY},
            values={name: columns[name][row] for name in values},
            tasks=_tasks(path, columns[_TASKS][row]) if _TASKS in columns else {},
        )
        _check(path, result)
        results.append(result)
    return results


def _check_size(path: Path, file: Any) -> None:
    rows, columns = file.metadata.num_rows, len(file.schema_arrow)
    size = sum(
        file.metadata.row_group(index).total_byte_size
        for index in range(file.metadata.num_row_groups)
    )
    if rows > _MOST_ROWS or columns > _MOST_COLUMNS or size > _MOST_BYTES:
        raise ResultsError(
            where=str(path),
            expected=f'at most {_MOST_ROWS} rows, {_MOST_COLUMNS} columns and {_MOST_BYTES} bytes',
            found=f'a header with {rows} rows, {columns} columns and {size} bytes',
            advice='write the results again',
        )


def _column(path: Path, name: str, column: Any) -> list[Any]:
    from pyarrow import types

    kind = column.type
    if name in (*_TEXT, _TASKS):
        fits, wanted = types.is_string(kind) or types.is_large_string(kind), 'text'
    elif name == 'split':
        fits, wanted = types.is_int64(kind), 'int64'
    else:
        fits, wanted = types.is_floating(kind) or types.is_integer(kind), 'numbers'
    if not fits or (column.null_count and name in (*KEY, _TASKS)):
        found = 'empty cells' if fits else str(kind)
        raise ResultsError(where=f'{path}, column {name!r}', expected=wanted, found=found)
    if name in (*KEY, _TASKS):
        return list(column.to_pylist())
    return [np.nan if value is None else float(value) for value in column.to_pylist()]


def _tasks_text(tasks: Mapping[str, Mapping[str, float]]) -> str:
    """Return the numbers of each task as JSON, in which a NaN is null."""
    plain = {
        task: {name: None if value != value else float(value) for name, value in values.items()}
        for task, values in tasks.items()
    }
    return json.dumps(plain, allow_nan=False)


def _tasks(path: Path, text: str) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(text)
        return {
            task: {name: np.nan if v is None else float(v) for name, v in values.items()}
            for task, values in found.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(
            where=f'{path}, column {_TASKS!r}',
            expected='numbers of each task as a JSON object',
            found=f'{text!r:.80}',
            advice='move this file to another folder, and run the command that wrote it again',
        ) from error


def _check(path: Path, result: Result) -> None:
    for name in KEY:
        kind = int if name == 'split' else str
        if type(getattr(result, name)) is not kind:
            raise ResultsError(
                where=f'{path}, {name}',
                expected=f'a value of type {kind.__name__}',
                found=repr(getattr(result, name)),
            )
    for name, allowed in (('protocol', PROTOCOLS), ('part', PARTS)):
        found = getattr(result, name)
        if found not in allowed:
            raise ResultsError(
                where=f'{path}, {name}',
                expected=f'one of {", ".join(allowed)}',
                found=repr(found),
            )
    try:
        params = json.loads(result.params)
    except (ValueError, TypeError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise ResultsError(
            where=f'{path}, params of {result.detector!r}',
            expected='a JSON object such as {"epochs": 100}',
            found=f'{result.params!r:.200}',
        )


def _add_key(seen: dict[tuple[Any, ...], Path], path: Path, result: Result) -> None:
    if result.key in seen:
        raise ResultsError(
            where=str(path),
            expected='each result once',
            found=f'the same result also in {seen[result.key]}: {result.detector} '
            f'{result.params} ({result.feature}) on {result.benchmark}, {result.protocol}, '
            f'split {result.split}, part {result.part}',
            advice='remove one of the two results',
        )
    seen[result.key] = path


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} is not JSON')
