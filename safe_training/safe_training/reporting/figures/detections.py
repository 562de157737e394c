# SPDX-License-Identifier: Apache-2.0
"""Figures of alarm times: over time, compared with the annotated failure, and lead times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from safe_training.metrics.early import EarlyCurve
from safe_training.metrics.lead_time import LeadTimes
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

# Maximum number of bars in the histogram of leads.
_MOST_BARS = 30
_NOT_ANNOTATED = (
    'figure of lead times: expected a failure with an annotated failure step, found none; annotate '
    'failure steps (verb `label`)'
)


def found_early(curve: EarlyCurve, title: str) -> Figure:
    """Draw the share of the failures with an alarm until a time, in units of the median success.

    Parameters
    ----------
    curve : EarlyCurve
    title : str
    """
    found = curve.found_early
    figure = Figure(figsize=(7.4, 4.4), layout='constrained')
    axis = figure.subplots()
    for name, share, early, colour, style in (
        ('this detector', curve.detector, found.detector, FAILURE, '-'),
        ('step counter', curve.clock, found.clock, '0.4', '--'),
    ):
        axis.plot(
            curve.shares, share, color=colour, linestyle=style,
            label=f'{name}: {100 * early:.0f} % found early',
        )  # fmt: skip
        axis.plot([1.0], [early], color=colour, marker='o')
    axis.axvline(1.0, color='0.4', linestyle=':', linewidth=1)
    axis.set_xlim(0, float(curve.shares[-1]))
    axis.set_ylim(0, 1.02)
    axis.set_xlabel('time (share of the median success length of the task)')
    axis.set_ylabel('share of the failures with an alarm so far')
    rate = 100 * curve.false_alarm_rate
    axis.set_title(f'{title}\nboth raise alarms on {rate:.1f} % of the successes', fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc='upper left')
    open_axis(axis)
    return figure


def cumulative_detections(
    detected: Mapping[str, ArrayLike],
    title: str,
    false_alarms: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw for each part the share of rollouts with an alarm, as a function of the relative time.

    Parameters
    ----------
    detected : mapping of part to array_like, shape (failures,)
        Relative time (0 to 1) of the first alarm; NaN without an alarm.
    false_alarms : relative times of first alarms of successes, or None
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


def detected_against_annotated(
    annotated: ArrayLike, detected: ArrayLike, parts: Sequence[str], title: str
) -> Figure:
    """Draw the times of detection against the annotated times of the failures.

    Parameters
    ----------
    annotated : array_like, shape (N,)
        Relative time of the annotation, 0 to 1 of the episode.
    detected : array_like, shape (N,)
        Relative time of the first alarm; NaN without an alarm (drawn above 1, as missed).
    parts : sequence of str, length N
    """
    begun = np.asarray(annotated, dtype=np.float64)
    alarm = np.asarray(detected, dtype=np.float64)
    if begun.size == 0:
        raise FigureError(_NOT_ANNOTATED)
    names = np.asarray(parts)
    present = list(dict.fromkeys(names.tolist()))
    # The missed failures of each part are in a separate row above the square.
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
    """Draw for each part the leads: the steps from the first alarm to the annotated failure.

    Late alarms have hatched bars to the left of the dotted line. Missed failures have no lead; the
    legend contains their number.

    Parameters
    ----------
    parts : mapping of part to LeadTimes
        At least one part has an annotated failure. Parts without are left out.
    """
    parts = {part: found for part, found in parts.items() if found.annotated}
    if not parts:
        raise FigureError(_NOT_ANNOTATED)
    leads = np.concatenate([[0.0], *(found.leads for found in parts.values())])
    width = max(1, math.ceil((leads.max() - leads.min() + 1) / _MOST_BARS))
    # Shift the bars by half a step, so that each bar is centred on its steps and does not mix early
    # and late alarms.
    first, last = math.floor(leads.min() / width), math.floor(leads.max() / width) + 1
    edges = (width * np.arange(first, last + 1) - 0.5).tolist()
    figure = Figure(figsize=(6.8, 1.4 + 1.9 * len(parts)), layout='constrained')
    axes = figure.subplots(len(parts), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (part, found) in zip(axes, parts.items(), strict=True):
        _draw_leads(axis, part, found, edges)
    axes[-1].set_xlim(min(edges[0], -3.0) - 0.5, max(edges[-1], 3.0) + 0.5)
    axes[-1].set_xlabel('lead: policy steps from the first alarm to the annotated failure')
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    shared_legend(figure, axes.tolist(), columns=2)
    return figure


def _draw_leads(axis: Axes, part: str, found: LeadTimes, edges: Sequence[float]) -> None:
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
    # If there are no bars, the axis needs a fixed scale.
    axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    open_axis(axis)
