# SPDX-License-Identifier: Apache-2.0
"""Finds missing results of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_training.evaluation.saved_splits import split_numbers
from safe_training.sweep.folder import SweepFacts, read_facts
from safe_training.sweep.grid import SweepError
from safe_training.sweep.results import Result


def unfinished(
    folders: Sequence[Path], results: Sequence[Result], protocol: str | None = None
) -> list[str]:
    """Return one line for each sweep with missing results.

    Parameters
    ----------
    folders : sequence of Path
        Results folders.
    results : sequence of Result
        The results of these folders. They are used only for a folder without a manifest, because
        its detectors are not known.
    protocol : str, optional
        Check only sweeps of this protocol. The default is all sweeps.
    """
    lines = []
    for folder in folders:
        try:
            facts = read_facts(folder)
        except SweepError as error:
            lines.append(str(error))
            continue
        if facts is not None and protocol not in (None, facts.protocol):
            continue
        for path in sorted(folder.glob('splits*.json')):
            planned = set(split_numbers(path))
            subset = path.stem.removeprefix('splits').removeprefix('-')
            if facts is not None and facts.detectors:
                of_each = _planned(facts, subset, planned)
                done = _finished(folder, of_each, subset)
            else:
                done = _with_results(results, subset, planned)
                of_each = dict.fromkeys(done, planned)
            lines += _lines(f'{folder}{f" ({subset})" if subset else ""}', done, of_each)
    return lines


def _planned(facts: SweepFacts, subset: str, saved: set[int]) -> dict[str, set[int]]:
    """Return the planned splits of each detector; all saved splits if the manifest has none."""
    known = facts.planned.get(subset, {})
    return {name: set(known.get(name, saved)) for name in facts.detectors}


def _finished(folder: Path, planned: dict[str, set[int]], subset: str) -> dict[str, set[int]]:
    """Return the splits on which each detector of a sweep has a finished unit.

    A unit writes its file also if all its configurations were left out.
    """
    middle = f'-{subset}-split' if subset else '-split'
    return {
        name: {n for n in numbers if any(folder.glob(f'{name}{middle}{n}-*.parquet'))}
        for name, numbers in planned.items()
    }


def _with_results(results: Sequence[Result], subset: str, planned: set[int]) -> dict[str, set[int]]:
    """Return the splits on which each detector has results."""
    done: dict[str, set[int]] = {}
    for result in results:
        if (result.subset or '') == subset and result.split in planned:
            done.setdefault(result.detector, set()).add(result.split)
    return done


def _lines(where: str, done: dict[str, set[int]], planned: dict[str, set[int]]) -> list[str]:
    found = [
        f'{how_many} for {", ".join(sorted(names))}'
        for how_many, names in (
            ('fewer', [name for name in done if done[name] and done[name] != planned[name]]),
            ('none', [name for name in done if not done[name]]),
        )
        if names
    ]
    if not found:
        return []
    counts = sorted({len(numbers) for numbers in planned.values()}, reverse=True)
    return [
        f'{where}: expected results of {" or ".join(map(str, counts))} splits, found '
        f'{" and ".join(found)}; the tables show only finished results. To finish the sweep, run '
        'the same `sweep` command again'
    ]
