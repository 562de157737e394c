# SPDX-License-Identifier: Apache-2.0
"""The band at run time: strict comparison, first and last step, and bands that are refused."""

import json

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from safe_monitor_node.bands.band import Band, BandShape
from safe_monitor_node.bands.threshold import BandError


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
    with pytest.raises(
        BandError, match=r'calibrated alphas 0\.1, 0\.15, 0\.5, found alpha 0\.12; .*--alpha 0\.12'
    ):
        band.at(0.12)
    with pytest.raises(BandError, match='found alpha nan'):
        band.at(float('nan'))


def test_past_its_last_step_the_band_says_so_and_does_not_extrapolate():
    threshold = make_band().at(0.5)
    assert threshold.at(2) == 3.0
    assert threshold.covers(3)
    assert not threshold.covers(4)
    with pytest.raises(
        BandError, match=r'a step from 0 to 2 \(.*: 3\), found step 3; .*set --max-steps to'
    ):
        threshold.at(3)
    with pytest.raises(BandError, match='found step 3; fit the detector again'):
        threshold.first_crossing([0, 0, 0, 0])
    with pytest.raises(BandError, match=r'a step from 0 to 2 .*found step -1$'):
        threshold.at(-1)


def test_a_nan_score_is_not_a_quiet_one():
    with pytest.raises(BandError, match='expected a score at step 1, found NaN'):
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
        ({'alphas': np.array([0.1, 0.5, 0.15])}, 'in ascending order, found'),
        ({'alphas': np.array([0.1, 0.1, 0.5])}, 'different alphas .*, found'),
        ({'alphas': np.array([0.0, 0.1, 0.5])}, r'above 0 and below 1 .*found \[0\.0, '),
        ({'alphas': np.array([0.1, np.nan, 0.5])}, r'above 0 and below 1 .*found \[0\.1, nan'),
        ({'alphas': np.array([[0.1, 0.2, 0.5]])}, r'shape \(K,\)'),
        ({'upper': np.ones((2, 3))}, r'shape \(3, T\)'),
        ({'upper': np.ones((3, 0))}, r'shape \(3, T\)'),
        (
            {'upper': np.array([[1.0, np.nan]] * 3)},
            'finite or .*, found nan at step 1 for alpha 0.1',
        ),
        (
            {'upper': np.array([[-np.inf, 1.0]] * 3)},
            'finite or .*, found -inf at step 0 for alpha 0.1',
        ),
        (
            {'upper': np.array([[1.0], [2.0], [0.5]])},
            r'alpha 0\.15 at step 0 .*smaller alpha 0\.1.*; the band is damaged',
        ),
        (
            {'upper': np.array([[1.0], [np.inf], [0.5]])},
            r'alpha 0\.15 at step 0 .*smaller alpha 0\.1.*; the band is damaged',
        ),
        ({'kind': ''}, "expected a name as kind, found ''"),
        ({'n_calibration': -1}, 'n_calibration as an integer of at least 0, found -1'),
        ({'n_calibration': 2.0}, r'n_calibration as an integer of at least 0, found 2\.0'),
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
        with pytest.raises(BandError, match=f"expected an array '{name}', found the arrays"):
            Band.from_state(state, band.meta())
    for name in band.meta().keys() - {'tasks'}:
        meta = band.meta()
        del meta[name]
        with pytest.raises(BandError, match=f"expected an entry '{name}', found the entries"):
            Band.from_state(band.state(), meta)
    single = {**band.state(), 'upper': band.upper.astype(np.float32)}
    with pytest.raises(BandError, match="array 'upper' of float64, found float32"):
        Band.from_state(single, band.meta())
    with pytest.raises(BandError, match='provenance that is an object, found list'):
        Band.from_state(band.state(), {**band.meta(), 'provenance': []})


def make_shape(**changes):
    values = {
        'center': np.array([0.0, 1.0, 2.0]),
        'width': np.ones((3, 3)),
        'nonconformity': np.tile(np.arange(7.0), (3, 1)),
    }
    return BandShape(**{**values, **changes})


def test_a_task_has_its_own_threshold_where_that_is_finite():
    own = make_band(
        upper=np.array([[np.inf] * 3, [np.inf] * 3, [0.1, 0.2, 0.3]]), n_calibration=1, n_center=0
    )
    band = make_band(tasks={'pour': own})
    assert band.at(0.5, 'pour').upper.tolist() == [0.1, 0.2, 0.3]
    assert band.at(0.5, 'pour').task == 'pour'
    # One rollout cannot promise 0.15 for one task. A band that can never alarm is not used.
    assert band.at(0.15, 'pour').upper.tolist() == [1.0, 2.0, 3.0]
    assert band.at(0.15, 'pour').task == ''
    assert band.at(0.5, 'stack').upper.tolist() == band.at(0.5).upper.tolist() == [0.5, 1.5, 3.0]


def test_bands_of_tasks_and_shapes_are_stored_with_the_band():
    own = make_band(shape=make_shape(), upper=np.array([[9.0] * 3, [8.0] * 3, [7.0] * 3]))
    band = make_band(shape=make_shape(), tasks={'pour': own, 'ünder/way': make_band()})
    meta = json.loads(json.dumps(band.meta()))
    again = Band.from_state(band.state(), meta)
    assert list(again.tasks) == ['pour', 'ünder/way']
    assert again.at(0.15, 'pour').upper.tolist() == [8.0] * 3
    np.testing.assert_array_equal(again.shape.nonconformity, band.shape.nonconformity)
    np.testing.assert_array_equal(again.tasks['pour'].shape.center, own.shape.center)
    assert again.tasks['ünder/way'].shape is None
    before = {name: meta[name] for name in meta.keys() - {'tasks'}}
    assert not Band.from_state(make_band().state(), before).tasks


@pytest.mark.parametrize(
    ('make', 'match'),
    [
        (
            lambda: make_shape(width=np.zeros((3, 3))),
            'a positive width at each step, found a width of 0',
        ),
        (
            lambda: make_shape(center=np.array([0.0, np.nan, 0.0])),
            'center .* finite numbers, found .* 2 finite',
        ),
        (
            lambda: make_shape(nonconformity=np.array([[1.0, 0.0]])),
            'expected ascending nonconformities',
        ),
        (lambda: make_band(shape=make_shape(center=np.zeros(2))), r'center of shape \(3,\)'),
        (
            lambda: make_band(n_calibration=6, shape=make_shape()),
            r'shape \(3, 6\), found shape \(3, 7\)',
        ),
        (lambda: make_band(tasks={'': make_band()}), "the name of a task .*found ''"),
        (
            lambda: make_band(tasks={'a': make_band(tasks={'b': make_band()})}),
            "in the band of task 'a', found bands of the tasks b",
        ),
        (
            lambda: make_band(tasks={'a': Band(np.array([0.1]), np.ones((1, 3)), 'any', 1)}),
            r'as the band of all tasks, found the alphas \[0\.1\] and 3 steps',
        ),
    ],
)
def test_shapes_and_bands_of_tasks_that_do_not_fit_are_refused(make, match):
    with pytest.raises(BandError, match=match):
        make()


@pytest.mark.parametrize('tasks', [3, [3], [{'task': 1}], [{'task': 'a'}]])
def test_stored_bands_of_tasks_that_are_none_are_refused(tasks):
    with pytest.raises(BandError):
        Band.from_state(make_band().state(), {**make_band().meta(), 'tasks': tasks})
