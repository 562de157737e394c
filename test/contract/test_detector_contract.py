# SPDX-License-Identifier: Apache-2.0
"""What every registered detector promises; a new one is tested here without adding a line."""

import collections
import dataclasses
import functools
import inspect
import json
import random
import types

import ml_dtypes
import numpy as np
import pytest
import torch

import safe_training  # noqa: F401  (registers the fitters)
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import (
    DETECTORS,
    DetectorError,
    StepError,
    make_detector,
)
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import rollout_signals

WIDTH = 16
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))
BAND = Band(np.array([0.1]), np.ones((1, 8)), 'any', 9)
DATA = frozenset({'features', 'actions', 'sampled_actions', 'tokens', 'signals'})
TINY = {'hidden': 8, 'epochs': 5}
# A group of the normalisation must hold more than a few numbers: one that holds four and happens to
# have no spread magnifies rounding 300 times, on some processors past the tolerance below.
TINY_UNET = {
    'down_dims': [16, 16],
    'kernel_size': 3,
    'groups': 2,
    'time_dim': 4,
    'epochs': 1,
    'batch_size': 12,
}

# Parameters that make a detector small and quick; one that is not named here is made by default.
SMALL = {
    'safe_mlp': TINY,
    'safe_lstm': TINY,
    'pca_kmeans': {'pca_dim': 4, 'clusters': 3},
    'rnd': TINY_UNET,
    'logpzo': {**TINY_UNET, 'in_dim': 5},
    # The samples of the rollouts below are this far apart.
    'action_cluster_entropy': {'threshold': 0.8},
}
# Further ways to score, beside the default.
VARIANTS = {
    'safe_mlp': [
        {'accumulate': 'sum'},
        {'accumulate': 'none'},
        {'layers': 1, 'activation': 'none'},
        {'layers': 3, 'accumulate': 'none', 'threshold': 0.9, 'max_grad_norm': 0.1},
        {'activation': 'relu', 'accumulate': 'sum', 'threshold': 5.0, 'init_weight_scale': 3.0},
        {'one_loss_per_rollout': True, 'batch_size': 5, 'time_weighting': True},
    ],
    'safe_lstm': [
        {'layers': 2},
        {'accumulate': 'sum'},
        {'accumulate': 'mean', 'layers': 3},
        {'history': 1},
        {'history': 4, 'layers': 2, 'accumulate': 'mean'},
        {'dropout': 0.5, 'batch_size': 5, 'hard_negative': 1.0},
    ],
    'random': [{'seed': 7}],
    'token_max_neg_log_prob': [{'accumulate': 'mean'}],
    'token_avg_neg_log_prob': [{'accumulate': 'sum'}],
    'token_max_entropy': [{'accumulate': 'mean'}],
    'token_avg_entropy': [{'accumulate': 'mean'}],
    'action_total_var': [{'accumulate': 'mean'}],
    'action_general_var': [{'accumulate': 'mean', 'floor': 0.1}],
    'action_translation_var': [{'dimensions': [1, 6]}, {'reference_compatible': True}],
    'action_rotation_var': [{'accumulate': 'sum'}, {'reference_compatible': True}],
    'action_gripper_var': [{'accumulate': 'mean'}, {'reference_compatible': True}],
    'action_cluster_entropy': [{'accumulate': 'mean'}],
    'stac': [{'accumulate': 'mean', 'beta': 10.0}, {'exec_horizon': 1, 'negate': True}],
    'stac_single': [{'accumulate': 'mean'}, {'exec_horizon': 4, 'negate': True}],
    'linear_probe': [
        {'inputs': 'both', 'l2': 0.1, 'smoothing': 0.5, 'method': 'linear', 'components': 3},
        {'inputs': 'both', 'method': 'distance', 'smoothing': 0.9},
        {'inputs': 'signals', 'signals': ['action_norm', 'action_jerk'], 'smoothing': 0.0},
    ],
    'signal': [{'signal': 'action_jerk', 'accumulate': 'none', 'negate': True}],
    'rnd': [
        {'success_only': True, 'accumulate': 'sum', 'lambda_reg': 0.1},
    ],
    'logpzo': [
        {'success_only': True, 'accumulate': 'sum', 'chunk': 10, 'batch_size': 1},
    ],
    'mahalanobis': [
        {'accumulate': 'sum'},
        {'success_only': True, 'accumulate': 'none', 'ridge': 0.1},
    ],
    'euclidean_knn': [
        {'neighbours': 1, 'accumulate': 'none'},
        {'success_only': True, 'accumulate': 'sum'},
    ],
    'cosine_knn': [
        {'neighbours': 1, 'accumulate': 'none'},
        {'success_only': True, 'accumulate': 'sum'},
    ],
    'pca_kmeans': [
        {'accumulate': 'sum', 'reference_compatible': True},
        {'success_only': True, 'accumulate': 'none', 'clusters': 6},
    ],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A detector and the parameters that it is made with."""

    name: str
    variant: int = -1

    def __str__(self):
        if self.variant < 0:
            return self.name
        changes = VARIANTS[self.name][self.variant].items()
        return '-'.join([self.name, *(f'{name}={value}' for name, value in changes)])

    @property
    def params(self):
        changes = {} if self.variant < 0 else VARIANTS[self.name][self.variant]
        return {**SMALL.get(self.name, {}), **changes}

    @property
    def needs(self):
        return DETECTORS[self.name].needs

    def make(self):
        return make_detector(self.name, **self.params)


CASES = [
    Case(name, variant)
    for name in sorted(DETECTORS)
    for variant in range(-1, len(VARIANTS.get(name, ())))
]

every_detector = pytest.mark.parametrize('name', sorted(DETECTORS))
every_case = pytest.mark.parametrize('case', CASES, ids=str)


def cases_where(condition):
    return pytest.mark.parametrize('case', [case for case in CASES if condition(case)], ids=str)


def cases_and_data_where(condition):
    pairs = [(case, data) for case in CASES for data in sorted(DATA) if condition(case, data)]
    return pytest.mark.parametrize(('case', 'data'), pairs, ids=str)


def may_read(needs, data):
    """Tell whether a detector with these needs may look at some data, directly or derived."""
    from_actions = {'actions', 'sampled_actions', 'signals'}
    return data in needs or (data in from_actions and bool(needs & from_actions))


def make_rollout(rng, index, length, dtype=np.float32):
    """Return a rollout that carries everything a detector may ask for; every second one fails."""
    failed = index % 2 == 1
    drift = np.linspace(0.0, 2.0, length)[:, None] if failed else 0.0
    features = rng.normal(size=(length, WIDTH)) + drift
    actions = rng.normal(size=(length, 1, 5, 7)) + 0.1 * rng.normal(size=(length, 4, 5, 7))
    probability = rng.uniform(0.2, 1.0, size=(length, 7))
    return Rollout(
        features=features.astype(dtype),
        task=f'task_{index % 3}',
        success=not failed,
        task_id=index % 3,
        episode_index=index,
        instruction='put the mug on the plate',
        policy='synthetic',
        feature_name=str(SPEC),
        actions=actions.astype(np.float32),
        exec_horizon=2,
        token_probability=probability.astype(np.float32),
        token_entropy=-np.log(probability).astype(np.float32),
        signals=rollout_signals(actions, 2),
    )


def make_rollouts(count, seed=0, shortest=6, longest=11, dtype=np.float32):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    return [make_rollout(rng, index, int(length), dtype) for index, length in enumerate(lengths)]


# 24 rollouts: every task has four successes and four failures.
TRAINING = make_rollouts(24)
HELD_OUT = make_rollouts(6, seed=1)


@functools.cache
def fitted(case):
    return case.make().fit(TRAINING)


def arrays_of(rollout):
    """Return (name, array) of everything that has an entry for each step."""
    named = ('features', 'actions', 'token_probability', 'token_entropy')
    return [(name, getattr(rollout, name)) for name in named] + list(rollout.signals.items())


def mapped(rollout, change):
    """Return the rollout with every array replaced by ``change(array)``."""
    named = ('features', 'actions', 'token_probability', 'token_entropy')
    return dataclasses.replace(
        rollout,
        **{name: change(getattr(rollout, name)) for name in named},
        signals={name: change(values) for name, values in rollout.signals.items()},
    )


def without(rollout, need):
    """Return the rollout without what a detector needs."""
    return {
        # As a dump that carries signals only.
        'features': lambda: dataclasses.replace(rollout, features=rollout.features[:, :0]),
        'actions': lambda: dataclasses.replace(rollout, actions=None, signals={}),
        'sampled_actions': lambda: dataclasses.replace(rollout, actions=rollout.actions[:, :1]),
        'tokens': lambda: dataclasses.replace(rollout, token_probability=None, token_entropy=None),
        'signals': lambda: dataclasses.replace(rollout, signals={}),
    }[need]()


def streamed(detector, rollout):
    stream = detector.stream()
    return np.array([stream.step(rollout.step(t)) for t in range(len(rollout))])


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# --- construction


@every_detector
def test_names_and_needs_are_declared(name):
    cls = DETECTORS[name]
    assert cls.name == name
    assert isinstance(cls.needs, frozenset)
    assert cls.needs <= DATA
    assert inspect.getdoc(cls), 'a detector says what it is'


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
        DetectorError, match=r"unknown detector 'sage_lstm'; there are: .*safe_lstm"
    ):
        make_detector('sage_lstm')
    with pytest.raises(DetectorError, match=r"'safe_lstm' has no parameter 'hiden'; .*hidden"):
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
        with pytest.raises(DetectorError, match=rf'{name} is not fitted'):
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
    with pytest.raises(DetectorError, match='no rollouts'):
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
    np.testing.assert_array_equal(
        detector.score(HELD_OUT[0]), fitted(Case(name)).score(HELD_OUT[0])
    )


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


# --- batch and stream are one score

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@every_case
def test_the_stream_gives_the_score_of_the_whole_rollout(case):
    for rollout in [r for dtype in DTYPES for r in make_rollouts(3, seed=2, dtype=dtype)]:
        score = fitted(case).score(rollout)
        assert score.shape == (len(rollout),)
        assert score.dtype == np.float32
        assert np.isfinite(score).all()
        assert_close(streamed(fitted(case), rollout), score)


@every_case
def test_the_stream_gives_the_score_of_a_long_rollout(case):
    rollout = make_rollout(np.random.default_rng(3), 1, 200)
    assert_close(streamed(fitted(case), rollout), fitted(case).score(rollout))


@every_case
def test_one_step_is_a_rollout_too(case):
    rollout = make_rollout(np.random.default_rng(4), 1, 1)
    assert_close(streamed(fitted(case), rollout), fitted(case).score(rollout))


@every_case
def test_strided_arrays_score_as_contiguous_ones(case):
    def strided(array):
        wide = np.repeat(array, 2, axis=-1)
        return wide[..., ::2]

    rollout = HELD_OUT[0]
    np.testing.assert_array_equal(
        fitted(case).score(mapped(rollout, strided)), fitted(case).score(rollout)
    )
    assert_close(streamed(fitted(case), mapped(rollout, strided)), fitted(case).score(rollout))


@every_case
def test_scoring_many_rollouts_is_scoring_each(case):
    # More than a detector may take at once, in no order of length.
    rollouts = make_rollouts(70, seed=5, shortest=1, longest=6)
    together = fitted(case).score_all(rollouts)
    assert len(together) == len(rollouts)
    for scores, rollout in zip(together, rollouts, strict=True):
        assert scores.shape == (len(rollout),)
        assert_close(scores, fitted(case).score(rollout), 1e-6)
    assert fitted(case).score_all([]) == []


# --- time runs forwards


@every_case
def test_the_score_of_a_step_does_not_know_the_future(case):
    rollout = make_rollout(np.random.default_rng(6), 1, 12)
    score = fitted(case).score(rollout)
    for now in (1, 5, 11):

        def past(array, now=now):
            return array[:now]

        def another_future(array, now=now):
            # Probabilities stay probabilities, entropies stay positive.
            return np.concatenate([array[:now], 0.1 + 0.3 * array[now:][::-1]])

        assert_close(fitted(case).score(mapped(rollout, past)), score[:now], 1e-6)
        assert_close(fitted(case).score(mapped(rollout, another_future))[:now], score[:now], 1e-6)


@cases_where(lambda case: case.needs)
def test_the_score_depends_on_what_the_detector_needs(case):
    rollout = HELD_OUT[0]
    changed = mapped(rollout, lambda array: array[::-1] * 0.7)
    assert not np.allclose(fitted(case).score(changed), fitted(case).score(rollout))


# --- streams


@every_case
def test_two_episodes_at_once_share_no_memory(case):
    first, second = HELD_OUT[0], HELD_OUT[1]
    alone = [streamed(fitted(case), first), streamed(fitted(case), second)]
    streams = [fitted(case).stream(), fitted(case).stream()]
    mixed = [[], []]
    for t in range(max(len(first), len(second))):
        for stream, rollout, scores in zip(streams, (first, second), mixed, strict=True):
            if t < len(rollout):
                scores.append(stream.step(rollout.step(t)))
            # Batch scoring meanwhile is no step of any stream.
            fitted(case).score(first)
    for found, expected in zip(mixed, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@every_case
def test_a_step_gives_a_plain_float_and_is_not_changed(case):
    step = HELD_OUT[0].step(0)
    before = {name: np.copy(getattr(step, name)) for name in ('features', 'actions')}
    assert type(fitted(case).stream().step(step)) is float
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(step, name), array)


def held_bytes(thing):
    """Return the bytes of all arrays and the number of all entries that an object holds."""
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return len(thing) + sum(map(held_bytes, thing.values()))
    if isinstance(thing, (list, tuple, collections.deque)):
        return len(thing) + sum(map(held_bytes, thing))
    if isinstance(thing, types.MethodType) or not hasattr(thing, '__dict__'):
        return 0
    return held_bytes(vars(thing))


@every_case
def test_the_memory_of_a_stream_does_not_grow(case):
    rollout = make_rollout(np.random.default_rng(7), 0, 60)
    stream = fitted(case).stream()
    held = []
    for t in range(len(rollout)):
        stream.step(rollout.step(t))
        held.append(held_bytes(stream))
    assert held[-1] == held[29]


BAD_FEATURES = {
    'NaN': lambda f: np.where(np.arange(WIDTH) == 3, np.nan, f),
    'infinity': lambda f: np.where(np.arange(WIDTH) == 3, np.inf, f),
    'both infinities': lambda f: np.concatenate([[np.inf, -np.inf], f[2:]]),
    'all NaN': lambda f: np.full_like(f, np.nan),
    'NaN in half precision': lambda f: np.full(WIDTH, np.nan, np.float16),
    'too narrow': lambda f: f[:-1],
    'too wide': lambda f: np.append(f, 0.0),
    'empty': lambda f: f[:0],
    'raw': lambda f: np.stack([f, f]),
    'a row': lambda f: f[None],
    'a number': lambda f: f[0],
}
BAD_ACTIONS = {
    'NaN': lambda a: np.where(a == a[0, 0, 0], np.nan, a),
    'infinity': lambda a: np.where(a == a[0, 0, 0], np.inf, a),
    'no sample': lambda a: a[:0],
    'no horizon': lambda a: a[:, :0],
    'one action': lambda a: a[0, 0],
    'one chunk': lambda a: a[0],
    'a number': lambda a: a[0, 0, 0],
    'absent': lambda a: None,
}


def bad_steps(needs, step):
    """Return (what is wrong, step) for everything that a detector with these needs must refuse."""
    found = []
    if 'features' in needs:
        found += [
            (
                f'features: {kind}',
                dataclasses.replace(step, features=np.asarray(bad(step.features))),
            )
            for kind, bad in BAD_FEATURES.items()
        ]
    if needs & {'actions', 'sampled_actions'}:
        found += [
            (f'actions: {kind}', dataclasses.replace(step, actions=bad(step.actions), signals={}))
            for kind, bad in BAD_ACTIONS.items()
        ]
    if 'sampled_actions' in needs:
        found.append(('one sample', dataclasses.replace(step, actions=step.actions[:1])))
    if 'tokens' in needs:
        absent = dataclasses.replace(step, token_probability=None, token_entropy=None)
        found.append(('tokens: absent', absent))
    if 'signals' in needs:
        found.append(('signals: absent', dataclasses.replace(step, signals={})))
        broken = dict.fromkeys(step.signals, float('nan'))
        found.append(('signals: NaN', dataclasses.replace(step, signals=broken)))
    return found


@every_case
@pytest.mark.parametrize('at', [0, 3], ids=['first', 'later'])
def test_a_bad_step_is_refused_and_forgotten(case, at):
    rollout = HELD_OUT[2]
    expected = streamed(fitted(case), rollout)
    for kind, bad in bad_steps(case.needs, rollout.step(at)):
        stream = fitted(case).stream()
        scores = []
        for t in range(len(rollout)):
            if t == at:
                for _ in range(2):
                    try:
                        with pytest.raises(StepError, match=f'step {at}'):
                            stream.step(bad)
                    except AssertionError as error:
                        raise AssertionError(f'{kind}: {error}') from error
            scores.append(stream.step(rollout.step(t)))
        np.testing.assert_array_equal(scores, expected, err_msg=kind)


@every_case
def test_features_near_the_largest_number_are_no_infinity(case):
    rollout = HELD_OUT[0]
    large = dataclasses.replace(rollout, features=rollout.features * np.float32(1e25))
    stream = fitted(case).stream()
    stream.step(large.step(0))


# --- the detector folder


@every_case
def test_a_detector_from_its_folder_scores_bit_for_bit_the_same(case, tmp_path):
    detector = fitted(case)
    folder = CalibratedDetector(detector, SPEC, BAND, 0.1).save(tmp_path / 'detector')
    loaded = load_detector(folder).detector
    assert type(loaded) is type(detector)
    assert loaded.get_params() == detector.get_params()
    for rollout in HELD_OUT:
        np.testing.assert_array_equal(loaded.score(rollout), detector.score(rollout))
        np.testing.assert_array_equal(streamed(loaded, rollout), streamed(detector, rollout))


@every_case
def test_the_state_is_a_copy_in_plain_arrays(case):
    detector = case.make().fit(TRAINING)
    before = detector.score(HELD_OUT[0])
    for array in detector.state().values():
        assert type(array) is np.ndarray
        array[...] = 0
    np.testing.assert_array_equal(detector.score(HELD_OUT[0]), before)


@every_case
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(case):
    state = fitted(case).state()
    changed = [{**state, 'surplus': np.zeros(3, np.float32)}]
    for name, array in state.items():
        rest = {key: value for key, value in state.items() if key != name}
        changed.append(rest)
        changed.append({**rest, name: array[..., None]})
        if array.size > 1:
            changed.append({**rest, name: array[:-1]})
        if array.dtype == np.float32:
            changed.append({**rest, name: array.astype(np.int64)})
    for wrong in changed:
        detector = case.make()
        with pytest.raises(DetectorError, match=case.name):
            detector.load_state(wrong, WIDTH)
        assert not detector.fitted
