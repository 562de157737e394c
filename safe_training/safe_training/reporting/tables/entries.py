# SPDX-License-Identifier: Apache-2.0
"""The entries of tables: the chosen combination of each method, and its numbers.

A method is a detector. A combination is a detector with parameters and features. `paper_entry`
chooses the combination with the highest mean ROC-AUC on the held-out rollouts of the seen tasks,
and reports the same numbers, as in the paper. `robust_entry` chooses on each split by the seen
tasks of the split, and reports the numbers of the chosen combination on the unseen tasks. The
unseen tasks were not used for the choice.

Both can choose on the unseen tasks instead, as some papers did. Then the reported numbers are the
numbers used for the choice. Each table with such numbers must contain a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from safe_monitor_node.detectors.registry import ENTRIES, OTHERS
from safe_training.evaluation.protocol import SelectOn
from safe_training.evaluation.summary import Summary, summaries
from safe_training.reporting.tables.measures import HEADLINE, MACRO
from safe_training.reporting.tables.model import TableError
from safe_training.sweep.results import Result


@dataclass(frozen=True)
class Combination:
    """Parameters and features of one run of a method."""

    params: str
    feature: str


@dataclass(frozen=True)
class Entry:
    """One method on one benchmark.

    Attributes
    ----------
    benchmark, detector : str
    protocol : str
        Protocol of the results, see `results.Result`.
    select_on : {'seen', 'unseen'}
        Part that was used for the choice.
    combinations : int
        Number of combinations to choose among.
    chosen : dict of split to Combination
        The reported combination: one for all splits (paper) or one for each split (robust).
    splits : int
        Number of splits with results; a number may exist on fewer.
    values : dict of str to Summary
        Numbers over splits, named ``part/metric`` such as
        ``unseen/roc_auc_max_score_until_min_length``.
    parts : dict of part to tuple of Result
        The results of the reported combinations.
    """

    benchmark: str
    detector: str
    protocol: str
    select_on: SelectOn
    combinations: int
    chosen: dict[int, Combination]
    splits: int
    values: dict[str, Summary]
    parts: dict[str, tuple[Result, ...]]


# [combination][split][part] -> result
_Runs = dict[Combination, dict[int, dict[str, Result]]]


def paper_entry(results: Sequence[Result], select_on: SelectOn = 'seen') -> Entry | None:
    """Return the entry of a method, chosen as in the paper, from all its results on one benchmark.

    The chosen combination has the highest mean over splits on the part ``select_on``. If several
    are equal, the first is chosen. A combination without results on all splits is excluded, because
    its mean is over different splits. Return None if no combination has a number on the part
    ``select_on``.
    """
    runs = _runs(results)
    scores = {
        combination: _existing(_number(parts, select_on, HEADLINE) for parts in splits.values())
        for combination, splits in runs.items()
    }
    most = max(len(values) for values in scores.values())
    if most == 0:
        return None
    complete = {c: float(np.mean(v)) for c, v in scores.items() if len(v) == most}
    best = max(sorted(complete, key=_order), key=complete.__getitem__)
    seeds = sorted(runs[best])
    return Entry(
        benchmark=results[0].benchmark,
        detector=results[0].detector,
        protocol=results[0].protocol,
        select_on=select_on,
        combinations=len(complete),
        chosen=dict.fromkeys(seeds, best),
        splits=len({seed for splits in runs.values() for seed in splits}),
        **_reported([runs[best][seed] for seed in seeds]),
    )


def robust_entry(results: Sequence[Result], select_on: SelectOn = 'seen') -> Entry | None:
    """Return the entry of a method on one benchmark; the combination is chosen inside each split.

    A split is excluded if it has several combinations and no combination has a number on the part
    ``select_on``. Return None if all splits are excluded.
    """
    runs = _runs(results)
    chosen: dict[int, Combination] = {}
    seeds = sorted({seed for splits in runs.values() for seed in splits})
    for seed in seeds:
        there = [c for c in sorted(runs, key=_order) if seed in runs[c]]
        for metric in (MACRO, HEADLINE):
            scores = {c: _number(runs[c][seed], select_on, metric) for c in there}
            existing = [c for c in there if not math.isnan(scores[c])]
            if existing:
                chosen[seed] = max(existing, key=scores.__getitem__)
                break
        else:
            if len(there) == 1:
                chosen[seed] = there[0]
    if not chosen:
        return None
    return Entry(
        benchmark=results[0].benchmark,
        detector=results[0].detector,
        protocol=results[0].protocol,
        select_on=select_on,
        combinations=len(runs),
        chosen=chosen,
        splits=len(seeds),
        **_reported([runs[chosen[seed]][seed] for seed in sorted(chosen)]),
    )


def paper_entries(
    results: Sequence[Result], select_on: SelectOn = 'seen'
) -> tuple[list[Entry], list[str]]:
    """Return the entries of the published protocol, and notes about them for users.

    Raises
    ------
    TableError
        There are no results of this protocol, or no method can be compared.
    """
    published = [result for result in results if result.protocol == 'paper']
    if not published:
        raise TableError(
            where='results',
            expected='results of the published protocol',
            found='none',
            advice='run `sweep --protocol paper` first',
        )
    averaged, notes = over_subsets(published)
    found = entries(averaged, partial(paper_entry, select_on=select_on))
    if not found:
        raise TableError(
            where='results',
            expected=f'a method with a ROC-AUC on {select_on} tasks, to choose its parameters',
            found='none',
            advice=' '.join(
                ['record tasks with both outcomes, or run the sweep on all subsets.', *notes]
                if notes
                else ['record tasks with both outcomes']
            ),
        )
    return found, notes


def over_subsets(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Average results of one protocol over the subsets of a benchmark, within each split.

    The published SimplerEnv column is such a mean: the tasks of two robots were split, trained on
    and evaluated separately. A combination is averaged on a split only if it has results on all
    subsets of the benchmark. Other splits are excluded, because their mean would be over different
    tasks. A number that is missing in one subset is NaN.

    Returns
    -------
    results : list of Result
        Unchanged results of benchmarks without subsets, followed by the means.
    notes : list of str
        Notes about the subsets of each mean and about excluded results.

    Raises
    ------
    TableError
        A benchmark has results for all tasks and also results for subsets.
    """
    subsets: dict[str, list[str]] = {}
    for result in results:
        there = subsets.setdefault(result.whole, [])
        if result.subset not in there:
            there.append(result.subset)
    kept = [result for result in results if subsets[result.whole] == ['']]
    notes = []
    for whole, names in sorted(subsets.items()):
        if names == ['']:
            continue
        if '' in names:
            raise TableError(
                where=whole,
                expected='results of all tasks, or results of subsets',
                found=f'results of all tasks and of the subsets {", ".join(n for n in names if n)}',
                advice='make a table from only one of the two kinds of results',
            )
        means, note = _means(whole, sorted(names), [r for r in results if r.whole == whole])
        kept += means
        notes.append(note)
    return kept, notes


def _means(
    whole: str, subsets: Sequence[str], results: Sequence[Result]
) -> tuple[list[Result], str]:
    # [detector, params, feature, split][part][subset]
    runs: dict[tuple[str, str, str, int], dict[str, dict[str, Result]]] = {}
    for r in results:
        parts = runs.setdefault((r.detector, r.params, r.feature, r.split), {})
        parts.setdefault(r.part, {})[r.subset] = r
    means: list[Result] = []
    lacking: dict[str, int] = {}
    for (detector, *_), parts in runs.items():
        whole_parts = [there for there in parts.values() if len(there) == len(subsets)]
        if not whole_parts:
            lacking[detector] = lacking.get(detector, 0) + 1
        for there in whole_parts:
            # Use a fixed order, so that rounding does not depend on the order of the files.
            values = [there[subset].values for subset in subsets]
            mean = {
                name: sum(v.get(name, math.nan) for v in values) / len(values)
                for name in dict.fromkeys(name for v in values for name in v)
            }
            tasks = {task: v for subset in subsets for task, v in there[subset].tasks.items()}
            means.append(replace(there[subsets[0]], benchmark=whole, values=mean, tasks=tasks))
    if len(subsets) == 1:
        return means, f'{whole}: only the subset {subsets[0]} has results.'
    note = (
        f'{whole}: mean over the subsets {", ".join(subsets)} within each split. Each subset was '
        'split, trained on and evaluated separately.'
    )
    if lacking:
        total = {d: sum(key[0] == d for key in runs) for d in lacking}
        left_out = ', '.join(f'{d} ({count} of {total[d]} runs)' for d, count in lacking.items())
        note += f' Excluded, because results on some subsets are missing: {left_out}.'
    return means, note


def entries(
    results: Sequence[Result], choose: Callable[[Sequence[Result]], Entry | None]
) -> list[Entry]:
    """Return the entries of all methods and benchmarks, in the order of the table's rows."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.benchmark, result.detector), []).append(result)
    order = {detector: i for i, (_, detector, _) in enumerate(rows_of({d for _, d in grouped}))}
    found = [
        choose(grouped[key]) for key in sorted(grouped, key=lambda k: (k[0], order[k[1]], k[1]))
    ]
    return [entry for entry in found if entry is not None]


def _runs(results: Sequence[Result]) -> _Runs:
    runs: _Runs = {}
    for result in results:
        combination = Combination(result.params, result.feature)
        split = runs.setdefault(combination, {}).setdefault(result.split, {})
        if result.part in split:
            raise TableError(
                where='results',
                expected='each result once',
                found=f'two results of {result.detector} {result.params} on {result.benchmark}, '
                f'split {result.split}, part {result.part}',
                advice='remove one of the two results',
            )
        split[result.part] = result
    return runs


def _order(combination: Combination) -> tuple[str, str]:
    return combination.params, combination.feature


def _existing(values: Iterator[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _number(parts: Mapping[str, Result], part: str, metric: str) -> float:
    """Return a number of one part of a split; NaN if the part or the number does not exist."""
    return parts[part].values.get(metric, np.nan) if part in parts else np.nan


def _reported(splits: Sequence[Mapping[str, Result]]) -> dict[str, Any]:
    """Return the fields `values` and `parts` of an entry."""
    found: dict[str, tuple[Result, ...]] = {}
    for part in sorted({part for split in splits for part in split}):
        found[part] = tuple(split[part] for split in splits if part in split)
    values = {
        f'{part}/{name}': summary
        for part, results in found.items()
        for name, summary in sorted(summaries(results).items())
    }
    return {'values': values, 'parts': found}


def rows_of(present: set[str]) -> list[tuple[str, str, str]]:
    """Return group, detector and title of the rows of a table.

    Rows are in the order of the registry. Detectors that are not registered come last.
    """
    known = [
        (entry.group, detector, entry.title)
        for detector, entry in ENTRIES.items()
        if detector in present
    ]
    return known + [(OTHERS, detector, detector) for detector in sorted(present - set(ENTRIES))]


def group_of(detector: str) -> str:
    """Return the group that a detector is shown in."""
    return ENTRIES[detector].group if detector in ENTRIES else OTHERS
