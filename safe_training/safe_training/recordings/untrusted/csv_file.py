# SPDX-License-Identifier: Apache-2.0
"""Reads a csv file: its header, its rows, and columns of numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safe_training.recordings.errors import COPY_OR_LEAVE_OUT, DumpError
from safe_training.recordings.untrusted.foreign_file import foreign_kind_of


def read_rows(file: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a csv file; empty lines are left out.

    The header of an empty file is empty.

    Raises
    ------
    DumpError
        The file cannot be read, is not UTF-8, or is not csv.
    """
    if kind := foreign_kind_of(file):
        raise DumpError(
            where=str(file), expected='a csv file', found=kind.found, advice=kind.advice
        )
    try:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding='utf-8')), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DumpError(
            where=str(file),
            expected='a readable csv file in UTF-8',
            found=f'the error: {error}',
            advice=COPY_OR_LEAVE_OUT,
        ) from error
    rows = [row for row in rows if row]
    return (rows[0], rows[1:]) if rows else ([], [])


def number_column(
    file: Path, header: Sequence[str], rows: Sequence[Sequence[str]], name: str
) -> np.ndarray:
    """Return one column as float64, shape (rows,); NaN and infinity are numbers here.

    Raises
    ------
    DumpError
        A cell is missing or is no number; the message names row and column.
    """
    column = header.index(name)
    values = np.empty(len(rows))
    for line, row in enumerate(rows):
        try:
            values[line] = float(row[column])
        except (ValueError, IndexError):
            found = repr(row[column][:40]) if column < len(row) else 'a shorter row'
            raise DumpError(
                where=str(file),
                expected=f'a number in row {line + 1} after the header, column {name!r}',
                found=found,
                advice=COPY_OR_LEAVE_OUT,
            ) from None
    return values
