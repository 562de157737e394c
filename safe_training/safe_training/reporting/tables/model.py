# SPDX-License-Identifier: Apache-2.0
"""A table of results as data; one writer for each format converts it to text.

Builders (`aggregated`, `exact`, `evaluation`, `bands`, `page.tables`) depend on results, but not on
formats. Writers (`terminal`, `markdown`, `latex`, `csv`, `html`) depend on formats, but not on
results. Text in a table may be untrusted: each writer escapes it for its format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safe_training.reporting.numbers import MISSING, percent
from vla_feature_bridge.errors import SafeError


class TableError(SafeError):
    """A table cannot be made from the results. The message contains what was found."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes
    ----------
    text : str
        Displayed text: a name, a number, or `MISSING`.
    spread : str
        Standard deviation of the number; empty without one.
    detail : str
        Text in brackets after the number, such as '1 of 2'.
    emphasis : bool
        True if the cell is the best of its column.
    flag : str
        Warning for the cell as one word, such as 'above'; empty if there is no warning.
    value : float or str or None
        Exact value for programs; None uses the text.
    """

    text: str = MISSING
    spread: str = ''
    detail: str = ''
    emphasis: bool = False
    flag: str = ''
    value: float | str | None = None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    title : str
    over : str
        Common title above several neighbouring columns; empty if there is no common title.
    narrow : str
        Title for a terminal, broken into short lines; empty: ``title``.
    align : {'left', 'right'}
        'left' for names, 'right' for numbers.
    explanation : str
        Meaning of the numbers, for formats that can show it beside the title.
    """

    title: str
    over: str = ''
    narrow: str = ''
    align: Literal['left', 'right'] = 'right'
    explanation: str = ''


@dataclass(frozen=True)
class TableRow:
    """One row; rows of one group follow each other.

    Attributes
    ----------
    cells : tuple of Cell
        One for each column of the table.
    group : str
        Empty in tables without groups.
    """

    cells: tuple[Cell, ...]
    group: str = ''


@dataclass(frozen=True)
class ResultTable:
    """A table of results.

    Attributes
    ----------
    title : str
    columns : tuple of Column
        The first column contains the names of the rows.
    rows : tuple of TableRow
    notes : tuple of str
        Meaning of the numbers, and missing numbers. Writers wrap long lines.
    warning : str
        Important warning. It is shown inside the table, because notes are easily overlooked.
    group_title : str
        Title of the column of groups, if rows have groups.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    warning: str = ''
    group_title: str = ''

    @property
    def has_groups(self) -> bool:
        """True if rows belong to groups."""
        return any(row.group for row in self.rows)


def name_columns(*titles: str) -> tuple[Column, ...]:
    """Return columns of names."""
    return tuple(Column(title, align='left') for title in titles)


def rate_cell(
    rate: float | None,
    std: float | None = None,
    *,
    decimals: int = 1,
    detail: str = '',
    flag: str = '',
) -> Cell:
    """Return a cell that shows a rate in percent, with its standard deviation if it has one."""
    spread = '' if std is None else percent(std, decimals)
    return Cell(percent(rate, decimals), spread, detail, flag=flag, value=rate)


def steps_cell(
    steps: float | None, std: float | None = None, *, detail: str = '', flag: str = ''
) -> Cell:
    """Return a cell that shows a number of steps, with its standard deviation if it has one."""
    spread = '' if std is None else _decimal(std)
    return Cell(_decimal(steps), spread, detail, flag=flag, value=steps)


def _decimal(value: float | None) -> str:
    return MISSING if value is None or value != value else f'{value:.1f}'


def count_cell(count: int) -> Cell:
    """Return a cell that shows a count."""
    return Cell(str(count), value=count)


def interval_cell(low: float | None, high: float | None) -> Cell:
    """Return a cell that shows the interval of a rate in percent."""
    shown = f'{percent(low)} to {percent(high)}'
    return Cell() if percent(low) == MISSING else Cell(shown)


def group_starts(rows: Sequence[TableRow]) -> list[bool]:
    """Return for each row True if it is the first row of its group."""
    return [index == 0 or row.group != rows[index - 1].group for index, row in enumerate(rows)]
