# SPDX-License-Identifier: Apache-2.0
"""Disagreement of samples against the published vectors, scikit-learn, and by hand."""

import dataclasses

import numpy as np
import pytest
from rollout_factory import make_rollout
from shared_files import assert_golden, golden_arrays
from sklearn.cluster import AgglomerativeClustering

import safe_training  # noqa: F401  (registers the fitters)
from safe_monitor_node.detectors import DetectorError, StepError, make_detector
from safe_monitor_node.detectors.clustering import squared_distances, ward_cluster_sizes

GOLDEN = golden_arrays('sample_metrics')
CASES = ('c0', 'c1', 'c2')
PARTS = ('action_translation_var', 'action_rotation_var', 'action_gripper_var')
SPREADS = (*PARTS, 'action_total_var', 'action_general_var', 'action_cluster_entropy')

every_case = pytest.mark.parametrize('case', CASES)


def rollout_of(actions, exec_horizon=1, signals=None):
    return make_rollout(
        steps=len(actions),
        task='stack',
        actions=actions,
        exec_horizon=exec_horizon,
        signals=signals or {},
    )


def score(name, actions, executed=1, **params):
    rollout = rollout_of(actions, executed)
    return make_detector(name, **params).fit([rollout]).score(rollout)


def samples_of(case):
    return GOLDEN[f'{case}/in/sampled_actions']


def outputs(case, prefix):
    names = (key.removeprefix(f'{case}/out/') for key in GOLDEN)
    return sorted(name for name in names if name.startswith(prefix))


# --- the published values


@every_case
@pytest.mark.parametrize(
    ('name', 'published'),
    [
        ('action_total_var', 'total_var'),
        ('action_translation_var', 'pos_var'),
        ('action_rotation_var', 'rot_var'),
        ('action_gripper_var', 'gripper_var'),
    ],
)
def test_the_published_variances(case, name, published):
    params = {'reference_compatible': True} if name in PARTS else {}
    assert_golden(score(name, samples_of(case), **params), GOLDEN[f'{case}/out/{published}'])


@every_case
def test_the_published_generalised_variance(case):
    found = score('action_general_var', samples_of(case), reference_compatible=True)
    np.testing.assert_allclose(found, GOLDEN[f'{case}/out/general_var'], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('case', 'output'), [(c, o) for c in CASES for o in outputs(c, 'entropy_linkage')]
)
def test_the_published_cluster_entropies(case, output):
    threshold = float(output.removeprefix('entropy_linkage'))
    found = score('action_cluster_entropy', samples_of(case), threshold=threshold)
    assert_golden(found, GOLDEN[f'{case}/out/{output}'])


@pytest.mark.parametrize(
    ('case', 'output'), [(c, o) for c in CASES for o in outputs(c, 'stac_mmd')]
)
def test_the_published_stac(case, output):
    executed, beta = output.removeprefix('stac_mmd_exec').split('_beta')
    found = score('stac', samples_of(case), int(executed), beta=float(beta))
    assert found[0] == 0
    assert_golden(found, GOLDEN[f'{case}/out/{output}'])
    # The parameter stands in for recordings that do not say how many actions were executed.
    again = score('stac', samples_of(case), 99, beta=float(beta), exec_horizon=int(executed))
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize(
    ('case', 'output'), [(c, o) for c in CASES for o in outputs(c, 'stac_single')]
)
def test_the_published_stac_single(case, output):
    which, executed = output.removeprefix('stac_single_').split('_exec')
    actions = samples_of(case)
    # One of our readers' duties is to put the executed sample first; some recordings keep it last.
    executed_sample = actions[:, -1:] if which == 'last' else actions[:, :1]
    found = score('stac_single', executed_sample, int(executed))
    assert found[0] == 0
    assert_golden(found, GOLDEN[f'{case}/out/{output}'])


@every_case
def test_the_published_discrepancy_of_whole_chunks(case):
    # Steps t - 1 and t as if they were chunks that overlap fully but for an executed first action.
    actions = samples_of(case)
    padding = np.zeros_like(actions[:, :, :1])
    before = np.concatenate([padding, actions], axis=2)
    now = np.concatenate([actions, padding], axis=2)
    expected = GOLDEN[f'{case}/out/mmd_consecutive_beta1']
    found = [score('stac', np.stack([before[t], now[t + 1]]))[1] for t in range(len(expected))]
    assert_golden(found, expected)


@pytest.mark.parametrize('name', [*SPREADS, 'stac', 'stac_single'])
def test_the_running_mean(name):
    actions = samples_of('c1')
    raw = score(name, actions)
    mean = score(name, actions, accumulate='mean')
    np.testing.assert_allclose(mean, np.cumsum(raw) / np.arange(1, 6), rtol=1e-5)


# --- where the published values are defects


def test_the_parts_of_a_chunk_are_those_of_every_action_and_not_of_the_first_only():
    # D29: for chunks the published code reads dimensions of the flattened chunk.
    samples = np.random.default_rng(0).normal(size=(1, 500, 4, 7)) * [1, 2, 3, 4, 5, 6, 7]
    ours = [score(name, samples)[0] for name in PARTS]
    np.testing.assert_allclose(ours, [4 * 14, 4 * 77, 4 * 49], rtol=0.1)
    published = [score(name, samples, reference_compatible=True)[0] for name in PARTS]
    np.testing.assert_allclose(published, [14, 77, 49 + 3 * 140], rtol=0.1)
    assert sum(ours) == pytest.approx(score('action_total_var', samples)[0], rel=1e-6)
    # Only the x of the second action varies: the published code calls that the gripper.
    samples = np.zeros((1, 9, 4, 7))
    samples[0, :, 1, 0] = np.arange(9)
    assert [score(name, samples)[0] for name in PARTS] == [7.5, 0, 0]
    assert [score(name, samples, reference_compatible=True)[0] for name in PARTS] == [0, 0, 7.5]


def test_the_generalised_variance_tells_few_samples_of_a_chunk_apart():
    # D30: 4 samples never span 35 numbers, and the published determinant is 0 whatever they are.
    rng = np.random.default_rng(0)
    narrow = rng.normal(size=(1, 4, 5, 7))
    wide = 3 * narrow
    published = [
        score('action_general_var', s, reference_compatible=True)[0] for s in (narrow, wide)
    ]
    assert published == [0, 0]
    equal = np.repeat(narrow[:, :1], 4, axis=1)
    ours = [score('action_general_var', s)[0] for s in (equal, narrow, wide)]
    assert ours[0] == pytest.approx(0, abs=1e-6)
    # Three directions, each with nine times the variance.
    assert ours[2] - ours[1] == pytest.approx(3 * np.log(9), rel=1e-4)
    assert ours[1] > 10


def test_the_generalised_variance_orders_full_covariances_as_their_determinants():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(20, 30, 1, 3)) * rng.uniform(0.2, 2, size=(20, 1, 1, 3))
    ours = score('action_general_var', samples, floor=1e-12)
    published = score('action_general_var', samples, reference_compatible=True)
    np.testing.assert_allclose(
        published, [np.linalg.det(np.cov(s[:, 0], rowvar=False)) for s in samples], rtol=1e-5
    )
    np.testing.assert_allclose(ours, np.log(published) - 3 * np.log(1e-12), rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(ours), np.argsort(published))


def test_other_robots_name_their_own_dimensions():
    samples = np.random.default_rng(0).normal(size=(3, 5, 2, 4))
    variance = samples.var(axis=1, ddof=1).sum(axis=1)
    found = [score(name, samples) for name in ('action_translation_var', 'action_gripper_var')]
    np.testing.assert_allclose(found, [variance[:, :3].sum(axis=1), variance[:, 3]], rtol=1e-5)
    with pytest.raises(DetectorError, match=r"'stack/0'.*from 0 to 3, found \[3, 4, 5\]"):
        score('action_rotation_var', samples)
    np.testing.assert_allclose(
        score('action_rotation_var', samples, dimensions=[1]), variance[:, 1], rtol=1e-5
    )


# --- clusters as scikit-learn makes them


@pytest.mark.parametrize('count', [2, 3, 4, 7, 10, 25])
def test_clusters_are_those_of_scikit_learn(count):
    rng = np.random.default_rng(count)
    for trial in range(60):
        points = rng.normal(size=(count, 5)) + 3 * rng.integers(0, 3, size=(count, 1))
        if trial % 2:
            # Rounded as a policy of tokens rounds: many ties, many equal samples.
            points = np.round(points[:, :2])
        for threshold in (0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 20.0):
            labels = AgglomerativeClustering(
                n_clusters=None, distance_threshold=threshold, linkage='ward'
            ).fit_predict(points)
            expected = sorted(np.bincount(labels))
            assert sorted(ward_cluster_sizes(points, threshold)) == expected


def test_the_entropy_of_clusters_by_hand():
    actions = np.zeros((2, 4, 1, 7), np.float16)
    actions[0, :3, 0, 0] = 1
    expected = [-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 0]
    np.testing.assert_allclose(score('action_cluster_entropy', actions), expected, rtol=1e-6)


def test_distances_far_from_zero_are_not_lost_to_rounding():
    rng = np.random.default_rng(0)
    a, b = (1e4 + 1e-3 * rng.normal(size=(6, 50)) for _ in range(2))
    expected = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(squared_distances(a, b), expected, rtol=1e-9)


# --- what cannot be compared


@pytest.mark.parametrize('name', [*SPREADS, 'stac'])
def test_one_sample_disagrees_with_nobody(name):
    one = samples_of('c1')[:, :1]
    with pytest.raises(DetectorError, match=r"'stack/0'.*step 0.*at least 2 sampled.*found 1"):
        score(name, one)


@pytest.mark.parametrize('name', ['stac', 'stac_single'])
def test_chunks_that_are_executed_whole_do_not_overlap(name):
    # D31: the published discrepancy is then always 0, and its single-sample one asserts.
    with pytest.raises(DetectorError, match=r"'stack/0'.*fewer than 4 executed actions.*found 4"):
        score(name, samples_of('c1'), 4)


@pytest.mark.parametrize('name', ['stac', 'stac_single'])
def test_each_step_says_how_much_of_it_is_executed(name):
    actions = samples_of('c1')
    rollout = rollout_of(actions, 1)
    detector = make_detector(name).fit([rollout])
    stream = detector.stream()
    executed = [1, 3, 2, 1, 1]
    found = [
        stream.step(dataclasses.replace(rollout.step(t), exec_horizon=executed[t]))
        for t in range(5)
    ]
    for t in range(1, 5):
        expected = score(name, actions[t - 1 : t + 1], executed[t - 1])[1]
        assert found[t] == pytest.approx(expected)


@pytest.mark.parametrize('name', ['stac', 'stac_single'])
def test_chunks_of_another_action_width_are_refused_and_forgotten(name):
    rollout = rollout_of(samples_of('c1'))
    detector = make_detector(name).fit([rollout])
    expected = detector.score(rollout)
    stream = detector.stream()
    stream.step(rollout.step(0))
    step = rollout.step(1)
    with pytest.raises(
        StepError, match=r'step 1.*action_dim of 7 as in the previous action chunk, found 6'
    ):
        stream.step(dataclasses.replace(step, actions=step.actions[..., :6]))
    assert stream.step(step) == pytest.approx(expected[1])


@pytest.mark.parametrize('name', SPREADS)
@pytest.mark.parametrize('where', [(1, 0, 0), (-1, -1, -1)])
def test_any_broken_sample_makes_a_step_invalid(name, where):
    rollout = rollout_of(samples_of('c1'))
    detector = make_detector(name).fit([rollout])
    step = rollout.step(2)
    broken = step.actions.copy()
    broken[where] = np.nan
    with pytest.raises(StepError, match='step 2'):
        detector.stream().step(dataclasses.replace(step, actions=broken))


def test_samples_are_preferred_to_a_recorded_quantity():
    actions = samples_of('c1')
    signals = {'total_var': np.full(len(actions), 5.0)}
    with_samples = rollout_of(actions, signals=signals)
    detector = make_detector('action_total_var').fit([with_samples])
    np.testing.assert_array_equal(detector.score(with_samples), score('action_total_var', actions))
    one_sample = rollout_of(actions[:, :1], signals=signals)
    np.testing.assert_array_equal(detector.score(one_sample), signals['total_var'])


@pytest.mark.parametrize(
    ('name', 'params', 'message'),
    [
        ('action_general_var', {'floor': 0.0}, 'floor: expected a number above 0 '),
        (
            'action_cluster_entropy',
            {'threshold': -1.0},
            'threshold: expected a number of at least 0',
        ),
        ('action_gripper_var', {'dimensions': []}, 'list of action dimensions'),
        (
            'action_gripper_var',
            {'dimensions': [6], 'reference_compatible': True},
            'remove dimensions or reference_compatible',
        ),
        ('stac', {'beta': 0.0}, 'beta: expected a number above 0 '),
        ('stac_single', {'exec_horizon': 0}, 'exec_horizon: expected an integer of at least 1'),
        ('signal', {'accumulate': 'median'}, 'accumulate: expected one of'),
    ],
)
def test_parameters_without_meaning_are_refused_at_fit(name, params, message):
    with pytest.raises(DetectorError, match=f'{name}: .*{message}'):
        score(name, samples_of('c1'), **params)


# --- one signal


def test_a_signal_is_averaged_taken_as_it_is_or_turned_round():
    values = np.array([1.0, 3.0, -4.0])
    rollout = rollout_of(np.zeros((3, 1, 2, 7)), signals={'chunk_mse': values, 'speed': -values})
    for params, expected in (
        ({'accumulate': 'mean'}, [1, 2, 0]),
        ({'accumulate': 'none'}, [1, 3, -4]),
        ({'accumulate': 'sum', 'negate': True}, [-1, -4, 0]),
        ({'signal': 'speed', 'accumulate': 'none'}, [-1, -3, 4]),
    ):
        detector = make_detector('signal', **params).fit([rollout])
        np.testing.assert_allclose(detector.score(rollout), expected)
    with pytest.raises(
        DetectorError, match=r"'stack/0'.*'height' .*found the signals chunk_mse, speed"
    ):
        make_detector('signal', signal='height').fit([rollout])
