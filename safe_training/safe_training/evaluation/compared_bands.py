# SPDX-License-Identifier: Apache-2.0
"""The bands that ``compare-bands`` compares: the kinds of bands, and variants of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safe_training.calibration.kinds import KINDS


@dataclass(frozen=True)
class ComparedBand:
    """One row of the comparison: a kind of band and other changes of the default protocol.

    Attributes
    ----------
    title, promise : str
        Name in tables, and one sentence that describes the promise.
    changes : mapping
        Fields of :class:`Protocol` that make this band.
    moves : bool
        True if the threshold is updated by the label of every episode.
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
        'The false-alarm rate is higher than promised if there are few successes. Use this band '
        'only for comparison with published numbers.',
        {'modulation': 'max_deviation', 'quantile': 'published'},
    ),
    **{name: _of_kind(name) for name in KINDS if name != 'max_deviation'},
    'per-task': ComparedBand(
        'one threshold for each task',
        'Within each task that has its own band, at most a share alpha of new successes raises an '
        'alarm.',
        {'modulation': 'none', 'per_task': True},
    ),
    'loto': ComparedBand(
        'one threshold, left-out scores',
        'An estimate for new tasks. The band is calibrated on scores of detectors that were fitted '
        'without the task. There is no finite-sample promise.',
        {'modulation': 'none', 'calibrate_on': 'loto'},
    ),
    'moving': ComparedBand(
        'one threshold, updated by labels',
        'In the long run, a share alpha of the successes raises an alarm, if every success is '
        'labelled.',
        moves=True,
    ),
}
"""Compared bands, by their name in options."""
