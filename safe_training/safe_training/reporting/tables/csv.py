# SPDX-License-Identifier: Apache-2.0
"""Writes table entries as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from safe_training.reporting.tables.entries import GROUPS, OTHERS, Entry


def to_csv(found: Sequence[Entry]) -> str:
    """Write entries as CSV for machines: one line each, exact numbers, empty where there is none.

    Rates are shares of 1, not percent. Notes have no place; ``chosen_on`` is the part of the splits
    that the choice was made on, and says so where it is the one that is reported.
    """
    names = sorted({name for entry in found for name in entry.values})
    fields = ('mean', 'std', 'low', 'high', 'splits')
    groups = {d: group for group, methods in GROUPS.items() for d in methods}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(
        ['benchmark', 'protocol', 'chosen_on', 'group', 'detector', 'combinations', 'splits']
        + ['chosen']
        + [f'{name}:{f}' for name in names for f in fields]
    )
    for entry in found:
        chosen = sorted({f'{c.params} {c.feature}' for c in entry.chosen.values()})
        row: list[object] = [
            entry.benchmark,
            entry.protocol,
            entry.select_on + (' (WHICH IS REPORTED)' if entry.select_on == 'unseen' else ''),
            groups.get(entry.detector, OTHERS),
            entry.detector,
            entry.combinations,
            entry.splits,
            '; '.join(chosen),
        ]
        for name in names:
            summary = entry.values.get(name)
            for f in fields:
                value = getattr(summary, f) if summary else math.nan
                row.append('' if math.isnan(value) else repr(value))
        writer.writerow(row)
    return text.getvalue()
