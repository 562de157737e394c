# SPDX-License-Identifier: Apache-2.0
"""Figures show what the numbers say, in words where a line would mislead."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from report_pages import ALPHA, HORIZON, judged, judged_set

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_training.metrics.lead_time import LeadTimes
from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.figures.catalogue import FIGURES, FigureData, figures_of
from safe_training.reporting.figures.detections import lead_times
from safe_training.reporting.figures.feature_map import project
from safe_training.reporting.figures.score_curves import band_range
from safe_training.reporting.figures.style import BAND, FigureError

ONE_BAND = Band(np.array([ALPHA]), np.full((1, HORIZON), 0.5), 'functional_constant', 30)


def drawn(entries: list[ScoredRollout]) -> dict[str, Figure]:
    data = FigureData(judged_set(entries, ONE_BAND), 'title', ())
    return {d.name: d.figure for d in figures_of(data)}


def words(figure: Figure) -> str:
    """Return everything that a figure says."""
    texts = [t.get_text() for axis in figure.axes for t in axis.texts]
    texts += [axis.get_title() for axis in figure.axes]
    for legend in [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]:
        texts += [t.get_text() for t in legend.get_texts()]
    return '\n'.join(texts)


def test_a_band_that_all_rollouts_share_is_one_line():
    figure = drawn([judged(str(k), [0.1, 0.2]) for k in range(4)])['score_curves']
    (line,) = (x for x in figure.axes[0].lines if x.get_color() == BAND)
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.5])
    assert 'differ' not in words(figure)


@pytest.mark.parametrize('version', [(3, 6, 3), matplotlib.__version_info__[:3]])
def test_the_legend_lies_below_all_axes(version, monkeypatch):
    monkeypatch.setattr(matplotlib, '__version_info__', version)  # 3.6: Ubuntu 24.04
    figure = drawn([judged(str(k), [0.1, 0.2], failed=k == 0) for k in range(4)])['score_curves']
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    assert legend.get_texts()
    lowest = min(axis.get_tightbbox(canvas.get_renderer()).y0 for axis in figure.axes)
    assert legend.get_window_extent(canvas.get_renderer()).y0 >= 0
    assert legend.get_window_extent(canvas.get_renderer()).y1 <= lowest


def test_bands_that_differ_are_drawn_as_their_range_and_said_to_differ():
    entries = [judged(str(k), [0.1] * 3, edge=(0.3, 0.7)[k % 2]) for k in range(4)]
    figure = drawn(entries)['score_curves']
    lines = [x.get_ydata() for x in figure.axes[0].lines if x.get_color() == BAND]
    np.testing.assert_array_equal(lines, [[0.3] * 3, [0.7] * 3])
    assert 'differ between rollouts' in words(figure)


def test_parts_may_differ_in_whether_they_share_a_band():
    entries = [judged(f'a{k}', [0.1] * 3, part='seen', edge=0.4) for k in range(2)]
    entries += [judged(f'b{k}', [0.1] * 3, part='unseen', edge=0.2 + k / 10) for k in range(2)]
    figure = drawn(entries)['score_curves']
    by_axis = [sum(x.get_color() == BAND for x in axis.lines) for axis in figure.axes]
    assert by_axis == [1, 2, 1, 2]


def test_the_range_of_bands_passes_over_those_that_have_ended():
    low, high = band_range([np.array([1.0, 2.0]), np.array([3.0, np.inf, 0.5])], 4)
    np.testing.assert_array_equal(low, [1.0, 2.0, 0.5, np.nan])
    np.testing.assert_array_equal(high, [3.0, np.inf, 0.5, np.nan])


def test_leads_are_drawn_by_part_with_the_missed_in_words():
    rising = np.linspace(0, 1, 21)  # the first score above 0.5 is that of step 11
    entries = [
        judged('early', rising, failed=True, failure_step=15, part='seen'),
        judged('at it', rising, failed=True, failure_step=11, part='seen'),
        judged('late', rising, failed=True, failure_step=10, part='seen'),
        judged('missed', rising, failed=True, failure_step=10, part='seen', edge=2.0),
        judged('not annotated', rising, failed=True, part='seen'),
        judged('success', rising, part='seen'),
        judged('never', rising, failed=True, failure_step=3, part='unseen', edge=2.0),
        judged('nobody looked', rising, failed=True, part='new'),
    ]
    figure = drawn(entries)['lead_times']
    seen, unseen = figure.axes
    assert seen.get_title() == (
        'seen: 4 annotated, 2 in time, 1 late, 1 missed; median lead 0 steps'
    )
    assert unseen.get_title() == 'unseen: 1 annotated, 0 in time, 0 late, 1 missed; no alarm'
    assert unseen.get_ylim() == (0.0, 1.0), 'an axis of failures counts from none, also without one'
    late, early = (bars for bars in seen.containers)
    assert lead_counts(late) == {-1: 1} and lead_counts(early) == {0: 1, 4: 1}
    assert late[0].get_hatch() and not early[0].get_hatch()


def lead_counts(bars: Iterable[Rectangle]) -> dict[int, int]:
    return {
        round(bar.get_x() + bar.get_width() / 2): int(bar.get_height())
        for bar in bars
        if bar.get_height()
    }


def test_no_bar_holds_both_early_and_late_alarms_however_long_the_rollouts():
    leads = np.concatenate([np.arange(-300.0, 0), np.arange(0.0, 200)])
    found = LeadTimes(leads, float(leads.mean()), float(np.median(leads)), 500, 500, 200)
    (axis,) = lead_times({'new': found}, 'title').axes
    late, early = axis.containers
    assert len(late) <= 32
    assert sum(bar.get_height() for bar in late if bar.get_x() < -0.5) == 300
    assert sum(bar.get_height() for bar in early if bar.get_x() >= -0.5) == 200


def test_without_annotations_there_is_no_figure_of_leads():
    assert 'lead_times' not in drawn([judged(str(k), [0.1], failed=True) for k in range(3)])
    with pytest.raises(FigureError, match='label'):
        lead_times({}, 'title')


def test_a_missing_umap_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(FigureError, match=r'pip install "umap-learn>=0\.5"'):
        project(np.random.default_rng(0).normal(size=(9, 3)), 'umap')


@pytest.mark.slow
def test_umap_gives_each_step_a_place_and_the_same_one_again(monkeypatch):
    # For 40 points, the compilation of UMAP takes a minute more than it saves.
    monkeypatch.setenv('NUMBA_DISABLE_JIT', '1')
    pytest.importorskip('umap', reason='umap-learn is not installed')
    points = np.random.default_rng(0).normal(size=(40, 60))
    placed = project(points, 'umap', seed=3)
    assert placed.shape == (40, 2) and np.isfinite(placed).all()
    np.testing.assert_array_equal(placed, project(points, 'umap', seed=3))


@pytest.mark.parametrize('count', [1, 2, 4])
def test_the_conformal_figure_has_a_panel_for_each_part_and_no_empty_one(count):
    entries = [
        judged(f'{part}{k}', [0.1, 0.6], failed=bool(k), part=part)
        for part in ('train', 'seen', 'unseen', 'new')[:count]
        for k in range(2)
    ]
    figure = drawn(entries)['conformal']
    assert sum(axis.get_visible() for axis in figure.axes) == count + 1


def test_every_entry_of_the_catalogue_is_drawn_if_there_are_data_for_it():
    rising = np.linspace(0, 1, 4)
    entries = [
        judged(f'{part}{k}', rising, failed=bool(k), part=part, failure_step=2 if k else None)
        for part in ('seen', 'unseen')
        for k in range(2)
    ]
    fitted = ProbabilityMap(
        quantiles=(0.0, 1.0),
        intercept=-1.0,
        score_slopes=(1.0, 0.0, 0.0, 0.0),
        time_slopes=(1.0, 0.0, 0.0, 0.0, 0.0),
        clock_intercept=-1.0,
        clock_slopes=(1.0, 0.0, 0.0, 0.0, 0.0),
        base_rate=0.5,
        median_steps=4.0,
    )
    data = FigureData(judged_set(entries, ONE_BAND, probability=fitted), 'title')
    names = [figure.name for figure in figures_of(data)]
    assert len(set(names)) == len(names)
    for entry in FIGURES:
        variants = [v for v in entry.variants(data) if v]
        assert ({f'{entry.name}_{v}' for v in variants} or {entry.name}) <= set(names)
    assert {'reliability_seen', 'reliability_unseen', 'features_pca'} <= set(names)
    assert names[:2] == ['found_early_seen', 'found_early_unseen'], 'first of all'
    without = FigureData(judged_set(entries, ONE_BAND, 'safe_lstm'), 'title')
    assert not any(f.name.startswith('reliability') for f in figures_of(without))
    titles = {figure.name: figure.title for figure in figures_of(data)}
    assert 'Part unseen: share of failures' in titles['reliability_unseen']
    assert '(PCA)' in titles['features_pca']
