# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of results folders, in each format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from safe_training.evaluation.protocol import SelectOn
from safe_training.reporting.tables.aggregated import (
    NO_RESULTS,
    paper_table,
    results_by_kind,
    robust_tables,
    task_tables,
)
from safe_training.reporting.tables.csv import to_csv
from safe_training.reporting.tables.entries import entries, paper_entries, robust_entry
from safe_training.reporting.tables.exact import exact_table
from safe_training.reporting.tables.latex import to_latex
from safe_training.reporting.tables.markdown import to_markdown
from safe_training.reporting.tables.model import ResultTable, TableError
from safe_training.sweep.results import Result


@dataclass(frozen=True)
class ProtocolTables:
    """The tables of one protocol.

    Attributes
    ----------
    shown : tuple of ResultTable
        Tables for people: rounded, in percent.
    exact : ResultTable
        Table for programs: every number.
    """

    shown: tuple[ResultTable, ...]
    exact: ResultTable

    def texts(self) -> dict[str, str]:
        """Return the tables as text, by format: 'markdown', 'latex', and all numbers as 'csv'."""
        return {
            'markdown': '\n'.join(to_markdown(table) for table in self.shown),
            'latex': '\n'.join(to_latex(table) for table in self.shown),
            'csv': to_csv(self.exact),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return every number as JSON values, one mapping of column to value for each row."""
        titles = [column.title for column in self.exact.columns]
        return [
            {title: cell.value for title, cell in zip(titles, row.cells, strict=True)}
            for row in self.exact.rows
        ]


def tables_of_results(
    results: Sequence[Result],
    *,
    with_paper: bool,
    select_on: SelectOn = 'seen',
    by_task: bool = False,
) -> dict[str, ProtocolTables]:
    """Return the tables of each protocol, by its name.

    Raises
    ------
    TableError
        There are no results, or no results of the published protocol although it is requested.
    """
    made: dict[str, ProtocolTables] = {}
    if with_paper:
        found, _ = paper_entries(results, select_on)
        made['paper'] = ProtocolTables((paper_table(results, select_on),), exact_table(found))
    for kind, members in results_by_kind(results).items():
        found = entries(members, partial(robust_entry, select_on=select_on))
        shown = robust_tables(members, select_on)
        if by_task:
            shown += task_tables(members, select_on)
        made[kind] = ProtocolTables(tuple(shown), exact_table(found))
    if not made:
        raise TableError(NO_RESULTS)
    return made
