# SPDX-License-Identifier: Apache-2.0
"""Figures of scores over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_training.reporting.figures.style import (
    BAND,
    FAILURE,
    SUCCESS,
    EpisodeCurve,
    FigureError,
    OutcomeCurve,
    finite,
    open_axis,
    save,
    shared_legend,
)

# A spread of fewer curves than this is not drawn: it would be that of a handful.
_FEWEST_FOR_MEAN = 3


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
    shared_legend(figure, axes.flat[: len(episodes)])
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
            open_axis(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel('failure score')
    figure.suptitle(title)
    # Two rows: the range of bands has a long name.
    shared_legend(figure, axes[1].tolist(), columns=3)
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


def _draw_bands(axis: Axes, low: np.ndarray, high: np.ndarray) -> None:
    if np.array_equal(low, high, equal_nan=True):
        axis.plot(finite(low), color=BAND, linewidth=1.4, linestyle='-.', label='band')
        return
    steps, top = np.arange(len(low)), axis.get_ylim()[1]
    axis.fill_between(
        steps, finite(low), np.where(high < np.inf, high, top), color=BAND, alpha=0.18,
        linewidth=0, hatch='..', label='bands differ between rollouts: lowest to highest',
    )  # fmt: skip
    for edge in (low, high):
        axis.plot(finite(edge), color=BAND, linewidth=1, linestyle='-.')


def _draw_episode(axis: Axes, episode: EpisodeCurve) -> None:
    steps = np.arange(len(episode.scores))
    threshold = finite(episode.threshold)[: len(steps)]
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
    open_axis(axis)
