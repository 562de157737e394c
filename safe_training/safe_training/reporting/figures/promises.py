# SPDX-License-Identifier: Apache-2.0
"""Figures of promised and realised false-alarm rates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_training.metrics.binomial import clopper_pearson
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


def conformal(parts: Mapping[str, AlphaCurve], title: str, alpha: float | None = None) -> Figure:
    """Draw accuracy against detection time, and the rates against the promised rate.

    The dotted diagonal is the promised rate. A false-alarm rate above the diagonal does not keep
    the promise.

    Parameters
    ----------
    parts : mapping of part to AlphaCurve
    alpha : float or None
        A promised rate to mark.
    """
    if not parts:
        raise FigureError(
            where='conformal figure', expected='at least one part with rollouts', found='none'
        )
    # If there are many panels, use rows of two. One long row would be too small to read on a page.
    panels = len(parts) + 1
    columns = panels if panels < 4 else 2
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4.4 * columns, 4.2 * rows), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = grid.ravel()[:panels]
    for unused in grid.ravel()[panels:]:
        unused.set_visible(False)
    _draw_accuracy(axes[0], parts)
    for axis, (part, points) in zip(axes[1:], parts.items(), strict=True):
        _draw_rates(axis, part, points, alpha)
    for axis in axes:
        open_axis(axis)
    figure.suptitle(title)
    shared_legend(figure, axes[1:2], columns=3)
    return figure


def _draw_accuracy(axis: Axes, parts: Mapping[str, AlphaCurve]) -> None:
    for index, (part, points) in enumerate(parts.items()):
        axis.plot(
            points.detection_time, points.balanced_accuracy, label=part, markersize=4,
            color=OKABE_ITO[index], marker=MARKERS[index], linestyle=LINE_STYLES[index % 4],
        )  # fmt: skip
    axis.axhline(0.5, color='0.6', linewidth=0.8, linestyle=':')
    axis.set_xlabel('detection time (share of the failure, 1 = missed)')
    axis.set_ylabel('balanced accuracy (share)')
    axis.set_title('one point per promised rate')
    axis.set_xlim(-0.02, 1.02)
    lowest = np.nanmin([np.min(p.balanced_accuracy) for p in parts.values()] + [0.5])
    axis.set_ylim(float(lowest) - 0.05, 1.02)
    axis.legend(frameon=False, fontsize=8)


def _draw_rates(axis: Axes, part: str, points: AlphaCurve, alpha: float | None) -> None:
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


def promise_bars(realised: Mapping[str, tuple[int, int]], promised: float, title: str) -> Figure:
    """Draw the realised false-alarm rate of each part with its 95 % interval, and the promise.

    Parameters
    ----------
    realised : mapping of part to (false alarms, successes)
    promised : float
    """
    parts = {name: counts for name, counts in realised.items() if counts[1] > 0}
    if not parts:
        raise FigureError(
            where='figure of realised false-alarm rates',
            expected='at least one success',
            found='none',
        )
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
