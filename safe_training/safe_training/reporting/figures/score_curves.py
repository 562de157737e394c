# SPDX-License-Identifier: Apache-2.0
"""Figures of scores over the policy steps: all rollouts of each part, and single episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.figures.style import (
    BAND,
    FAILURE,
    SUCCESS,
    FigureError,
    finite,
    open_axis,
    save,
    shared_legend,
)

# With fewer curves than this number, mean and standard deviation are not drawn.
_FEWEST_FOR_MEAN = 3


# -- all rollouts of each part


def score_curves(parts: Mapping[str, Sequence[ScoredRollout]], title: str) -> Figure:
    """Draw the scores of each part: every rollout above, mean and standard deviation below.

    The mean at a step is the mean of the rollouts that still run. It is drawn if at least three
    rollouts still run. If all rollouts of the part have the same band, the band is one line up to
    the end of the longest rollout. Otherwise the range from the lowest to the highest band is
    drawn.

    Parameters
    ----------
    parts : mapping of part to rollouts with labels and thresholds
    """
    if not parts:
        raise FigureError(
            where='score curves', expected='at least one part with rollouts', found='none'
        )
    columns = len(parts)
    figure = Figure(figsize=(max(5.0, 4.2 * columns), 6.4), layout='constrained')
    axes = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    for (above, below), (part, scored) in zip(axes.T, parts.items(), strict=True):
        failures = sum(bool(rollout.failed) for rollout in scored)
        above.set_title(f'{part}: {failures} failures, {len(scored) - failures} successes')
        above.set_xlabel('')
        below.set_xlabel('policy step')
        _draw_outcome(above, below, scored, failed=False)
        _draw_outcome(above, below, scored, failed=True)
        edges = [rollout.required_threshold.upper for rollout in scored]
        low, high = band_range(edges, max(len(rollout) for rollout in scored))
        for axis in (above, below):
            _draw_bands(axis, low, high)
            open_axis(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel('failure score')
    figure.suptitle(title)
    # Use two rows in the legend, because the label for the range of bands is long.
    shared_legend(figure, axes[1].tolist(), columns=3)
    return figure


def _draw_outcome(
    above: Axes, below: Axes, scored: Sequence[ScoredRollout], *, failed: bool
) -> None:
    """Draw the failures or the successes of a part."""
    colour, style, label = (FAILURE, '-', 'failure') if failed else (SUCCESS, '--', 'success')
    curves = [rollout.scores for rollout in scored if rollout.failed == failed]
    # Draw each outcome separately, so that a few failures are visible among many successes.
    opacity = float(np.clip(30 / max(len(curves), 1), 0.14, 0.8))
    for scores in curves:
        above.plot(scores, color=colour, linewidth=0.7, alpha=opacity, rasterized=len(scored) > 150)
    steps, mean, spread = mean_and_spread(curves)
    below.plot(steps, mean, color=colour, linestyle=style, linewidth=1.8, label=f'{label}, mean')
    below.fill_between(
        steps, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0,
        label=f'{label}, ± standard deviation',
    )  # fmt: skip


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


def band_range(edges: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest of several bands at each step, both of shape (length,).

    Values are NaN after the end of all bands, and +inf at steps with an infinite band.
    """
    table = np.full((len(edges), length), np.nan)
    for row, edge in zip(table, edges, strict=True):
        row[: len(edge)] = edge[:length]
    # fmin and fmax ignore the NaN values after the end of a band.
    return np.fmin.reduce(table), np.fmax.reduce(table)


def mean_and_spread(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, mean and standard deviation (ddof 1) of the curves at each step.

    A curve that has ended is not included.
    """
    longest = max((len(c) for c in curves), default=0)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    steps = np.flatnonzero(np.isfinite(table).sum(axis=0) >= _FEWEST_FOR_MEAN)
    return steps, np.nanmean(table[:, steps], axis=0), np.nanstd(table[:, steps], axis=0, ddof=1)


# -- single episodes


def plot_episodes(path: Path, episodes: Sequence[ScoredRollout], title: str) -> None:
    """Write a figure with one panel per episode. The file is written completely or not at all."""
    save(episode_panels(episodes, title), path)


def episode_panels(episodes: Sequence[ScoredRollout], title: str, columns: int = 3) -> Figure:
    """Draw one panel per episode: score, band and alarm over the policy steps.

    Parameters
    ----------
    episodes : sequence of ScoredRollout
        With labels and thresholds.
    """
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


def _draw_episode(axis: Axes, episode: ScoredRollout) -> None:
    steps = np.arange(len(episode))
    threshold = finite(episode.required_threshold.upper)[: len(steps)]
    colour, label = (FAILURE, 'failure') if episode.failed else (SUCCESS, 'success')
    axis.plot(steps, threshold, color=BAND, linewidth=1, label='band')
    axis.fill_between(steps, 0, threshold, color=BAND, alpha=0.12, linewidth=0)
    axis.plot(steps, episode.scores, color=colour, linewidth=1.8, label=label)
    if episode.alarm_step is not None:
        axis.plot(
            episode.alarm_step, episode.scores[episode.alarm_step], marker='v', color='black',
            markersize=8, linestyle='none', label='alarm',
        )  # fmt: skip
    axis.set_title(f'{episode.task}: {episode.outcome}', fontsize=9)
    open_axis(axis)
