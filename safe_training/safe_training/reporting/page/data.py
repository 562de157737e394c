# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a report page as JSON that its script draws."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from safe_training.metrics.scored import OUTCOMES, ScoredRollout
from safe_training.reporting.page.videos import PageVideo

#: A browser opens a page with more rollouts or more scores slowly.
MOST_ROLLOUTS = 5_000
MOST_SCORES = 1_000_000


def listed_rollouts(scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
    """Return the rollouts that the page lists, in the given order.

    If there are too many, misses come first, then false alarms, detections and quiet successes.
    """
    kept: list[int] = []
    scores = 0
    for number in sorted(range(len(scored)), key=lambda n: OUTCOMES.index(scored[n].outcome)):
        scores += len(scored[number])
        if kept and (len(kept) >= MOST_ROLLOUTS or scores > MOST_SCORES):
            break
        kept.append(number)
    return [scored[number] for number in sorted(kept)]


def rollout_data(
    scored: Sequence[ScoredRollout], videos: Mapping[str, PageVideo], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the data that the page draws, as JSON values.

    Parameters
    ----------
    videos : mapping of episode id to PageVideo
    names : mapping of episode id to str
        Id of the page element with the video; only for embedded videos.
    """
    longest = max(len(j.scores) for j in scored)
    # Many rollouts have the same band. Each band is written once, and rollouts refer to it by its
    # number.
    numbers: dict[bytes, int] = {}
    bands: list[np.ndarray] = []
    band_of = []
    for j in scored:
        edge = j.required_threshold.upper[:longest]
        if numbers.setdefault(edge.tobytes(), len(bands)) == len(bands):
            bands.append(edge)
        band_of.append(numbers[edge.tobytes()])
    finite = [edge[np.isfinite(edge)] for edge in bands]
    every = np.concatenate([*(j.scores for j in scored), *finite, [0.0]])
    low, high = float(every.min()), float(every.max())
    return {
        'bands': [_numbers(edge) for edge in bands],
        'longest': longest,
        'low': low,
        'high': high if high > low else low + 1.0,
        'rollouts': [
            {
                'id': j.episode_id,
                'task': j.task,
                'instruction': j.required_rollout.instruction,
                'part': j.part,
                'failed': j.failed,
                'band': band,
                'verdict': j.outcome,
                'scores': _numbers(j.scores),
                'alarm': j.alarm_step,
                'failure': j.failure_step,
                'video': _video(videos.get(j.episode_id), names.get(j.episode_id)),
            }
            for j, band in zip(scored, band_of, strict=True)
        ],
    }


def script_json(value: Any) -> Markup:
    """Return JSON that can be embedded in a script element.

    It can neither end the element nor start a comment.
    """
    text = json.dumps(value, allow_nan=False, separators=(',', ':'))
    for character in '<>&':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return Markup(text)


def _video(video: PageVideo | None, element: str | None) -> dict[str, Any] | None:
    if video is None:
        return None
    return {
        'embedded': element,
        'path': video.path,
        'type': video.media_type,
        'times': video.times,
        'note': video.note,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON, rounded to 6 digits, which is enough for a curve.

    Infinite numbers become None.
    """
    return [float(f'{v:.6g}') if math.isfinite(v) else None for v in values.tolist()]
