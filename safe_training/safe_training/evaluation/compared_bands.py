# SPDX-License-Identifier: Apache-2.0
"""The bands that ``compare-bands`` compares: the kinds of bands, and what else can differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safe_training.calibration.kinds import KINDS


@dataclass(frozen=True)
class ComparedBand:
    """One row of the comparison: a kind of band, and what else differs from the default protocol.

    Attributes
    ----------
    title, promise : str
        As tables show it, and what it promises in one sentence.
    changes : mapping
        Fields of :class:`Protocol` that make this band.
    moves : bool
        The threshold moves with the label of every episode.
    """

    title: str
    promise: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    moves: bool = False


def _of_kind(name: str) -> ComparedBand:
    kind = KINDS[name]
    return ComparedBand(kind.title, kind.promise, {'modulation': name})


COMPARED: dict[str, ComparedBand] = {
    'max-deviation': _of_kind('max_deviation'),
    'published': ComparedBand(
        'functional, published quantile',
        'Promises too much for few successes; for comparison with published numbers.',
        {'modulation': 'max_deviation', 'quantile': 'published'},
    ),
    **{name: _of_kind(name) for name in KINDS if name != 'max_deviation'},
    'per-task': ComparedBand(
        'one for each task',
        'At most alpha of new successes of each task alarm, if the task has a band of its own.',
        {'modulation': 'none', 'per_task': True},
    ),
    'loto': ComparedBand(
        'one, left-out scores',
        'A guide to new tasks, calibrated on scores without the task; no finite-sample promise.',
        {'modulation': 'none', 'calibrate_on': 'loto'},
    ),
    'moving': ComparedBand(
        'one, moved by labels',
        'In the long run a share alpha of the successes alarms, if every success is labelled.',
        moves=True,
    ),
}
"""What is compared, by the name that options have for it."""
