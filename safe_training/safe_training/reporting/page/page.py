# SPDX-License-Identifier: Apache-2.0
"""Writes the results of a detector on a set as one HTML page.

The page needs no network and no other file.

All data is escaped: text and tables by the templates, and rollouts as JSON without any ``<``. The
content security policy of the page allows only its own script, and videos in the same folder.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.evaluation.judge import JudgedSet
from safe_training.reporting.figures.catalogue import DrawnFigure
from safe_training.reporting.figures.style import svg
from safe_training.reporting.numbers import percent
from safe_training.reporting.page.data import listed_rollouts, rollout_data, script_json
from safe_training.reporting.page.tables import (
    evaluation_table,
    evaluation_times_table,
    per_task_table,
    promise_table,
    summary_text,
)
from safe_training.reporting.page.videos import PageVideo
from safe_training.reporting.tables.html import environment, to_html
from safe_training.reporting.tables.model import ResultTable

_PACKAGE = 'safe_training.reporting.page'
_CURVE_PACKAGE = 'safe_monitor_node.looking'
# Tables with more rows than this number are folded.
_MOST_UNFOLDED = 12


def page(
    title: str,
    judged: JudgedSet,
    drawn: Sequence[DrawnFigure],
    videos: Mapping[str, PageVideo],
    results: Sequence[ResultTable] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    judged : JudgedSet
        At least one rollout; each has a label.
    drawn : sequence of DrawnFigure
    videos : mapping of episode id to PageVideo
        Videos of rollouts in :func:`listed_rollouts`.
    results : sequence of ResultTable
        Tables of sweeps.
    """
    loaded, scored = judged.detector, judged.rollouts
    listed = listed_rollouts(scored)
    script, style = (
        # The curve is the curve of the dashboard.
        _file(_CURVE_PACKAGE, f'web/curve.{kind}') + _file(_PACKAGE, f'template/page.{kind}')
        for kind in ('js', 'css')
    )
    embedded = {e: v.content for e, v in videos.items() if v.content is not None}
    elements = {episode: f'video-{number}' for number, episode in enumerate(embedded)}
    return (
        environment(_PACKAGE)
        .get_template('page.html.j2')
        .render(
            policy=_policy(script),
            title=title,
            summary=(
                f'Detector {loaded.detector.name} on {len(scored)} rollouts of '
                f'{len({j.task for j in scored})} tasks; '
                f'promised false-alarm rate {percent(judged.alpha)} %.'
            ),
            first_numbers=summary_text(judged.report()),
            style=style,
            script=script,
            **_tables(judged),
            results=[to_html(table) for table in results],
            n_rollouts=len(scored),
            n_listed=len(listed),
            videos=_video_counts(videos),
            figures=[
                {'name': name, 'title': what, 'picture': _base64(svg(figure).encode())}
                for name, what, figure in drawn
            ],
            data=script_json(rollout_data(listed, videos, elements)),
            embedded=[
                {'id': elements[episode], 'content': _base64(content)}
                for episode, content in embedded.items()
            ],
            footer=(
                'Advisory numbers, not a safety certificate. Provenance in the detector '
                f'folder: {_provenance(loaded)}'
            ),
        )
    )


def _file(package: str, name: str) -> Markup:
    """Return a file of one of our packages. It is trusted and is not escaped."""
    return Markup((resources.files(package) / name).read_text('utf-8'))


def _policy(script: str) -> str:
    """Return the content security policy: it allows this script, inline styles and media."""
    digest = _base64(hashlib.sha256(script.encode()).digest())
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; "
        "style-src 'unsafe-inline'; img-src data:; media-src 'self' file: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _tables(judged: JudgedSet) -> dict[str, Any]:
    reports = judged.report()
    per_task = per_task_table(reports)
    return {
        'evaluation': to_html(evaluation_table(reports, judged.detector.detector.name)),
        'evaluation_times': to_html(evaluation_times_table(reports)),
        'per_task': to_html(per_task),
        'n_task_rows': len(per_task.rows),
        'fold_tasks': len(per_task.rows) > _MOST_UNFOLDED,
        'promise': to_html(promise_table(reports, judged.band, judged.alpha)),
    }


def _video_counts(videos: Mapping[str, PageVideo]) -> dict[str, int]:
    """Return the number of videos in the page and in files; empty without videos."""
    if not videos:
        return {}
    embedded = sum(video.content is not None for video in videos.values())
    return {'total': len(videos), 'embedded': embedded, 'linked': len(videos) - embedded}


def _provenance(loaded: CalibratedDetector) -> str:
    episodes = loaded.provenance.get('episodes', {})
    counts = ', '.join(f'{len(members)} {part}' for part, members in episodes.items())
    return counts + ' rollouts' if counts else 'no episodes'


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
