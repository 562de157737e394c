# SPDX-License-Identifier: Apache-2.0
"""The band at run time: strict comparison, its two ends, and what it refuses to load."""

import json

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from safe_monitor_node.band import Band, BandError


def make_band(**changes):
    values = {
        'alphas': np.array([0.1, 0.15, 0.5]),
        'upper': np.array([[np.inf, np.inf, np.inf], [1.0, 2.0, 3.0], [0.5, 1.5, 3.0]]),
        'kind': 'functional_std',
        'n_calibration': 7,
        'n_center': 3,
        'provenance': {'note': 'made by hand'},
    }
    return Band(**{**values, **changes})


def test_an_alarm_needs_a_score_strictly_above_the_threshold():
    threshold = make_band().at(0.15)
    assert threshold.first_crossing([1.0, 2.0, 3.0]) is None
    assert threshold.first_crossing([1.0, np.nextafter(2.0, 3.0), 9.0]) == 1
    assert threshold.first_crossing([1.5]) == 0
    assert threshold.first_crossing([]) is None


def test_an_infinite_threshold_never_alarms():
    assert make_band().at(0.1).first_crossing([1e30, 1e38, 1e300]) is None


@given(
    scores=hnp.arrays(np.float32, st.integers(1, 6), elements=st.floats(-4, 4, width=32)),
    upper=hnp.arrays(np.float64, 6, elements=st.floats(-4, 4)),
)
def test_the_first_crossing_is_the_first_step_that_at_would_alarm_on(scores, upper):
    threshold = Band(np.array([0.2]), upper[None], 'any', 10).at(0.2)
    by_step = [step for step, score in enumerate(scores) if float(score) > threshold.at(step)]
    assert threshold.first_crossing(scores) == (by_step[0] if by_step else None)


def test_alpha_is_found_despite_rounding_and_listed_when_absent():
    band = make_band()
    assert band.at(3 * 0.05).alpha == 0.15
    with pytest.raises(BandError, match=r'alpha 0\.12; choose one of 0\.1, 0\.15, 0\.5'):
        band.at(0.12)
    with pytest.raises(BandError, match='not calibrated'):
        band.at(float('nan'))


def test_past_its_last_step_the_band_says_so_and_does_not_extrapolate():
    threshold = make_band().at(0.5)
    assert threshold.at(2) == 3.0
    assert threshold.covers(3)
    assert not threshold.covers(4)
    with pytest.raises(BandError, match=r'step 3 is past the calibrated band of 3 steps.*horizon'):
        threshold.at(3)
    with pytest.raises(BandError, match='past the calibrated band'):
        threshold.first_crossing([0, 0, 0, 0])
    with pytest.raises(BandError, match='negative'):
        threshold.at(-1)


def test_a_nan_score_is_not_a_quiet_one():
    with pytest.raises(BandError, match='score at step 1 is NaN'):
        make_band().at(0.5).first_crossing([0.0, np.nan, 0.0])


def test_smallest_finite_alpha():
    assert make_band().smallest_finite_alpha == 0.15
    assert make_band(upper=np.full((3, 2), np.inf)).smallest_finite_alpha is None


def test_state_and_meta_rebuild_the_same_band():
    band = make_band()
    meta = json.loads(json.dumps(band.meta()))
    again = Band.from_state(band.state(), meta)
    np.testing.assert_array_equal(again.alphas, band.alphas)
    np.testing.assert_array_equal(again.upper, band.upper)
    assert again.meta() == band.meta()


def test_thresholds_cannot_change_after_they_were_checked():
    source = np.array([[1.0, 2.0]])
    band = Band(np.array([0.1]), source, 'any', 10)
    source[0, 0] = np.nan
    assert band.at(0.1).at(0) == 1.0
    with pytest.raises(ValueError, match='read-only'):
        band.at(0.1).upper[0] = 0.0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'alphas': np.array([0.1, 0.5, 0.15])}, 'increase'),
        ({'alphas': np.array([0.1, 0.1, 0.5])}, 'increase'),
        ({'alphas': np.array([0.0, 0.1, 0.5])}, r'inside \(0, 1\)'),
        ({'alphas': np.array([0.1, np.nan, 0.5])}, r'inside \(0, 1\)'),
        ({'alphas': np.array([[0.1, 0.2, 0.5]])}, r'shape \(K,\)'),
        ({'upper': np.ones((2, 3))}, r'shape \(3, T\)'),
        ({'upper': np.ones((3, 0))}, r'shape \(3, T\)'),
        ({'upper': np.array([[1.0, np.nan]] * 3)}, 'step 1 for alpha 0.1 is nan'),
        ({'upper': np.array([[-np.inf, 1.0]] * 3)}, 'step 0 for alpha 0.1 is -inf'),
        ({'upper': np.array([[1.0], [2.0], [0.5]])}, 'never is, so this one is corrupt'),
        ({'upper': np.array([[1.0], [np.inf], [0.5]])}, 'never is, so this one is corrupt'),
        ({'kind': ''}, 'kind must be a name'),
        ({'n_calibration': -1}, 'must be a count'),
        ({'n_calibration': 2.0}, 'must be a count'),
        ({'provenance': {'array': np.ones(3)}}, 'JSON'),
        ({'provenance': {'alpha': float('inf')}}, 'JSON'),
    ],
)
def test_a_malformed_band_is_refused(changes, message):
    with pytest.raises(BandError, match=message):
        make_band(**changes)


def test_adaptive_bands_may_cross():
    make_band(kind='functional_adaptive', upper=np.array([[1.0], [2.0], [0.5]]))


def test_a_stored_band_with_something_missing_is_refused():
    band = make_band()
    for name in ('alphas', 'upper'):
        state = band.state()
        del state[name]
        with pytest.raises(BandError, match=f"array '{name}' is missing"):
            Band.from_state(state, band.meta())
    for name in band.meta():
        meta = band.meta()
        del meta[name]
        with pytest.raises(BandError, match=f"field '{name}' is missing"):
            Band.from_state(band.state(), meta)
    single = {**band.state(), 'upper': band.upper.astype(np.float32)}
    with pytest.raises(BandError, match='must be float64, found float32'):
        Band.from_state(single, band.meta())
    with pytest.raises(BandError, match='provenance must be an object, found list'):
        Band.from_state(band.state(), {**band.meta(), 'provenance': []})
