# SPDX-License-Identifier: Apache-2.0
"""Figures of scores and alarms, drawn with matplotlib and written as PNG, PDF or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

# Okabe-Ito: told apart with every kind of colour vision.
FAILURE = '#D55E00'
SUCCESS = '#0072B2'
BAND = '#009E73'


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


def plot_episodes(
    path: Path, episodes: Sequence[EpisodeCurve], title: str, columns: int = 3
) -> None:
    """Draw one panel an episode: score, band, alarm over the steps; the file is whole or absent."""
    rows = max(1, math.ceil(len(episodes) / columns))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, 2.5 * rows),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout='constrained',
    )
    for axis, episode in zip(axes.flat, episodes, strict=False):
        _draw(axis, episode)
    for axis in axes.flat[len(episodes) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel('failure score')
    for axis in axes.flat[max(0, len(episodes) - columns) : len(episodes)]:
        axis.set_xlabel('policy step')
        axis.tick_params(labelbottom=True)
    figure.suptitle(title)
    handles = {
        label: handle
        for axis in axes.flat[: len(episodes)]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=4, frameon=False
    )
    aside = path.with_name(f'.{path.stem}.partial{path.suffix}')
    try:
        figure.savefig(aside, dpi=130)
        aside.replace(path)
    finally:
        plt.close(figure)
        aside.unlink(missing_ok=True)


def _draw(axis: plt.Axes, episode: EpisodeCurve) -> None:
    steps = np.arange(len(episode.scores))
    threshold = np.where(np.isfinite(episode.threshold), episode.threshold, np.nan)[: len(steps)]
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
    axis.spines[['top', 'right']].set_visible(False)
