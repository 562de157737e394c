# SPDX-License-Identifier: Apache-2.0
"""What every registered detector promises when it is made and fitted."""

import dataclasses
import inspect
import json
import random

import numpy as np
import pytest
import torch
from detector_cases import (
    BAND,
    DATA,
    HELD_OUT,
    SPEC,
    TRAINING,
    Case,
    arrays_of,
    assert_close,
    cases_and_data_where,
    cases_where,
    every_case,
    every_detector,
    fitted,
    mapped,
    may_read,
    without,
)
from live_scores import streamed

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import DETECTORS, DetectorError, make_detector
from safe_monitor_node.storage.detector_folder import load_detector

# --- construction


@every_detector
def test_names_and_needs_are_declared(name):
    cls = DETECTORS[name]
    assert cls.name == name
    assert isinstance(cls.needs, frozenset)
    assert cls.needs <= DATA
    assert inspect.getdoc(cls), 'a detector says what it is'


@every_detector
def test_all_parameters_are_given_by_name_and_have_defaults(name):
    for parameter in inspect.signature(DETECTORS[name]).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty


@every_detector
def test_parameters_are_json_values_and_make_the_same_detector_again(name):
    params = make_detector(name).get_params()
    read = json.loads(json.dumps(params, allow_nan=False))
    assert read == params
    assert make_detector(name, **read).get_params() == params


@every_detector
def test_the_constructor_stores_its_parameters_and_does_nothing_else(name):
    # Even nonsense: whether a value is possible is decided where it is used.
    sentinels = {parameter: object() for parameter in inspect.signature(DETECTORS[name]).parameters}
    detector = make_detector(name, **sentinels)
    assert vars(detector) == sentinels
    assert detector.get_params() == sentinels


def test_an_unknown_detector_or_parameter_is_refused_with_what_there_is():
    with pytest.raises(
        DetectorError, match=r"a known name, found 'sage_lstm'; choose one of: .*safe_lstm"
    ):
        make_detector('sage_lstm')
    with pytest.raises(DetectorError, match=r"'safe_lstm': .*parameter .*found 'hiden'; .*hidden"):
        make_detector('safe_lstm', hiden=3)


def test_a_detector_without_a_fitter_says_where_fitting_lives():
    class WithoutFitter(DETECTORS['mahalanobis']):
        name = 'without_fitter'

    with pytest.raises(DetectorError, match='install the package safe_training'):
        WithoutFitter().fit(TRAINING)


# --- fitting


@every_case
def test_fit_returns_the_detector_itself_and_leaves_its_parameters_alone(case):
    detector = case.make()
    before = detector.get_params()
    assert not detector.fitted
    assert detector.fit(TRAINING) is detector
    assert detector.fitted
    assert detector.get_params() == before
    gained = set(vars(detector)) - set(before)
    assert all(attribute.endswith('_') for attribute in gained), 'fitted state ends in _'


@every_detector
def test_an_unfitted_detector_refuses_to_score(name):
    detector = Case(name).make()
    for use in (
        lambda: detector.score(HELD_OUT[0]),
        lambda: detector.score_all(HELD_OUT),
        lambda: detector.stream(),
        lambda: detector.state(),
    ):
        with pytest.raises(DetectorError, match=f'detector {name}: expected a fitted detector'):
            use()


def global_random_state():
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  (to see that nobody uses it)
    numpy_state = (tuple(keys), position, has_gauss, gauss)
    return random.getstate(), numpy_state, tuple(torch.random.get_rng_state().tolist())


@every_case
def test_fitting_and_scoring_leave_the_global_generators_alone(case, tmp_path):
    before = global_random_state()
    detector = case.make().fit(TRAINING, validation=HELD_OUT)
    detector.score_all(HELD_OUT)
    streamed(detector, HELD_OUT[0])
    load_detector(CalibratedDetector(detector, SPEC, BAND, 0.1).save(tmp_path / 'detector'))
    assert global_random_state() == before


@every_case
def test_the_same_seed_gives_the_same_detector_whatever_the_global_generators_say(case):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        again = case.make().fit(TRAINING)
    for first, second in zip(
        fitted(case).score_all(HELD_OUT), again.score_all(HELD_OUT), strict=True
    ):
        np.testing.assert_array_equal(first, second)


@cases_where(lambda case: 'seed' in case.make().get_params())
def test_another_seed_gives_other_scores(case):
    other = make_detector(case.name, **{**case.params, 'seed': 99}).fit(TRAINING)
    assert not np.array_equal(other.score(HELD_OUT[0]), fitted(case).score(HELD_OUT[0]))


@every_case
def test_fitting_reports_its_progress_to_the_end(case):
    seen = []
    case.make().fit(TRAINING, progress=lambda done, total, note: seen.append((done, total, note)))
    for done, total, note in seen:
        assert 0 <= done <= total
        assert isinstance(note, str)
    if seen:
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
        assert seen[-1][0] == seen[-1][1]


@every_case
def test_fitting_and_scoring_change_nothing_they_are_given_and_take_read_only_arrays(case):
    def frozen(array):
        # As a rollout set's memory map: nobody may write here.
        return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)

    rollouts = [mapped(rollout, frozen) for rollout in TRAINING]
    assert not rollouts[0].features.flags.writeable
    detector = case.make().fit(rollouts)
    assert_close(detector.score(rollouts[0]), fitted(case).score(TRAINING[0]))
    assert_close(streamed(detector, rollouts[0]), fitted(case).score(TRAINING[0]))
    writable = mapped(HELD_OUT[0], np.array)
    detector.score(writable)
    streamed(detector, writable)
    case.make().fit([*TRAINING[1:], writable])
    for (name, found), (_, kept) in zip(arrays_of(writable), arrays_of(HELD_OUT[0]), strict=True):
        np.testing.assert_array_equal(found, kept, err_msg=name)


# --- what cannot be fitted on


@every_detector
def test_nothing_to_fit_on_is_refused(name):
    detector = Case(name).make()
    with pytest.raises(DetectorError, match='expected one or more training rollouts, found none'):
        detector.fit([])
    assert not detector.fitted


@every_detector
@pytest.mark.parametrize('success', [True, False])
def test_one_outcome_only_is_refused_or_makes_no_difference(name, success):
    one_class = [dataclasses.replace(r, success=success) for r in TRAINING]
    detector = Case(name).make()
    try:
        detector.fit(one_class)
    except DetectorError as error:
        assert str(len(one_class)) in str(error)
        assert ('successes' if success else 'failures') in str(error)
        assert not detector.fitted
        return
    expected = fitted(Case(name)).score(HELD_OUT[0])
    if not np.array_equal(detector.score(HELD_OUT[0]), expected):
        # Not learned from labels: learned from successes, whose number has changed.
        assert success
        successes = Case(name).make().fit([r for r in TRAINING if r.success])
        np.testing.assert_array_equal(successes.score(HELD_OUT[0]), expected)


@every_detector
def test_an_unlabelled_rollout_is_refused_by_name_or_makes_no_difference(name):
    rollouts = list(TRAINING)
    rollouts[5] = dataclasses.replace(rollouts[5], success=None)
    detector = Case(name).make()
    try:
        detector.fit(rollouts)
    except DetectorError as error:
        assert repr(rollouts[5].episode_id) in str(error)
        assert not detector.fitted
        return
    np.testing.assert_array_equal(
        detector.score(HELD_OUT[0]), fitted(Case(name)).score(HELD_OUT[0])
    )


def spoiled(value):
    def change(rollout):
        features = rollout.features.copy()
        features[3, 2] = value
        return dataclasses.replace(rollout, features=features)

    return change


UNFIT_FEATURES = {
    'NaN': spoiled(np.nan),
    'infinity': spoiled(np.inf),
    'too narrow': lambda r: dataclasses.replace(r, features=r.features[:, :-1]),
    'too wide': lambda r: dataclasses.replace(r, features=np.repeat(r.features, 2, axis=1)),
    'raw': lambda r: dataclasses.replace(r, features=np.repeat(r.features[:, None], 2, axis=1)),
    'absent': lambda r: without(r, 'features'),
}


@cases_where(lambda case: 'features' in case.needs)
@pytest.mark.parametrize('kind', UNFIT_FEATURES)
def test_features_that_do_not_fit_are_refused_by_the_rollouts_name(case, kind):
    bad = UNFIT_FEATURES[kind](TRAINING[5])
    detector = case.make()
    with pytest.raises(DetectorError, match=f'rollout {bad.episode_id!r}'):
        detector.fit([*TRAINING[:5], bad, *TRAINING[6:]])
    assert not detector.fitted
    with pytest.raises(DetectorError, match=f'rollout {bad.episode_id!r}'):
        fitted(case).score(bad)
    with pytest.raises(DetectorError, match=f'rollout {bad.episode_id!r}'):
        fitted(case).score_all([HELD_OUT[0], bad])


@cases_and_data_where(lambda case, data: data in case.needs and data != 'features')
def test_a_rollout_without_what_the_detector_needs_is_refused_by_name(case, data):
    bad = without(TRAINING[5], data)
    detector = case.make()
    with pytest.raises(DetectorError, match=f'rollout {bad.episode_id!r}'):
        detector.fit([*TRAINING[:5], bad, *TRAINING[6:]])
    assert not detector.fitted
    with pytest.raises(DetectorError, match=f'rollout {bad.episode_id!r}'):
        fitted(case).score(bad)


@every_case
def test_a_detector_reads_only_what_it_says_that_it_needs(case):
    bare = TRAINING
    for data in sorted(DATA, reverse=True):  # sampled_actions before actions
        if not may_read(case.needs, data):
            bare = [without(rollout, data) for rollout in bare]
    detector = case.make().fit(bare)
    np.testing.assert_array_equal(detector.score(bare[0]), fitted(case).score(TRAINING[0]))
