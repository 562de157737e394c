# SPDX-License-Identifier: Apache-2.0
"""Writes a table to a terminal, with rich."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safe_training.reporting.tables.model import Cell, ResultTable, TableRow

#: Width of tables that are written to a file or a pipe.
_FILE_WIDTH = 140


def wide_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def print_table(console: Console, table: ResultTable) -> None:
    """Print a table and its notes.

    Notes are wrapped at the width of the console. A table that is wider than the console is printed
    completely, so that no number is truncated.
    """
    shown = _rich_table(table)
    if table.warning:
        console.print(Text(table.warning), style='bold')
    needed = console.measure(shown, options=console.options.update(max_width=10_000)).maximum
    if needed > console.width:
        Console(highlight=False, width=needed, file=console.file).print(shown)
    else:
        console.print(shown)
    for note in table.notes:
        console.print(Text(note), style='dim')


def shortened(name: str, length: int = 40) -> str:
    """Return a name of at most ``length`` characters, so that there is space for the numbers."""
    return name if len(name) <= length else f'{name[: length - 1]}…'


def _rich_table(table: ResultTable) -> Table:
    # Use Text objects, because names can contain text that looks like rich markup.
    shown = Table(
        title=Text(table.title), title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1)
    )
    if table.has_groups:
        shown.add_column(Text(table.group_title), no_wrap=True)
    for column in table.columns:
        title = column.narrow or column.title
        shown.add_column(Text(title), justify=column.align, no_wrap=True)
    for index, row in enumerate(table.rows):
        cells = [_cell(cell) for cell in row.cells]
        if table.has_groups:
            cells.insert(0, Text(row.group))
        shown.add_row(*cells, end_section=_ends_group(table.rows, index))
    return shown


def _ends_group(rows: tuple[TableRow, ...], index: int) -> bool:
    return index + 1 < len(rows) and rows[index + 1].group != rows[index].group


def _cell(cell: Cell) -> Text:
    spread = f'±{cell.spread}' if cell.spread else ''
    detail = f' ({cell.detail})' if cell.detail else ''
    flag = '!' if cell.flag else ''
    return Text(f'{cell.text}{spread}{detail}{flag}', style='bold' if cell.emphasis else '')
