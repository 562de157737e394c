# SPDX-License-Identifier: Apache-2.0
"""Split conformal thresholds keep their promise, and the published ones come out as published."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from outcome_sets import split_conformal
from scipy.stats import binom
from shared_files import DATA, golden_json

from safe_training.calibration.constant import constant_band
from safe_training.calibration.curves import CalibrationError
from safe_training.calibration.quantile import conformal_quantile
from safe_training.cli.main import main

CASES = golden_json('split_cp')


def number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


@pytest.mark.parametrize('case', CASES, ids=range(len(CASES)))
def test_the_published_thresholds_and_sets_come_out(case):
    dtype = np.dtype(case['dtype'].split()[0])
    scores = np.array(case['cal_scores'], dtype=dtype)
    failed = np.array(case['cal_fail_labels'], dtype=bool)
    one = dtype.type(1)
    positive = conformal_quantile(one - scores[failed], case['alpha'], 'published')
    negative = conformal_quantile(scores[~failed], case['alpha'], 'published')
    assert positive == pytest.approx(number(case['nonconf_threshold_pos']), abs=1e-6)
    assert negative == pytest.approx(number(case['nonconf_threshold_neg']), abs=1e-6)
    tested = np.array(case['test_scores'], dtype=dtype)
    sets = [
        [label for label, fits in ((0, s <= negative), (1, one - s <= positive)) if fits]
        for s in tested
    ]
    assert sets == case['prediction_sets']


def test_where_calibration_rollouts_are_too_few_only_infinity_keeps_the_promise():
    # D12: the published rank is clipped to the largest value there is.
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert conformal_quantile(values, 0.02) == math.inf
    assert conformal_quantile(values, 0.02, 'published') == 0.5
    assert conformal_quantile(values, 1 / 6) == 0.5
    assert conformal_quantile([], 0.5) == math.inf


def test_tiny_scores_of_failures_keep_their_threshold():
    # D38: 1 - (1 - s) is 0 for s = 1e-9 in float32.
    values = np.array([1e-9, 2e-9, 3e-9], dtype=np.float32)
    found = split_conformal(values, [True, True, True], 0.5)
    assert found.below_failures == pytest.approx(2e-9)
    assert found.above_successes == math.inf
    assert found.outcomes([1e-9, 2e-9]) == [(0,), (0, 1)]


@pytest.mark.parametrize('n', [5, 10, 20, 100])
def test_realised_errors_keep_the_promise_by_class_and_over_time(n):
    resamplings, alphas = 1000, (0.05, 0.1, 0.2, 0.3, 0.5)
    generator = np.random.default_rng(n)
    wrong = {'success': np.zeros(5, int), 'failure': np.zeros(5, int), 'alarm': np.zeros(5, int)}
    for _ in range(resamplings):
        # Rounded, so that ties show a wrong rank or comparison.
        successes = np.round(generator.normal(size=n + 1), 1)
        failures = np.round(generator.normal(size=n + 1) + 1, 1)
        values = np.r_[successes[1:], failures[1:]]
        failed = np.r_[np.zeros(n, bool), np.ones(n, bool)]
        lengths = generator.integers(3, 13, size=n + 1)
        curves = [
            np.round(generator.normal(size=length).cumsum() + 0.1 * length, 1) for length in lengths
        ]
        band = constant_band(curves[1:], alphas, max_steps=12)
        for k, alpha in enumerate(alphas):
            found = split_conformal(values, failed, alpha)
            wrong['success'][k] += successes[0] > found.above_successes
            wrong['failure'][k] += failures[0] < found.below_failures
            wrong['alarm'][k] += band.at(alpha).first_crossing(curves[0]) is not None
    allowed = binom.ppf(1 - 1e-4, resamplings, alphas)
    for name, counts in wrong.items():
        assert (counts <= allowed).all(), (name, counts / resamplings)
        for alpha, count in zip(alphas, counts, strict=True):
            reachable = np.floor((n + 1) * alpha + 1e-9) / (n + 1)
            assert count == 0 if reachable == 0 else count > 0.4 * reachable * resamplings


def test_the_same_simulation_convicts_the_published_rank():
    generator = np.random.default_rng(1)
    values = generator.normal(size=(1000, 6))
    errors = sum(row[0] > conformal_quantile(row[1:], 0.02, 'published') for row in values)
    assert errors > binom.ppf(1 - 1e-4, 1000, 0.02)


def test_one_threshold_needs_fewer_successes_and_says_where_it_has_none(tmp_path, capsys):
    band = constant_band([[0.1 * i, 0.5] for i in range(10)], [0.05, 0.1], max_steps=4)
    assert np.isinf(band.at(0.05).upper).all()
    assert band.at(0.1).upper.tolist() == [0.9] * 4
    assert 'too few for alpha 0.05' in band.provenance['note']
    fit = ['fit', str(DATA / 'miniature_disturbed.npz'), '--detector', 'clock', '--json']
    assert main([*fit, '--modulation', 'none', '--out', str(tmp_path / 'detector')]) == 0
    assert json.loads(capsys.readouterr().out)['band']['kind'] == 'split_conformal'


def test_wrong_values_are_refused():
    with pytest.raises(CalibrationError, match='NaN'):
        conformal_quantile([math.nan], 0.1)
    with pytest.raises(CalibrationError, match='inside'):
        conformal_quantile([1.0], 0.0)
    with pytest.raises(CalibrationError, match='same shape'):
        split_conformal([1.0, 2.0], [True], 0.1)
