# SPDX-License-Identifier: Apache-2.0
"""Finds missing results of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_training.evaluation.saved_splits import split_numbers
from safe_training.sweep.results import Result


def unfinished(folders: Sequence[Path], results: Sequence[Result]) -> list[str]:
    """Return one line for each sweep with missing results."""
    lines = []
    for folder in folders:
        for path in sorted(folder.glob('splits*.json')):
            planned = set(split_numbers(path))
            subset = path.stem.removeprefix('splits').removeprefix('-')
            done: dict[str, set[int]] = {}
            for result in results:
                if (result.subset or '') == subset and result.split in planned:
                    done.setdefault(result.detector, set()).add(result.split)
            lacking = [name for name, numbers in done.items() if numbers != planned]
            if lacking:
                lines.append(
                    f'{folder}{f" ({subset})" if subset else ""}: expected results of '
                    f'{len(planned)} splits, found fewer for {", ".join(sorted(lacking))}; the '
                    'tables show the splits with results. If the sweep was interrupted, run the '
                    'same command again'
                )
    return lines
