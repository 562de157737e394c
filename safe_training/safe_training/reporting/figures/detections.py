# SPDX-License-Identifier: Apache-2.0
"""Figures of features, scores and alarms, drawn with matplotlib; written as PNG, PDF or SVG.

Every function takes plain arrays and returns a figure, to be written with :func:`save` or taken as
text with :func:`svg`. Blue is success, orange-red is failure, green is the band; whatever colour
tells is told by a line style, a marker or words as well.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from safe_training.metrics import LeadTimes
from safe_training.operating_curves import AlphaCurve

# Okabe-Ito: told apart with every kind of colour vision.
FAILURE = '#D55E00'
SUCCESS = '#0072B2'
BAND = '#009E73'
OKABE_ITO = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#000000', '#999999')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
LINE_STYLES = ('-', '--', ':', '-.')

PROJECTORS = ('pca', 'tsne', 'umap')

# Above this many points a vector file draws them as a picture, the axes stay vectors.
_VECTOR_POINTS = 4000
# A spread of fewer curves than this is not drawn: it would be that of a handful.
_FEWEST_FOR_MEAN = 3
_LEGEND_TASKS = 24
# Leads are gathered so that no more bars than this stand side by side.
_MOST_BARS = 30


class FigureError(ValueError):
    """A figure cannot be drawn from this data; the message says what it needs."""


@dataclass(frozen=True, eq=False)
class EpisodeCurve:
    """The score of one episode against its band.

    Attributes
    ----------
    title : str
    scores : ndarray, shape (T,)
    threshold : ndarray, shape (>= T,)
        Upper edge of the band; +inf where there is none.
    failed : bool
    alarm_step : int or None
    """

    title: str
    scores: np.ndarray
    threshold: np.ndarray
    failed: bool
    alarm_step: int | None


@dataclass(frozen=True, eq=False)
class OutcomeCurve:
    """The score of one rollout and how it went.

    Attributes
    ----------
    scores : ndarray, shape (T,)
    failed : bool
    """

    scores: np.ndarray
    failed: bool


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; the file is whole or absent."""
    aside = path.with_name(f'.{path.stem}.partial{path.suffix}')
    undated = {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}.get(path.suffix)
    try:
        with matplotlib.rc_context({'svg.hashsalt': path.stem}):
            figure.savefig(aside, dpi=130, metadata=undated)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def svg(figure: Figure) -> str:
    """Return a figure as SVG that needs no font and no other file."""
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'path', 'svg.hashsalt': 'safe'}):
        figure.savefig(text, format='svg', dpi=110, metadata={'Date': None})
    return text.getvalue()


def plot_episodes(
    path: Path, episodes: Sequence[EpisodeCurve], title: str, columns: int = 3
) -> None:
    """Draw one panel an episode: score, band, alarm over the steps; the file is whole or absent."""
    save(episode_panels(episodes, title, columns), path)


def episode_panels(episodes: Sequence[EpisodeCurve], title: str, columns: int = 3) -> Figure:
    """Draw one panel an episode: score, band, alarm over the policy steps."""
    rows = max(1, math.ceil(len(episodes) / columns))
    figure = Figure(figsize=(4.2 * columns, 2.5 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, episode in zip(axes.flat, episodes, strict=False):
        _draw_episode(axis, episode)
    for axis in axes.flat[len(episodes) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel('failure score')
    for axis in axes.flat[max(0, len(episodes) - columns) : len(episodes)]:
        axis.set_xlabel('policy step')
        axis.tick_params(labelbottom=True)
    figure.suptitle(title)
    _shared_legend(figure, axes.flat[: len(episodes)])
    return figure


def outcome_values(lengths: Sequence[int], failed: Sequence[bool]) -> np.ndarray:
    """Return how far each step of each rollout is on the way to failure.

    Returns
    -------
    ndarray of float64, shape (sum of lengths,)
        0 at every step of a success; from 0 at the first to 1 at the last step of a failure.
    """
    values = [
        np.linspace(0.0, 1.0, length) if f else np.zeros(length)
        for length, f in zip(lengths, failed, strict=True)
    ]
    return np.concatenate(values) if values else np.zeros(0)


def project(features: ArrayLike, projector: str = 'pca', seed: int = 0) -> np.ndarray:
    """Project features to the plane.

    Parameters
    ----------
    features : array_like, shape (N, D)
    projector : {'pca', 'tsne', 'umap'}
        t-SNE and UMAP start from the 50 main components. UMAP needs the package ``umap-learn``.
    seed : int

    Returns
    -------
    ndarray of float64, shape (N, 2)
    """
    from sklearn.decomposition import PCA

    points = np.asarray(features, dtype=np.float64)
    if points.ndim != 2 or points.shape[0] < 3 or points.shape[1] < 2:
        raise FigureError(
            f'a feature map needs features of shape (N >= 3, D >= 2), found {points.shape}'
        )
    if projector == 'pca':
        return np.asarray(PCA(2, random_state=seed).fit_transform(points))
    reduced = PCA(min(50, *points.shape), random_state=seed).fit_transform(points)
    if projector == 'tsne':
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        chart = TSNE(2, random_state=seed, init='pca', perplexity=perplexity)
        return np.asarray(chart.fit_transform(reduced), dtype=np.float64)
    if projector == 'umap':
        try:
            from umap import UMAP
        except ImportError as error:
            raise FigureError(
                'the projector umap needs the package umap-learn, which is not installed; '
                'pip install "umap-learn>=0.5", or take --projector pca or tsne'
            ) from error
        # A seeded chart is made by one thread; asked for, it does not warn about that.
        chart = UMAP(random_state=seed, n_jobs=1)
        return np.asarray(chart.fit_transform(reduced), dtype=np.float64)
    raise FigureError(f'unknown projector {projector!r}; choose one of {", ".join(PROJECTORS)}')


def feature_map(
    points: ArrayLike, outcome: ArrayLike, tasks: Sequence[str], title: str, axis_name: str = 'PCA'
) -> Figure:
    """Draw projected features twice: by outcome over time, and by task.

    Parameters
    ----------
    points : array_like, shape (N, 2)
    outcome : array_like, shape (N,)
        See :func:`outcome_values`.
    tasks : sequence of str, length N
    """
    at = np.asarray(points, dtype=np.float64)
    values = np.asarray(outcome, dtype=np.float64)
    names = np.asarray(tasks)
    picture = len(at) > _VECTOR_POINTS
    size = float(np.clip(12000 / max(len(at), 1), 4, 14))
    figure = Figure(figsize=(12, 5), layout='constrained')
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    order = np.argsort(values, kind='stable')
    drawn = left.scatter(
        at[order, 0], at[order, 1], c=values[order], cmap='coolwarm', vmin=0, vmax=1, s=size,
        linewidths=0, rasterized=picture,
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=left, ticks=[0, 0.5, 1])
    bar.set_label('success: 0; failure: share of the episode passed')
    left.set_title('by outcome over time')
    present = sorted(set(names.tolist()))
    for index, task in enumerate(present):
        here = names == task
        right.scatter(
            at[here, 0], at[here, 1], s=size, linewidths=0, rasterized=picture,
            color=OKABE_ITO[index % len(OKABE_ITO)],
            marker=MARKERS[(index // len(OKABE_ITO) + index) % len(MARKERS)],
            label=_shortened(task) if index < _LEGEND_TASKS else None,
        )  # fmt: skip
    more = len(present) - _LEGEND_TASKS
    right.set_title(f'by task ({len(present)})')
    right.legend(
        loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, markerscale=2,
        title=f'and {more} more tasks' if more > 0 else None,
    )  # fmt: skip
    for axis in (left, right):
        axis.set_xlabel(f'{axis_name} 1 (no unit)')
        # On both: beside the label of the colour bar, the right one would seem to have that scale.
        axis.set_ylabel(f'{axis_name} 2 (no unit)')
        axis.tick_params(labelleft=True)
        _open(axis)
    figure.suptitle(title)
    return figure


def score_curves(
    parts: Mapping[str, Sequence[OutcomeCurve]],
    title: str,
    thresholds: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Figure:
    """Draw the scores of each part: every rollout above, mean and standard deviation below.

    The mean at a step is that of the rollouts still running, drawn while at least three do.

    Parameters
    ----------
    parts : mapping of part to curves
    thresholds : mapping of part to the upper edges of its rollouts' bands, or None
        One line as far as the longest rollout where all are the same; where they differ, the
        range from the lowest to the highest.
    """
    if not parts:
        raise FigureError('score curves need at least one part with rollouts')
    columns = len(parts)
    figure = Figure(figsize=(max(5.0, 4.2 * columns), 6.4), layout='constrained')
    axes = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    for column, (part, curves) in enumerate(parts.items()):
        above, below = axes[:, column]
        failures = sum(c.failed for c in curves)
        above.set_title(f'{part}: {failures} failures, {len(curves) - failures} successes')
        above.set_xlabel('')
        below.set_xlabel('policy step')
        for failed, colour, style, label in (
            (False, SUCCESS, '--', 'success'),
            (True, FAILURE, '-', 'failure'),
        ):
            members = [c.scores for c in curves if c.failed == failed]
            # By outcome: few failures must not drown in many successes.
            opacity = float(np.clip(30 / max(len(members), 1), 0.14, 0.8))
            for scores in members:
                above.plot(
                    scores, color=colour, linewidth=0.7, alpha=opacity,
                    rasterized=len(curves) > 150,
                )  # fmt: skip
            steps, mean, spread = mean_and_spread(members)
            below.plot(
                steps, mean, color=colour, linestyle=style, linewidth=1.8, label=f'{label}, mean'
            )
            below.fill_between(
                steps, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0,
                label=f'{label}, ± standard deviation',
            )  # fmt: skip
        if thresholds is not None and thresholds.get(part) and curves:
            low, high = band_range(thresholds[part], max(len(c.scores) for c in curves))
            for axis in (above, below):
                _draw_bands(axis, low, high)
        for axis in (above, below):
            _open(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel('failure score')
    figure.suptitle(title)
    # Two rows: the range of bands has a long name.
    _shared_legend(figure, axes[1].tolist(), columns=3)
    return figure


def band_range(edges: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest of several bands at each of ``length`` steps.

    NaN past the end of all bands; +inf where a band is infinite.
    """
    table = np.full((len(edges), length), np.nan)
    for row, edge in zip(table, edges, strict=True):
        row[: len(edge)] = edge[:length]
    # fmin and fmax pass over the steps at which a band has ended.
    return np.fmin.reduce(table), np.fmax.reduce(table)


def mean_and_spread(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, mean and standard deviation (ddof 1) of the curves that still run there."""
    longest = max((len(c) for c in curves), default=0)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    steps = np.flatnonzero(np.isfinite(table).sum(axis=0) >= _FEWEST_FOR_MEAN)
    return steps, np.nanmean(table[:, steps], axis=0), np.nanstd(table[:, steps], axis=0, ddof=1)


def conformal(parts: Mapping[str, AlphaCurve], title: str, alpha: float | None = None) -> Figure:
    """Draw accuracy against detection time, and the rates against the promised rate.

    The dotted diagonal is the promise: a false-alarm rate above it breaks it.

    Parameters
    ----------
    parts : mapping of part to AlphaCurve
    alpha : float or None
        Marked, where given.
    """
    if not parts:
        raise FigureError('the conformal figure needs at least one part')
    # In rows of two where there are many: a page would shrink one long row beyond reading.
    panels = len(parts) + 1
    columns = panels if panels < 4 else 2
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4.4 * columns, 4.2 * rows), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = grid.ravel()[:panels]
    for unused in grid.ravel()[panels:]:
        unused.set_visible(False)
    first = axes[0]
    for index, (part, points) in enumerate(parts.items()):
        first.plot(
            points.detection_time, points.balanced_accuracy, label=part, markersize=4,
            color=OKABE_ITO[index], marker=MARKERS[index], linestyle=LINE_STYLES[index % 4],
        )  # fmt: skip
    first.axhline(0.5, color='0.6', linewidth=0.8, linestyle=':')
    first.set_xlabel('detection time (share of the failure, 1 = missed)')
    first.set_ylabel('balanced accuracy (share)')
    first.set_title('one point per promised rate')
    first.set_xlim(-0.02, 1.02)
    lowest = np.nanmin([np.min(p.balanced_accuracy) for p in parts.values()] + [0.5])
    first.set_ylim(float(lowest) - 0.05, 1.02)
    first.legend(frameon=False, fontsize=8)
    for axis, (part, points) in zip(axes[1:], parts.items(), strict=True):
        found, false = points.detection_rate, points.false_alarm_rate
        for values, name, colour, style, marker in (
            (false, 'false alarms (FPR)', FAILURE, '-', 'o'),
            (1 - found, 'missed failures (FNR)', '#E69F00', '--', 's'),
            (found, 'detected failures (TPR)', SUCCESS, '-', '^'),
            (1 - false, 'quiet successes (TNR)', '#56B4E9', '--', 'D'),
            (points.balanced_accuracy, 'balanced accuracy', '#000000', '-.', None),
        ):
            axis.plot(
                points.alphas, values, label=name, color=colour, linestyle=style, marker=marker,
                markersize=3,
            )  # fmt: skip
        end = float(points.alphas[-1])
        axis.plot([0, end], [0, end], color='0.4', linestyle=':', label='promise')
        if alpha is not None:
            axis.axvline(alpha, color='0.75', linewidth=0.8, zorder=0)
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel('promised false-alarm rate α (share)')
        axis.set_ylabel('realised rate (share)')
        axis.set_title(part)
    for axis in axes:
        _open(axis)
    figure.suptitle(title)
    _shared_legend(figure, axes[1:2], columns=3)
    return figure


def promise_bars(realised: Mapping[str, tuple[int, int]], promised: float, title: str) -> Figure:
    """Draw the realised false-alarm rate of each part with its 95 % interval, and the promise.

    Parameters
    ----------
    realised : mapping of part to (false alarms, successes)
    promised : float
    """
    from scipy.stats import binomtest

    parts = {name: counts for name, counts in realised.items() if counts[1] > 0}
    if not parts:
        raise FigureError('realised false-alarm rates need at least one success')
    figure = Figure(figsize=(6.4, 1.4 + 0.5 * len(parts)), layout='constrained')
    axis = figure.subplots()
    for row, (alarms, successes) in enumerate(parts.values()):
        interval = binomtest(alarms, successes).proportion_ci(0.95)
        axis.plot([interval.low, interval.high], [row, row], color=SUCCESS, linewidth=2)
        axis.plot(alarms / successes, row, marker='o', color=SUCCESS, markersize=7)
    axis.axvline(promised, color=FAILURE, linestyle='--', label=f'promised: {promised:g}')
    axis.set_yticks(range(len(parts)), [f'{p} ({n[0]} of {n[1]})' for p, n in parts.items()])
    axis.set_ylim(len(parts) - 0.5, -0.5)
    axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel('realised false-alarm rate (share of successes), 95 % interval')
    axis.set_title(title)
    axis.legend(frameon=False, fontsize=8)
    _open(axis)
    return figure


def detected_against_annotated(
    annotated: ArrayLike, detected: ArrayLike, parts: Sequence[str], title: str
) -> Figure:
    """Draw when failures were detected against when a person saw them begin.

    Parameters
    ----------
    annotated : array_like, shape (N,)
        Relative time of the annotation, 0 to 1 of the episode.
    detected : array_like, shape (N,)
        Relative time of the first alarm; NaN where none came (drawn above 1, as missed).
    parts : sequence of str, length N
    """
    begun = np.asarray(annotated, dtype=np.float64)
    alarm = np.asarray(detected, dtype=np.float64)
    if begun.size == 0:
        raise FigureError('no failure has an annotated failure step; add them with `label`')
    names = np.asarray(parts)
    present = list(dict.fromkeys(names.tolist()))
    # Each part's missed failures have a row of their own above the square.
    missed_at = 1.06 + 0.05 * np.arange(len(present))
    figure = Figure(figsize=(6.4, 6.2), layout='constrained')
    axis = figure.subplots()
    for index, part in enumerate(present):
        here = names == part
        missed = here & np.isnan(alarm)
        found = here & ~np.isnan(alarm)
        colour, marker = OKABE_ITO[index % 8], MARKERS[index % 8]
        axis.scatter(
            begun[found], alarm[found], color=colour, marker=marker, s=26, alpha=0.8,
            label=f'{part} ({found.sum()} detected, {missed.sum()} missed)',
        )  # fmt: skip
        axis.scatter(
            begun[missed], np.full(missed.sum(), missed_at[index]), facecolors='none',
            edgecolors=colour, marker=marker, s=26,
        )  # fmt: skip
    axis.plot(
        [0, 1], [0, 1], color='0.4', linestyle=':', label='annotated step (later alarms above)'
    )
    axis.axhline(1.03, color='0.8', linewidth=0.8)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, float(missed_at[-1]) + 0.04)
    axis.set_yticks(
        [0, 0.2, 0.4, 0.6, 0.8, 1.0, *missed_at],
        ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0', *(f'missed, {part}' for part in present)],
    )
    axis.set_xlabel('annotated beginning of the failure (share of the episode)')
    axis.set_ylabel('first alarm (share of the episode)')
    axis.set_title(title)
    _open(axis)
    _shared_legend(figure, [axis], columns=2, fontsize=9)
    return figure


def lead_times(parts: Mapping[str, LeadTimes], title: str) -> Figure:
    """Draw by how many steps alarms preceded the failure that a person saw, by part.

    Late alarms are hatched and stand left of the dotted line; missed failures, which have no lead,
    are counted in words.

    Parameters
    ----------
    parts : mapping of part to LeadTimes
        At least one with an annotated failure; the others are left out.
    """
    parts = {part: found for part, found in parts.items() if found.annotated}
    if not parts:
        raise FigureError('no failure has an annotated failure step; add them with `label`')
    leads = np.concatenate([[0.0], *(found.leads for found in parts.values())])
    width = max(1, math.ceil((leads.max() - leads.min() + 1) / _MOST_BARS))
    # Half a step off, so that a bar stands over its steps and none holds both early and late.
    first, last = math.floor(leads.min() / width), math.floor(leads.max() / width) + 1
    edges = width * np.arange(first, last + 1) - 0.5
    figure = Figure(figsize=(6.8, 1.4 + 1.9 * len(parts)), layout='constrained')
    axes = figure.subplots(len(parts), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (part, found) in zip(axes, parts.items(), strict=True):
        early, late = found.leads[found.leads >= 0], found.leads[found.leads < 0]
        for values, colour, hatch, label in (
            (late, FAILURE, '////', 'alarm after the annotated step'),
            (early, SUCCESS, None, 'alarm at the annotated step or before'),
        ):
            axis.hist(
                values, bins=edges, color=colour, hatch=hatch, edgecolor='white', linewidth=0.8,
                label=label,
            )  # fmt: skip
        axis.axvline(0, color='0.3', linestyle=':', linewidth=1.4, label='annotated step')
        middle = 'no alarm'
        if len(found.leads):
            middle = f'median lead {found.median:g} steps'
            axis.axvline(found.median, color='black', linestyle='--', linewidth=1.2, label='median')
        axis.set_title(
            f'{part}: {found.annotated} annotated, {found.in_time} in time, {len(late)} late, '
            f'{found.annotated - found.alarmed} missed; {middle}',
            fontsize=9,
        )
        axis.set_ylabel('failures')
        # Also where no bar stands.
        axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        _open(axis)
    axes[-1].set_xlim(min(edges[0], -3.0) - 0.5, max(edges[-1], 3.0) + 0.5)
    axes[-1].set_xlabel('lead: policy steps from the first alarm to the annotated failure')
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    _shared_legend(figure, axes.tolist(), columns=2)
    return figure


def cumulative_detections(
    detected: Mapping[str, ArrayLike],
    title: str,
    false_alarms: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw which share of the rollouts of each part has had an alarm by each relative time.

    Parameters
    ----------
    detected : mapping of part to array_like, shape (failures,)
        Relative time (0 to 1) of the first alarm; NaN where none came.
    false_alarms : the same over successes, or None
    """
    figure = Figure(figsize=(8.4, 4.4), layout='constrained')
    axis = figure.subplots()
    groups = (
        ('failures detected', detected, FAILURE),
        ('successes alarmed', false_alarms or {}, SUCCESS),
    )
    for name, parts, colour in groups:
        for index, (part, times) in enumerate(parts.items()):
            values = np.asarray(times, dtype=np.float64)
            if not values.size:
                continue
            found = np.sort(values[~np.isnan(values)])
            share = np.arange(1, len(found) + 1) / len(values)
            last = share[-1] if len(share) else 0.0
            axis.step(
                np.concatenate([[0.0], found, [1.0]]), np.concatenate([[0.0], share, [last]]),
                where='post', color=colour, linestyle=LINE_STYLES[index % 4],
                label=f'{part}: {name} ({len(found)} of {len(values)})',
            )  # fmt: skip
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel('time (share of the episode)')
    axis.set_ylabel('share of rollouts with an alarm so far')
    axis.set_title(title)
    axis.legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    _open(axis)
    return figure


def reliability_diagram(
    confidence: ArrayLike,
    frequency: ArrayLike,
    count: ArrayLike,
    title: str,
    subtitle: str = '',
) -> Figure:
    """Draw how often rollouts fail against the probability that the detector gave them.

    Parameters
    ----------
    confidence, frequency : array_like, shape (B,)
        Mean probability and share of failures in each bin; NaN in empty bins.
    count : array_like, shape (B,)
        Rollouts in each bin.
    """
    given = np.asarray(confidence, dtype=np.float64)
    seen = np.asarray(frequency, dtype=np.float64)
    size = np.asarray(count, dtype=np.float64)
    figure = Figure(figsize=(5.0, 5.6), layout='constrained')
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axis.plot([0, 1], [0, 1], color='0.4', linestyle=':', label='as often as said')
    used = size > 0
    axis.vlines(given[used], given[used], seen[used], color=FAILURE, linewidth=1.2, alpha=0.5)
    axis.plot(given[used], seen[used], color=SUCCESS, marker='o', label='this detector')
    axis.set_ylabel('share that failed')
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(f'{title}\n{subtitle}' if subtitle else title, fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    edges = np.linspace(0, 1, len(size) + 1)
    below.bar(edges[:-1], size, width=np.diff(edges), align='edge', color='0.75', edgecolor='white')
    below.set_xlabel('probability of failure given at the end of the rollout')
    below.set_ylabel('rollouts')
    _open(axis)
    _open(below)
    return figure


def _draw_bands(axis: Axes, low: np.ndarray, high: np.ndarray) -> None:
    if np.array_equal(low, high, equal_nan=True):
        axis.plot(_finite(low), color=BAND, linewidth=1.4, linestyle='-.', label='band')
        return
    steps, top = np.arange(len(low)), axis.get_ylim()[1]
    axis.fill_between(
        steps, _finite(low), np.where(high < np.inf, high, top), color=BAND, alpha=0.18,
        linewidth=0, hatch='..', label='bands differ between rollouts: lowest to highest',
    )  # fmt: skip
    for edge in (low, high):
        axis.plot(_finite(edge), color=BAND, linewidth=1, linestyle='-.')


def _draw_episode(axis: Axes, episode: EpisodeCurve) -> None:
    steps = np.arange(len(episode.scores))
    threshold = _finite(episode.threshold)[: len(steps)]
    colour = FAILURE if episode.failed else SUCCESS
    axis.plot(steps, threshold, color=BAND, linewidth=1, label='band')
    axis.fill_between(steps, 0, threshold, color=BAND, alpha=0.12, linewidth=0)
    axis.plot(
        steps,
        episode.scores,
        color=colour,
        linewidth=1.8,
        label='failure' if episode.failed else 'success',
    )
    if episode.alarm_step is not None:
        axis.plot(
            episode.alarm_step,
            episode.scores[episode.alarm_step],
            marker='v',
            color='black',
            markersize=8,
            linestyle='none',
            label='alarm',
        )
    axis.set_title(episode.title, fontsize=9)
    _open(axis)


def _finite(threshold: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(threshold), threshold, np.nan)


def _open(axis: Axes) -> None:
    axis.spines[['top', 'right']].set_visible(False)


def _shortened(name: str, length: int = 34) -> str:
    # A dollar sign would start mathematics, a leading underscore would hide the entry.
    shown = name if len(name) <= length else name[: length - 1] + '…'
    shown = shown.replace('$', r'\$')
    return f' {shown}' if shown.startswith('_') else shown


def _shared_legend(
    figure: Figure, axes: Sequence[Axes] | np.ndarray, columns: int = 5, fontsize: float = 10
) -> None:
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=columns,
        frameon=False, fontsize=fontsize,
    )  # fmt: skip
