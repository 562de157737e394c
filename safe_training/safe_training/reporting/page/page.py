# SPDX-License-Identifier: Apache-2.0
"""Writes what a detector does on a set as one HTML page that needs no network and no other file.

Everything that comes from data is escaped: text of tables by :func:`html.escape`, the rollouts as
JSON without a single ``<``. The page's content security policy allows its own script and nothing
from elsewhere but videos beside it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.evaluation.judge import by_part
from safe_training.metrics.part_report import report_part
from safe_training.metrics.scored import ScoredRollout, min_lengths
from safe_training.reporting.figures import style as figures
from safe_training.reporting.numbers import percent
from safe_training.reporting.page.tables import (
    evaluation_table,
    moments_table,
    per_task_table,
    promise_table,
    results_section,
    small_print,
)
from safe_training.reporting.video.frames import VideoError, find_video, frame_steps, video_facts

if TYPE_CHECKING:
    from safe_training.reporting.tables.model import Table


_MEDIA_TYPES = {'.mp4': 'video/mp4', '.webm': 'video/webm'}


@dataclass(frozen=True)
class PageVideo:
    """A rollout's video as the page holds it.

    Attributes
    ----------
    path : str
        Where it is, as a URL relative to the page.
    media_type : str
    content : bytes or None
        The file itself, where the page holds it.
    times : tuple of float or None
        When each policy step begins [s]; None spreads the steps evenly.
    note : str
        What a reader must know about it; empty if nothing.
    """

    path: str
    media_type: str
    content: bytes | None
    times: tuple[float, ...] | None
    note: str = ''


def page_videos(
    judged: Sequence[ScoredRollout], folder: Path, page: Path, embed_bytes: int
) -> dict[str, PageVideo]:
    """Find the rollouts' videos and read as many as fit into ``embed_bytes``, in order.

    Returns
    -------
    dict of episode id to PageVideo
        Without the rollouts that have none.
    """
    videos = {}
    left = embed_bytes
    for entry in judged:
        found = find_video(entry.required_rollout, folder)
        if found is None:
            continue
        size = found.stat().st_size
        content = found.read_bytes() if size <= left else None
        left -= 0 if content is None else size
        times, note = _step_times(entry, found)
        videos[entry.episode_id] = PageVideo(
            path=quote(Path(os.path.relpath(found, page.resolve().parent)).as_posix()),
            media_type=_MEDIA_TYPES[found.suffix.lower()],
            content=content,
            times=times,
            note=note,
        )
    return videos


def _step_times(entry: ScoredRollout, path: Path) -> tuple[tuple[float, ...] | None, str]:
    """Return when each step begins in the video; evenly spread where that cannot be known."""
    rollout = entry.required_rollout
    try:
        facts = video_facts(path)
        frames = frame_steps(
            facts.frames, len(rollout), rollout.exec_horizon, rollout.stamps, facts.rate
        )
    except VideoError as error:
        return None, f'Steps are spread evenly over the video: {error}.'
    first = frames.first_frames(len(rollout)) / facts.rate
    note = ''
    if frames.rule == 'stretched':
        note = (
            f'{facts.frames} frames fit neither the steps nor the stamps: '
            'steps are spread evenly over the video.'
        )
    return tuple(round(float(t), 4) for t in first), note


def page(
    title: str,
    loaded: CalibratedDetector,
    judged: Sequence[ScoredRollout],
    drawn: Sequence[tuple[str, str, Figure]],
    videos: Mapping[str, PageVideo],
    results: Sequence[Table] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    judged : sequence of ScoredRollout
        With outcomes, at least one.
    drawn : sequence of (name, what it shows, figure)
    videos : mapping of episode id to PageVideo
    results : sequence of Table
        Tables of sweeps.
    """
    assert loaded.band is not None
    alpha = judged[0].required_threshold.alpha
    stops = min_lengths([j.task for j in judged], [len(j) for j in judged])
    reports = {
        part: report_part(
            members,
            stops,
            loaded.band,
            alpha,
            probability=loaded.detector.gives_probability,
        )
        for part, members in by_part(judged).items()
    }
    where = resources.files('safe_training.reporting.page') / 'template'
    template, style, script = (
        (where / name).read_text('utf-8') for name in ('page.html', 'page.css', 'page.js')
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    held = {e: v for e, v in videos.items() if v.content is not None}
    names = {episode: f'video-{number}' for number, episode in enumerate(held)}
    detector = loaded.detector.name
    fill = {
        'policy': f"default-src 'none'; script-src 'sha256-{digest}'; "
        "style-src 'unsafe-inline'; img-src data:; media-src 'self' file: blob:; "
        "base-uri 'none'; form-action 'none'",
        'title': html.escape(title),
        'summary': html.escape(
            f'Detector {detector} on {len(judged)} rollouts of '
            f'{len({j.task for j in judged})} tasks; '
            f'promised false-alarm rate {percent(alpha)} %.'
        ),
        'style': style,
        'script': script,
        'evaluation': evaluation_table(reports, detector),
        'moments': moments_table(reports),
        'per_task': per_task_table(reports),
        'promise': promise_table(reports, loaded, alpha),
        'results': results_section(results),
        'videos': _video_summary(videos, len(judged)),
        'figures': '\n'.join(_figure(*entry) for entry in drawn),
        'data': _safe_json(_data(judged, videos, names)),
        'embedded': '\n'.join(
            f'<script type="text/plain" id="{names[episode]}">'
            f'{base64.b64encode(video.content or b"").decode()}</script>'
            for episode, video in held.items()
        ),
        'footer': html.escape(
            'Advisory numbers, not a safety certificate. '
            f'Fitted and calibrated as the folder says: {_provenance(loaded)}'
        ),
    }
    # In one pass: what is filled in is not looked at again.
    return re.sub(r'\{\{(\w+)\}\}', lambda match: fill[match[1]], template)


def _data(
    judged: Sequence[ScoredRollout], videos: Mapping[str, PageVideo], names: Mapping[str, str]
) -> dict[str, Any]:
    longest = max(len(j.scores) for j in judged)
    # Few bands serve many rollouts: each is written once, and rollouts name it by its number.
    numbers: dict[bytes, int] = {}
    bands: list[np.ndarray] = []
    band_of = []
    for j in judged:
        edge = j.required_threshold.upper[:longest]
        if numbers.setdefault(edge.tobytes(), len(bands)) == len(bands):
            bands.append(edge)
        band_of.append(numbers[edge.tobytes()])
    finite = [edge[np.isfinite(edge)] for edge in bands]
    every = np.concatenate([*(j.scores for j in judged), *finite, [0.0]])
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
                'video': _video_data(videos.get(j.episode_id), names, j),
            }
            for j, band in zip(judged, band_of, strict=True)
        ],
    }


def _video_data(
    video: PageVideo | None, names: Mapping[str, str], entry: ScoredRollout
) -> dict[str, Any] | None:
    if video is None:
        return None
    return {
        'embedded': names.get(entry.episode_id),
        'path': video.path,
        'type': video.media_type,
        'times': video.times,
        'note': video.note,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON to 6 digits, None where infinite: a curve shows no more."""
    return [float(f'{v:.6g}') if math.isfinite(v) else None for v in values.tolist()]


def _safe_json(value: Any) -> str:
    """Return JSON that ends no script element and starts no comment, whatever it holds."""
    text = json.dumps(value, allow_nan=False, separators=(',', ':'))
    for character in '<>&':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return text


def _video_summary(videos: Mapping[str, PageVideo], rollouts: int) -> str:
    if not videos:
        return ''
    held = sum(v.content is not None for v in videos.values())
    text = f'{len(videos)} of {rollouts} rollouts have a video, {held} in this page'
    beside = len(videos) - held
    if beside:
        text += (
            f'; the other {beside} did not fit and are read from the files beside it: '
            'they are missing where only the page is passed on'
        )
    return small_print(text + '.')


def _figure(name: str, what: str, figure: Figure) -> str:
    picture = base64.b64encode(figures.svg(figure).encode()).decode()
    shown = html.escape(what)
    return (
        f'<figure id="figure-{html.escape(name)}">'
        f'<img loading="lazy" alt="{shown}" src="data:image/svg+xml;base64,{picture}">'
        f'<figcaption>{shown}</figcaption></figure>'
    )


def _provenance(loaded: CalibratedDetector) -> str:
    episodes = loaded.provenance.get('episodes', {})
    counts = ', '.join(f'{len(members)} {part}' for part, members in episodes.items())
    return counts + ' rollouts' if counts else 'nothing recorded'
