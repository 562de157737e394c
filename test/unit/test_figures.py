# SPDX-License-Identifier: Apache-2.0
"""Figures show what the numbers say, in words where a line would mislead."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from report_pages import ALPHA, HORIZON, judged

from safe_monitor_node.band import Band
from safe_training.detector_figures import figures_of
from safe_training.figures import BAND, band_range
from safe_training.judged import Judged

ONE_BAND = Band(np.array([ALPHA]), np.full((1, HORIZON), 0.5), 'functional_constant', 30)


def drawn(entries: list[Judged]) -> dict[str, Figure]:
    return {name: figure for name, _, figure in figures_of(entries, ONE_BAND, 'title', ())}


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


def test_bands_that_differ_are_drawn_as_their_range_and_said_to_differ():
    entries = [judged(str(k), [0.1] * 3, edge=(0.3, 0.7)[k % 2]) for k in range(4)]
    figures = drawn(entries)
    figure = figures['score_curves']
    lines = [x.get_ydata() for x in figure.axes[0].lines if x.get_color() == BAND]
    np.testing.assert_array_equal(lines, [[0.3] * 3, [0.7] * 3])
    assert 'differ between rollouts' in words(figure)
    assert 'conformal' not in figures, 'the rates of one band are not those of these rollouts'


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
