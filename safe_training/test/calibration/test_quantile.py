# SPDX-License-Identifier: Apache-2.0
"""The rank of a conformal quantile against exact fractions, and how many successes it needs."""

import math
from fractions import Fraction

import numpy as np
import pytest

from safe_training.calibration.constant import constant_band
from safe_training.calibration.functional import calibrate
from safe_training.calibration.quantile import conformal_quantile, published_rank

COUNTS = range(1, 2001)
PERCENTS = range(1, 100)


def exact_rank(count, percent):
    """Return ceil((n + 1)(1 - alpha)) without any rounding, limited to 1..n."""
    return min(max(math.ceil((count + 1) * (1 - Fraction(percent, 100))), 1), count)


def test_the_published_rank_is_the_exact_rank_for_198000_pairs():
    pairs = [(count, percent) for count in COUNTS for percent in PERCENTS]
    assert len(pairs) == 198_000
    exact = np.array([exact_rank(*pair) for pair in pairs])
    found = np.array([published_rank(count, percent / 100) for count, percent in pairs])
    assert np.count_nonzero(found != exact) == 0
    # Two factors that are each rounded to float32, as in version 0.1, miss some of them.
    counts, percents = np.array(pairs).T
    rounded = (counts + 1).astype(np.float32) * (1 - percents / 100).astype(np.float32)
    twice = np.clip(np.ceil(rounded), 1, counts).astype(int)
    assert np.count_nonzero(twice != exact) == 412


@pytest.mark.parametrize('quantile', ['finite_sample', 'published'])
def test_a_quantile_is_the_value_of_its_rank(quantile):
    values = np.arange(1.0, 40.0)
    for percent in (1, 7, 10, 50, 90):
        expected = exact_rank(39, percent)
        if quantile == 'finite_sample' and math.ceil(40 * (1 - Fraction(percent, 100))) > 39:
            expected = math.inf
        assert conformal_quantile(values[::-1], percent / 100, quantile) == expected


def can_alarm(made, alpha=0.1):
    return made.at(alpha).can_alarm


def test_ten_percent_need_twelve_successes_and_nine_for_one_threshold():
    rng = np.random.default_rng(0)
    curves = rng.normal(size=(12, 5))
    for count, enough in ((11, False), (12, True)):
        made = calibrate(curves[:count], [0.1], max_steps=5, generator=np.random.default_rng(0))
        assert can_alarm(made) is enough
    for count, enough in ((8, False), (9, True)):
        assert can_alarm(constant_band(curves[:count], [0.1], max_steps=5)) is enough
