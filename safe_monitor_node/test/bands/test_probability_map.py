# SPDX-License-Identifier: Apache-2.0
"""The probability of failure at run time: the formula, the bounds, and what is refused."""

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from safe_monitor_node.bands.probability import ProbabilityMap, rank_in
from safe_monitor_node.bands.threshold import BandError

FIELDS = {
    'quantiles': (0.0, 1.0, 1.0, 3.0, 5.0),
    'intercept': -2.0,
    'score_slopes': (1.0, 0.5, 0.0, 10.0),
    'time_slopes': (0.5, 0.0, 0.0, 2.0, 0.0),
    'clock_intercept': -1.0,
    'clock_slopes': (0.0, 0.0, 0.0, 3.0, 0.0),
    'base_rate': 0.25,
    'median_steps': 10.0,
    'rollouts': 30,
    'failures': 9,
    'described': 'by hand',
}


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_the_formula_by_hand():
    fitted = ProbabilityMap(**FIELDS)
    # Rank of 3.0: 3 of 4. Step 4 is the fifth of ten: r = 0.5.
    score = 1.0 * 0.75 + 0.5 * 0.25
    assert fitted.at(3.0, 4) == pytest.approx(sigmoid(-2.0 + score + 0.5 * 0.5))
    # After 12 of 10 steps: r = 1.2.
    late = 0.5 * 1.2 + 2.0 * 0.2
    assert fitted.at(3.0, 11) == pytest.approx(sigmoid(-2.0 + score + late))
    # Above the largest score: rank 1, and the last bend counts.
    top = 1.0 + 0.5 * 0.5 + 10.0 * 0.05
    assert fitted.at(99.0, 4) == fitted.at(5.0, 4) == pytest.approx(sigmoid(-2.0 + top + 0.25))
    assert fitted.clock_at(11) == pytest.approx(sigmoid(-1.0 + 3.0 * 0.2))
    assert fitted.at(0.0, 29) == fitted.at(0.0, 10**9), 'after three median lengths time stands'
    assert math.isnan(fitted.at(math.nan, 4))


def test_ranks_of_ties_and_between():
    quantiles = (0.0, 1.0, 1.0, 3.0, 5.0)
    expected = {-1.0: 0.0, 0.0: 0.0, 0.5: 0.125, 1.0: 0.375, 2.0: 0.625, 5.0: 1.0, 6.0: 1.0}
    assert {score: rank_in(quantiles, score) for score in expected} == expected


def test_along_is_at_each_step():
    fitted = ProbabilityMap(**FIELDS)
    scores = np.array([0.3, 2.0, 9.0, -1.0])
    along = fitted.along(scores)
    assert along.tolist() == [fitted.at(float(s), t) for t, s in enumerate(scores)]


@given(score=st.floats(allow_nan=False), step=st.integers(0, 10**6))
def test_it_is_a_probability_and_never_falls(score, step):
    fitted = ProbabilityMap(**FIELDS)
    value = fitted.at(score, step)
    assert 0.0 <= value <= 1.0
    assert value <= fitted.at(math.inf, step)
    assert value <= fitted.at(score, step + 1)


def test_json_holds_every_bit():
    fitted = ProbabilityMap(**{**FIELDS, 'intercept': 0.1 + 0.2, 'quantiles': (1 / 3, 2 / 3)})
    again = ProbabilityMap.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'quantiles': [1.0]}, '2 or more quantiles in order'),
        ({'quantiles': [1.0, 0.0]}, '2 or more quantiles in order'),
        ({'quantiles': 'abc'}, 'quantiles: finite numbers'),
        ({'score_slopes': [1.0]}, 'score_slopes: 4 finite numbers'),
        ({'score_slopes': [1.0, -1e-9, 0.0, 0.0]}, 'score_slopes of at least 0'),
        ({'time_slopes': [math.inf, 0.0, 0.0, 0.0, 0.0]}, 'time_slopes: 5 finite numbers'),
        ({'clock_slopes': [True, 0.0, 0.0, 0.0, 0.0]}, 'clock_slopes: 5 finite numbers'),
        ({'intercept': None}, 'intercept: 1 finite numbers'),
        ({'base_rate': 1.5}, r'base rate in \[0, 1\]'),
        ({'median_steps': 0.0}, 'a median length above 0'),
        ({'rollouts': -1}, 'rollouts as a count'),
        ({'described': 3}, 'described as a text'),
        ({'more': 1}, 'the entries'),
    ],
)
def test_a_damaged_map_is_refused(changes, message):
    with pytest.raises(BandError, match=message):
        ProbabilityMap.from_dict({**FIELDS, **changes})


@pytest.mark.parametrize('content', [[1], 'text', {**FIELDS, 'intercept': float('nan')}, {}])
def test_something_else_is_refused(content):
    with pytest.raises(BandError):
        ProbabilityMap.from_dict(content)
