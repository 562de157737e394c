# SPDX-License-Identifier: Apache-2.0
"""Reads header, rows and numbers of a csv file of an editor or a spreadsheet.

These are accepted: a BOM, any line ends, empty lines, blank columns at the right, blank rows at the
end, blanks around a name. These are refused, and the error describes them: separators other than a
comma, a comma in a number, other encodings. They are not guessed, because 0,5 can be one value or
two values.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safe_training.recordings.errors import COPY_OR_LEAVE_OUT, DumpError
from safe_training.recordings.untrusted.text_file import read_text

_MAX_BYTES = 256 << 20
_SEPARATORS = {';': 'semicolons', '\t': 'tabs', '|': 'vertical bars'}
_SAVE_WITH_COMMAS = 'save the file as csv with commas between the values'
_NUMBER = re.compile(
    r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)', re.ASCII | re.IGNORECASE
)
#: Old programs of DOS and Windows write this character at the end of a text.
_DOS_END = '\x1a'
_DECIMAL_COMMA = re.compile(r'[+-]?\d+,\d+([eE][+-]?\d+)?', re.ASCII)


def read_rows(
    file: Path, what: str = 'a csv file', most_bytes: int = _MAX_BYTES
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the rows of a csv file, each row with its line number.

    Empty lines, blank rows at the end and blank columns without a name at the right are left out.
    The header of an empty file is empty.

    Raises
    ------
    DumpError
        The file cannot be read, is too large, is not UTF-8, is not csv, or has another separator.
    """
    text = read_text(file, most_bytes, what).removesuffix(_DOS_END)
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DumpError(
            where=f'{file}, line {reader.line_num}',
            expected=what,
            found=f'text that is not csv ({error})',
            advice='correct the text, for example the quotation marks, and save the file as csv '
            'in UTF-8',
        ) from error
    while lines and not any(cell.strip() for cell in lines[-1][1]):
        lines.pop()
    if not lines:
        return [], []
    header = [name.strip() for name in lines[0][1]]
    _check_separator(file, header, what)
    width = len(header)
    while width and not header[width - 1]:
        width -= 1
    return header[:width], [(n, _without_blank_end(row, width)) for n, row in lines[1:]]


def _without_blank_end(row: list[str], width: int) -> list[str]:
    """Return a row without the blank cells behind the last named column."""
    return row[:width] if not any(cell.strip() for cell in row[width:]) else row


def _check_separator(file: Path, header: list[str], what: str) -> None:
    # With `sep=,` the line has two cells.
    if header[0].startswith('sep=') and not any(header[1:]):
        raise DumpError(
            where=str(file),
            expected=f'{what} with the names of the columns in the first line',
            found=f'the line {",".join(header)[:20]!r}',
            advice='remove this line',
        )
    found = next((name for mark, name in _SEPARATORS.items() if mark in header[0]), None)
    if len(header) == 1 and found:
        raise DumpError(
            where=str(file),
            expected=f'{what} with commas between the values',
            found=f'{found} in the line {header[0][:80]!r}',
            advice=_SAVE_WITH_COMMAS,
        )


def number_column(
    file: Path, header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], name: str
) -> np.ndarray:
    """Return one column as float64, shape (rows,); NaN and infinity are accepted.

    Raises
    ------
    DumpError
        A cell is missing or is not a number; the message names row and column.
    """
    column = header.index(name)
    values = np.empty(len(rows))
    for place, (line, row) in enumerate(rows):
        cell = row[column].strip() if column < len(row) else None
        if cell is None or not _NUMBER.fullmatch(cell):
            found, advice = 'a shorter row', COPY_OR_LEAVE_OUT
            if cell is not None:
                found = repr(cell[:40]) if cell else 'an empty cell'
                if _DECIMAL_COMMA.fullmatch(cell):
                    found += ', a number with a decimal comma'
                    advice = 'save the file with points in the numbers'
            raise DumpError(
                where=f'{file}, line {line}',
                expected=f'a number in row {place + 1} after the header, column {name!r}',
                found=found,
                advice=advice,
            )
        if len(row) > len(header):
            raise DumpError(
                where=f'{file}, line {line}',
                expected=f'{len(header)} values, one value for each column',
                found=f'{len(row)} values',
                advice='if the numbers have decimal commas, save the file with points in the '
                f'numbers; otherwise {COPY_OR_LEAVE_OUT}',
            )
        values[place] = float(cell)
    return values
