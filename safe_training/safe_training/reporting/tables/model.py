# SPDX-License-Identifier: Apache-2.0
"""The model of a table; writers turn it into text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What one cell shows: a number in percent with its spread, or text."""

    text: str = '-'
    spread: str = ''
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A heading, and the heading above it that it shares with its neighbours."""

    heading: str
    over: str = ''


@dataclass(frozen=True)
class TableRow:
    """One method."""

    group: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of methods in groups.

    ``warning`` is what nobody must overlook: where notes may go unseen it stands in the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    warning: str = ''
