# SPDX-License-Identifier: Apache-2.0
"""Reads the csv of an OpenVLA episode: one row for each step.

A row holds the executed action, and either the probability and entropy of each token or variances
and cluster entropies over the samples.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from safe_training.recordings.errors import COPY_OR_LEAVE_OUT, LEAVE_OUT, DumpError
from safe_training.recordings.untrusted.csv_file import number_column, read_rows

_ACTIONS = tuple(
    f'action/{name}' for name in ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')
)
_SAMPLE_SIGNALS = (
    'total_var',
    'general_var',
    'pos_var',
    'rot_var',
    'gripper_var',
    'entropy_linkage.01',
    'entropy_linkage.05',
)
#: Columns of the published dumps that are computed from other columns.
_DERIVED = re.compile(r'action/(timestep|dpos|drot|cum_.*|(mean|max|min|avg)_token_(prob|entropy))')
_TOKEN = re.compile(r'action/token_(\d{1,3})_(prob|entropy)')
#: Another spelling of a column, such as ``Action/Token 3 Prob``.
_LIKE_TOKEN = re.compile(
    r'(?:action\W)?\W*token[\W_]*(\d+)[\W_]*(prob|entropy)(?:ability)?', re.IGNORECASE
)


def read_table(file: Path, steps: int | None) -> dict[str, np.ndarray]:
    """Return the columns that are used, each float64 (steps,).

    Parameters
    ----------
    file : Path
    steps : int or None
        The expected number of rows; None allows any number.

    Raises
    ------
    DumpError
        The file is not a csv file, an action column or the column of a token is missing, the
        number of rows is not ``steps``, or a cell is not a number.
    """
    header, rows = read_rows(file)
    missing = [name for name in _ACTIONS if name not in header]
    if missing:
        raise DumpError(
            where=str(file),
            expected=f'the columns {", ".join(missing)}',
            found=f'{len(header)} columns with other names' if header else 'an empty file',
            advice=f'the file is not the csv file of an OpenVLA episode: {COPY_OR_LEAVE_OUT}',
        )
    if steps is None and not rows:
        raise DumpError(
            where=str(file),
            expected='one row for each step',
            found='no row after the header',
            advice=COPY_OR_LEAVE_OUT,
        )
    if steps is not None and len(rows) != steps:
        raise DumpError(
            where=str(file),
            expected=f'{steps} rows, one row for each hidden state in the pickle',
            found=f'{len(rows)} rows',
            advice='the csv file and the pickle belong to different episodes, or one file is '
            'incomplete: copy both files from their source again, or leave the episode out with '
            '--skip-bad',
        )
    used = [name for name in header if name in _ACTIONS or _is_quantity(name)]
    twice = next((name for name in used if used.count(name) > 1), None)
    if twice is not None:
        raise DumpError(
            where=str(file),
            expected='each column once',
            found=f'the column {twice!r} more than once',
            advice=COPY_OR_LEAVE_OUT,
        )
    _check_tokens(file, header)
    table = {name: number_column(file, header, rows, name) for name in used}
    for name in used:
        _check_quantity(file, name, table[name])
    return table


def _check_quantity(file: Path, name: str, values: np.ndarray) -> None:
    """Raise DumpError for NaN in single rows of a quantity; infinity is refused later.

    If the whole column is NaN, the quantity was not measured.
    """
    missing = np.isnan(values)
    if _is_quantity(name) and missing.any() and not (missing.all() and len(values) > 1):
        raise DumpError(
            where=str(file),
            expected=f'numbers in the column {name!r}',
            found=f'NaN at step {int(np.argmax(missing))}',
            advice=LEAVE_OUT,
        )


def _check_tokens(file: Path, header: list[str]) -> None:
    """Raise DumpError unless probability and entropy have columns of the same tokens 0 to n - 1."""
    numbers: dict[str, set[int]] = {}
    for name in header:
        match = _TOKEN.fullmatch(name)
        if match and name != f'action/token_{int(match[1])}_{match[2]}':
            match = None
        if match:
            numbers.setdefault(match[2], set()).add(int(match[1]))
        elif like := _LIKE_TOKEN.fullmatch(name):
            raise DumpError(
                where=str(file),
                expected=f'the column name action/token_{int(like[1])}_{like[2].lower()}',
                found=repr(name[:80]),
                advice='correct the name of the column',
            )
    most = max((max(found) for found in numbers.values()), default=-1)
    for what, found in numbers.items():
        missing = [number for number in range(most + 1) if number not in found]
        if missing:
            raise DumpError(
                where=str(file),
                expected=f'the columns action/token_0_{what} to action/token_{most}_{what}',
                found=f'no column action/token_{missing[0]}_{what}',
                advice=COPY_OR_LEAVE_OUT,
            )


def _is_quantity(name: str) -> bool:
    return name.removeprefix('action/') in _SAMPLE_SIGNALS or bool(_TOKEN.fullmatch(name))


def unknown_columns(file: Path) -> list[str]:
    """Return the columns that are not read, except columns that are computed from other columns."""
    return [
        name
        for name in read_rows(file)[0]
        if name not in _ACTIONS and not _is_quantity(name) and not _DERIVED.fullmatch(name)
    ]


def executed_actions(file: Path, table: dict[str, np.ndarray]) -> np.ndarray:
    """Return the executed actions as (steps, 1 sample, 1 action, 7), float32."""
    actions = np.stack([table[name] for name in _ACTIONS], axis=1).astype(np.float32)
    finite = np.isfinite(actions).all(axis=1)
    if not finite.all():
        raise DumpError(
            where=str(file),
            expected='actions without NaN and infinity',
            found=f'NaN or infinity at step {int(np.argmin(finite))}',
            advice=LEAVE_OUT,
        )
    return actions[:, None, None, :]


def sample_signals(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the variances and entropies over the samples in the csv, float32 (steps,)."""
    return {
        name: table[f'action/{name}'].astype(np.float32)
        for name in _SAMPLE_SIGNALS
        if f'action/{name}' in table
    }


def token_quantity(table: dict[str, np.ndarray], what: str) -> np.ndarray | None:
    """Return one quantity of every token, float32 (steps, tokens).

    None if the csv does not contain it.
    """
    columns: list[np.ndarray] = []
    while (name := f'action/token_{len(columns)}_{what}') in table:
        columns.append(table[name])
    return np.stack(columns, axis=1).astype(np.float32) if columns else None
