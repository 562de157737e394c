# SPDX-License-Identifier: Apache-2.0
"""Figures of alarms: promised rates, lead times, detections over time, reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from safe_training.metrics.binomial import clopper_pearson
from safe_training.metrics.lead_time import LeadTimes
from safe_training.metrics.operating_curves import AlphaCurve
from safe_training.reporting.figures.style import (
    FAILURE,
    LINE_STYLES,
    MARKERS,
    OKABE_ITO,
    SUCCESS,
    FigureError,
    open_axis,
    shared_legend,
)

# Leads are gathered so that no more bars than this stand side by side.
_MOST_BARS = 30


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
        open_axis(axis)
    figure.suptitle(title)
    shared_legend(figure, axes[1:2], columns=3)
    return figure


def promise_bars(realised: Mapping[str, tuple[int, int]], promised: float, title: str) -> Figure:
    """Draw the realised false-alarm rate of each part with its 95 % interval, and the promise.

    Parameters
    ----------
    realised : mapping of part to (false alarms, successes)
    promised : float
    """
    parts = {name: counts for name, counts in realised.items() if counts[1] > 0}
    if not parts:
        raise FigureError('realised false-alarm rates need at least one success')
    figure = Figure(figsize=(6.4, 1.4 + 0.5 * len(parts)), layout='constrained')
    axis = figure.subplots()
    for row, (alarms, successes) in enumerate(parts.values()):
        low, high = clopper_pearson(alarms, successes)
        axis.plot([low, high], [row, row], color=SUCCESS, linewidth=2)
        axis.plot(alarms / successes, row, marker='o', color=SUCCESS, markersize=7)
    axis.axvline(promised, color=FAILURE, linestyle='--', label=f'promised: {promised:g}')
    axis.set_yticks(range(len(parts)), [f'{p} ({n[0]} of {n[1]})' for p, n in parts.items()])
    axis.set_ylim(len(parts) - 0.5, -0.5)
    axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel('realised false-alarm rate (share of successes), 95 % interval')
    axis.set_title(title)
    axis.legend(frameon=False, fontsize=8)
    open_axis(axis)
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
    open_axis(axis)
    shared_legend(figure, [axis], columns=2, fontsize=9)
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
        open_axis(axis)
    axes[-1].set_xlim(min(edges[0], -3.0) - 0.5, max(edges[-1], 3.0) + 0.5)
    axes[-1].set_xlabel('lead: policy steps from the first alarm to the annotated failure')
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    shared_legend(figure, axes.tolist(), columns=2)
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
    open_axis(axis)
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
    open_axis(axis)
    open_axis(below)
    return figure
