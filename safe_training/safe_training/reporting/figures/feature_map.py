# SPDX-License-Identifier: Apache-2.0
"""Figures of the feature space, projected to two axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from safe_training.reporting.figures.projectors import PROJECTORS
from safe_training.reporting.figures.style import (
    MARKERS,
    OKABE_ITO,
    VECTOR_POINTS,
    FigureError,
    legend_name,
    open_axis,
)

# Maximum number of tasks in the legend.
_LEGEND_TASKS = 24


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
            where='feature map',
            expected='features of shape (N, D) with N >= 3 and D >= 2',
            found=str(points.shape),
            advice='record more steps, or use features with two or more dimensions',
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
                where='--projector umap',
                expected='the package umap-learn',
                found='none',
                advice='run `pip install "umap-learn>=0.5"`, or use --projector pca or '
                '--projector tsne',
            ) from error
        # With a seed, UMAP runs in one thread. It prints a warning if one thread is not requested
        # explicitly.
        chart = UMAP(random_state=seed, n_jobs=1)
        return np.asarray(chart.fit_transform(reduced), dtype=np.float64)
    raise FigureError(
        where='projector', expected=f'one of {", ".join(PROJECTORS)}', found=repr(projector)
    )


def outcome_values(lengths: Sequence[int], failed: Sequence[bool]) -> np.ndarray:
    """Return the relative time of each step for failures, and 0 for successes.

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
    picture = len(at) > VECTOR_POINTS
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
            label=legend_name(task) if index < _LEGEND_TASKS else None,
        )  # fmt: skip
    more = len(present) - _LEGEND_TASKS
    right.set_title(f'by task ({len(present)})')
    right.legend(
        loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, markerscale=2,
        title=f'and {more} more tasks' if more > 0 else None,
    )  # fmt: skip
    for axis in (left, right):
        axis.set_xlabel(f'{axis_name} 1 (no unit)')
        # Label both axes. Otherwise the label of the colour bar could be read as the label of the
        # right axis.
        axis.set_ylabel(f'{axis_name} 2 (no unit)')
        axis.tick_params(labelleft=True)
        open_axis(axis)
    figure.suptitle(title)
    return figure
