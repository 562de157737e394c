# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals: they cover, and count what they cannot use."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import (
    roc_auc_score,
)

from safe_training.metrics import bootstrap
from safe_training.metrics.bootstrap import bootstrap_auc_interval


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(2, 30))
def test_the_resampled_auc_is_that_of_scikit_learn(seed, levels):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, size=25).astype(float)
    failed = generator.random(25) < 0.4
    weights = generator.multinomial(25, np.full(25, 1 / 25), size=6)
    for found, row in zip(bootstrap._weighted_auc(scores, failed, weights), weights, strict=True):
        if 0 < row[failed].sum() < 25:
            expected = roc_auc_score(failed, scores, sample_weight=row)
            assert found == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(found)


def test_the_auc_interval_covers_the_true_auc():
    # Two normal classes one standard deviation apart: the AUC is Phi(1 / sqrt(2)).
    true_auc = 0.5 * (1 + math.erf(0.5))
    generator = np.random.default_rng(3)
    failed = np.arange(120) < 40
    covered, width = 0, 0.0
    for _ in range(150):
        interval = bootstrap_auc_interval(
            generator.normal(size=120) + failed, failed, generator=generator, resamples=200
        )
        covered += interval.low <= true_auc <= interval.high
        width += (interval.high - interval.low) / 150
    assert 0.88 <= covered / 150 <= 1.0
    assert 0.1 < width < 0.25


def test_resamples_of_one_class_are_counted():
    values, failed = np.arange(4.0), np.array([False, False, False, True])
    interval = bootstrap_auc_interval(values, failed, generator=np.random.default_rng(0))
    assert interval.value == 1.0
    # (3/4)^4 of the resamples hold no failure.
    assert interval.used / interval.given == pytest.approx(1 - 0.75**4 - 0.25**4, abs=0.04)
    one_class = bootstrap_auc_interval(values, [True] * 4, generator=np.random.default_rng(0))
    assert math.isnan(one_class.value)
    assert one_class.used == 0


def test_the_size_of_the_chunks_does_not_matter(monkeypatch):
    values, failed = np.arange(30.0) % 7, np.arange(30) % 3 == 0
    whole = bootstrap_auc_interval(values, failed, generator=np.random.default_rng(0))
    monkeypatch.setattr(bootstrap, '_BOOTSTRAP_CHUNK', 100)
    assert bootstrap_auc_interval(values, failed, generator=np.random.default_rng(0)) == whole
