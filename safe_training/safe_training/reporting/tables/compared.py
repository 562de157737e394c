# SPDX-License-Identifier: Apache-2.0
"""Compares the entries of a table by paired intervals over tasks: bold cells and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safe_training.evaluation.summary import Difference, differences_to_best
from safe_training.reporting.tables.entries import Entry, rows_of
from safe_training.reporting.tables.measures import EARLY, MACRO
from safe_training.reporting.tables.model import Cell
from safe_training.reporting.tables.numbers import difference_lines, fragile_line


def best_marked(cells: Sequence[Cell], of_rows: Sequence[Entry | None], metric: str) -> list[Cell]:
    """Return the cells.

    The best cell is bold, and all cells whose paired interval to the best contains 0.

    If all cells would be bold, no cell is bold, because the tasks do not show which detector is
    better.
    """
    made = _differences(of_rows, metric)
    worse = {difference.second for difference in made if difference.clear}
    if not worse:
        return list(cells)
    marked = {name for d in made for name in (d.first, d.second)} - worse
    return [
        replace(cell, emphasis=entry is not None and entry.detector in marked)
        for cell, entry in zip(cells, of_rows, strict=True)
    ]


def _differences(found: Sequence[Entry | None], metric: str) -> list[Difference]:
    unseen = {entry.detector: entry.parts.get('unseen', ()) for entry in found if entry}
    return differences_to_best(metric, unseen)


def has_tasks(entry: Entry) -> bool:
    """Return True if the results of an entry contain numbers of single tasks."""
    return any(result.tasks for result in entry.parts.get('unseen', ()))


def comparison_notes(found: Sequence[Entry]) -> list[str]:
    """Return notes about the differences to the best detector, and about fragile tasks."""
    titles = {detector: title for _, detector, title in rows_of({e.detector for e in found})}
    notes = [
        '; '.join(lines) + '.'
        for metric in (EARLY, MACRO)
        if (lines := difference_lines(_differences(found, metric), titles))
    ]
    if notes:
        notes.insert(
            0,
            'Differences of the best detector to the others, with their 95 % interval over tasks '
            '(paired). Bold: the best detector, and each detector whose interval of the '
            'difference contains 0; if this is true for all detectors, nothing is bold.',
        )
    fragile = fragile_line([result for e in found for result in e.parts.get('unseen', ())])
    return [*notes, f'{fragile}.'] if fragile else notes
