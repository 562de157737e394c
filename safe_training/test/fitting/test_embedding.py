# SPDX-License-Identifier: Apache-2.0
"""Embedding distances against the published vectors, and where they are better than published."""

import dataclasses
import re
from functools import partial

import numpy as np
import pytest
from live_scores import streamed
from rollout_factory import make_rollout, make_rollouts
from shared_files import assert_golden, golden_arrays
from sklearn.metrics import roc_auc_score

import safe_training  # noqa: F401  (registers the fitters)
from safe_monitor_node.detectors import DetectorError, StepError, make_detector
from safe_monitor_node.detectors.neighbours import _CosineNeighbours, _Neighbours
from safe_training.evaluation.evaluate import fit_and_judge
from safe_training.evaluation.protocol import Protocol, choose_split
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.pooling import FeatureSpec

GOLDEN = golden_arrays('embed')
TOLERANCE = 3e-4
NAMES = {'mahala': 'mahalanobis', 'euclid': 'euclidean_knn', 'cosine': 'cosine_knn'}
CASES = sorted({key.split('/')[0] for key in GOLDEN if key.endswith('out/scores')})
EMBEDDINGS = ('mahalanobis', 'euclidean_knn', 'cosine_knn', 'pca_kmeans')
SMALL_PCA = {'pca_dim': 3, 'clusters': 4}


close = partial(assert_golden, tolerance=TOLERANCE)


def golden_rollouts(part):
    features, masks = (GOLDEN[f'common/in/{part}_{what}'] for what in ('features', 'masks'))
    success = GOLDEN['common/in/train_success'] if part == 'train' else np.ones(len(features))
    return [
        make_rollout(i, features=f[m > 0], task='t', success=bool(s))
        for i, (f, m, s) in enumerate(zip(features, masks, success, strict=True))
    ]


TRAIN, TEST = golden_rollouts('train'), golden_rollouts('test')


def close_where_valid(detector, expected):
    for rollout, row in zip(TEST, expected, strict=True):
        close(detector.score(rollout), row[: len(rollout)])
        close(streamed(detector, rollout), row[: len(rollout)])


def params_of(case):
    found = re.fullmatch(r'(\w+)_k(\d+)_so(\d)_cs(\d)', case)
    kind, neighbours, success_only, summed = found.groups()
    return kind, {
        'success_only': success_only == '1',
        'accumulate': 'sum' if summed == '1' else 'none',
    } | ({'neighbours': int(neighbours)} if kind in ('euclid', 'cosine') else {})


def golden_pca(case, **params):
    arrays = {name: GOLDEN[f'{case}/in/{name}'] for name in ('pca_mean_s', 'pca_mean_f')}
    components, centroids = GOLDEN[f'{case}/in/pca_comp_s'], GOLDEN[f'{case}/in/centroids_s']
    detector = make_detector(
        'pca_kmeans', pca_dim=len(components), clusters=len(centroids), **params
    )
    state = {}
    for outcome, letter in (('success', 's'), ('failure', 'f')):
        state[f'{outcome}.mean'] = arrays[f'pca_mean_{letter}'].astype(np.float64)
        state[f'{outcome}.components'] = GOLDEN[f'{case}/in/pca_comp_{letter}']
        state[f'{outcome}.centroids'] = GOLDEN[f'{case}/in/centroids_{letter}']
    if detector.success_only:
        state = {name: a for name, a in state.items() if name.startswith('success')}
    detector.load_state(state, components.shape[1])
    return detector


# --- the published vectors


@pytest.mark.parametrize('case', [c for c in CASES if not c.startswith('pca')])
def test_golden_scores(case):
    kind, params = params_of(case)
    close_where_valid(make_detector(NAMES[kind], **params).fit(TRAIN), GOLDEN[f'{case}/out/scores'])


@pytest.mark.parametrize('case', [c for c in CASES if c.startswith('pca')])
def test_golden_pca_kmeans_scores_with_the_published_mix_up_of_subspaces(case):
    detector = golden_pca(case, reference_compatible=True, **params_of(case)[1])
    close_where_valid(detector, GOLDEN[f'{case}/out/scores'])


def test_golden_pca_kmeans_scores_with_each_class_in_its_own_subspace():
    case = 'pca_kmeans_k1_so0_cs0'
    detector = golden_pca(case, accumulate='none')
    close_where_valid(detector, GOLDEN[f'{case}/out/corrected_scores_failure_pca_space'])
    published = golden_pca(case, accumulate='none', reference_compatible=True)
    assert np.abs(detector.score(TEST[0]) - published.score(TEST[0])).max() > 0.1


def test_golden_mean_and_covariance():
    state = make_detector('mahalanobis', ridge=1e-4).fit(TRAIN).state()
    for outcome, letter in (('success', 's'), ('failure', 'f')):
        close(state[f'{outcome}.mean'], GOLDEN[f'mahala_stats/out/mean_{letter}'])
        inverse = state[f'{outcome}.factor'].T.astype(np.float64) @ state[f'{outcome}.factor']
        # The published covariance holds the ridge already.
        close(np.linalg.inv(inverse), GOLDEN[f'mahala_stats/out/cov_{letter}'])


@pytest.mark.parametrize(
    ('model', 'name'), [(_Neighbours, 'euclid'), (_CosineNeighbours, 'cosine')]
)
def test_golden_pairwise_distances(model, name):
    x, y = GOLDEN['pairwise/in/x'], GOLDEN['pairwise/in/y']
    unit = y / np.linalg.norm(y, axis=1, keepdims=True) if name == 'cosine' else y
    centre = unit.mean(axis=0).astype(np.float64)
    for j, row in enumerate(unit):
        bank = model(centre, (row - centre)[None].astype(np.float32), np.zeros(1, np.int64), 1)
        close(bank.distances(x), GOLDEN[f'pairwise/out/{name}'][:, j])
    if name == 'euclid':
        for k in (1, 2, 3):
            bank = model(centre, (y - centre).astype(np.float32), np.zeros(len(y), np.int64), k)
            close(bank.distances(x), GOLDEN['pairwise/out/top3_euclid'][:, :k].mean(axis=1))


# --- numerically better than published


def rollouts_from(rng, count, dim, *, length=20, scale=1.0, centre=0.0, shift=0.0):
    return make_rollouts(
        count,
        steps=length,
        dim=dim,
        rng=rng,
        looks=lambda noise, failed: centre + scale * (noise + (shift if failed else 0.0)),
        task=lambda i: f't{i % 4}',
    )


def test_a_step_seen_in_training_is_at_distance_zero_however_far_from_the_origin():
    # Published: self distances up to 0.61 where features are ~100 with a spread of 0.01 (D46).
    rollouts = rollouts_from(np.random.default_rng(0), 60, 64, scale=0.01, centre=100.0)
    detector = make_detector(
        'euclidean_knn', neighbours=1, success_only=True, accumulate='none'
    ).fit(rollouts)
    assert (detector.score(rollouts[0]) == 0).all()
    x = rollouts[0].features
    published = (x**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * x @ x.T
    assert np.sqrt(np.maximum(np.diag(published), 0)).max() > 0.01


@pytest.mark.parametrize('name', ['euclidean_knn', 'cosine_knn'])
@pytest.mark.parametrize('centre', [0.0, 100.0])
def test_distances_equal_brute_force_in_double_precision(name, centre):
    rng = np.random.default_rng(1)
    train = rollouts_from(rng, 40, 32, scale=0.1, centre=centre)
    test = rollouts_from(rng, 4, 32, scale=0.1, centre=centre)
    detector = make_detector(name, neighbours=3, accumulate='none').fit(train)
    rows = {
        fails: np.concatenate([r.features for r in train if r.failed == fails]).astype(np.float64)
        for fails in (False, True)
    }
    for rollout in test:
        x = rollout.features.astype(np.float64)

        def mean_nearest(y, x=x):
            if name == 'cosine_knn':
                x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
                distances = 1 - x @ y.T
            else:
                distances = np.linalg.norm(x[:, None] - y[None], axis=2)
            return np.sort(distances, axis=1)[:, :3].mean(axis=1)

        expected = mean_nearest(rows[False]) - mean_nearest(rows[True])
        np.testing.assert_allclose(
            detector.score(rollout), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
        )


def test_a_vector_of_zeros_has_cosine_distance_one_to_everything():
    rollouts = rollouts_from(np.random.default_rng(2), 8, 16)
    detector = make_detector('cosine_knn', success_only=True, accumulate='none').fit(rollouts)
    zero = dataclasses.replace(rollouts[0], features=np.zeros((1, 16), np.float32))
    np.testing.assert_allclose(detector.score(zero), 1.0)
    # Among the neighbours, too: every step of this class is a zero vector.
    zeros = [
        r if r.failed else dataclasses.replace(r, features=np.zeros((20 + i, 16), np.float32))
        for i, r in enumerate(rollouts)
    ]
    detector = make_detector('cosine_knn', success_only=True, accumulate='none').fit(zeros)
    np.testing.assert_allclose(detector.score(rollouts[1]), 1.0)
    np.testing.assert_allclose(detector.score(zero), 1.0)


def test_mahalanobis_with_fewer_steps_than_features():
    # Published: the square root of a negative number in 10 of 10 such cases (D46).
    rng = np.random.default_rng(3)
    train = rollouts_from(rng, 20, 512, scale=20.0)
    detector = make_detector('mahalanobis', accumulate='none').fit(train)
    for rollout in [train[0], rollouts_from(rng, 1, 512, scale=20.0)[0]]:
        x = rollout.features.astype(np.float64)
        expected, largest = 0.0, 0.0
        for sign, fails in ((1, False), (-1, True)):
            rows = np.concatenate([r.features for r in train if r.failed == fails])
            rows = rows.astype(np.float64)
            z = x - rows.mean(axis=0)
            values, vectors = np.linalg.eigh(np.cov(rows.T))
            values = np.maximum(values, 0) + 1e-4
            distances = np.sqrt((((z @ vectors) ** 2) / values).sum(axis=1))
            expected = expected + sign * distances
            largest = max(largest, distances.max())
        # The score is a small difference of distances of up to `largest`.
        np.testing.assert_allclose(detector.score(rollout), expected, rtol=0, atol=1e-6 * largest)
        stream = detector.stream()
        live = [stream.step(rollout.step(t)) for t in range(len(rollout))]
        np.testing.assert_allclose(live, detector.score(rollout), rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize('dim', [255, 256, 257, 600])
def test_the_blocked_product_of_a_live_step_leaves_nothing_out(dim):
    rng = np.random.default_rng(4)
    detector = make_detector('mahalanobis', accumulate='none', ridge=0.1)
    detector.fit(rollouts_from(rng, 20, dim))
    rollout = rollouts_from(rng, 1, dim)[0]
    stream = detector.stream()
    live = [stream.step(rollout.step(t)) for t in range(len(rollout))]
    np.testing.assert_allclose(live, detector.score(rollout), rtol=1e-5, atol=1e-5)


# --- the training part


def pooled_auc(rollouts, scores):
    labels = np.concatenate([np.full(len(r), r.failed) for r in rollouts])
    return roc_auc_score(labels, np.concatenate(scores))


@pytest.mark.parametrize('name', ['euclidean_knn', 'cosine_knn'])
def test_no_training_step_is_its_own_neighbour_when_the_training_part_is_reported(name):
    rollouts = rollouts_from(np.random.default_rng(5), 60, 16)
    detector = make_detector(name, neighbours=1, accumulate='none').fit(rollouts)
    recognised = pooled_auc(rollouts, detector.score_all(rollouts))
    honest = pooled_auc(rollouts, detector.score_training(rollouts))
    assert recognised == 1.0, 'as published, on pure noise (D45)'
    assert 0.4 < honest < 0.6


def test_steps_of_the_same_episode_are_no_neighbours_either():
    # Episodes that stay where they are, at places that have nothing to do with their outcome.
    rng = np.random.default_rng(6)
    places = rng.normal(size=(80, 16))
    rollouts = [
        make_rollout(i, features=(place + 0.01 * rng.normal(size=(10, 16))).astype(np.float32))
        for i, place in enumerate(places)
    ]
    detector = make_detector('euclidean_knn', neighbours=3, accumulate='none').fit(rollouts)
    honest = pooled_auc(rollouts, detector.score_training(rollouts))
    assert 0.3 < honest < 0.7


def test_evaluation_reports_the_training_part_of_noise_as_noise():
    rollouts = rollouts_from(np.random.default_rng(7), 120, 16)
    detector = make_detector('euclidean_knn', neighbours=1)
    split = choose_split(rollouts)
    judged, _ = fit_and_judge(
        detector, Rollouts(rollouts, FeatureSpec('features', 16)), split, Protocol()
    )
    train = judged.report()['train']
    assert train.ranking['max_score_until_min_length'].pooled.roc_auc < 0.8


def test_rollouts_that_were_not_trained_on_score_the_same_either_way():
    rng = np.random.default_rng(8)
    detector = make_detector('cosine_knn').fit(rollouts_from(rng, 20, 16))
    new = rollouts_from(rng, 3, 16)
    for a, b in zip(detector.score_training(new), detector.score_all(new), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what cannot be fitted on


def test_too_few_neighbours_are_refused_with_the_numbers():
    rollouts = rollouts_from(np.random.default_rng(9), 4, 8, length=5)
    with pytest.raises(
        DetectorError, match=r'at most 5, found neighbours=10; set .*successes .* have 5 steps'
    ):
        make_detector('euclidean_knn').fit(rollouts)
    make_detector('euclidean_knn', neighbours=5).fit(rollouts)


def test_one_rollout_alone_is_no_class_of_neighbours():
    rollouts = rollouts_from(np.random.default_rng(10), 6, 8)
    lonely = [r for i, r in enumerate(rollouts) if i in (0, 1, 2, 4)]
    with pytest.raises(
        DetectorError, match=r'neighbours of at most 0, .*; add failures .* have 0 steps together'
    ):
        make_detector('cosine_knn').fit(lonely)
    make_detector('cosine_knn', success_only=True).fit(lonely)


@pytest.mark.parametrize(
    ('params', 'message'),
    [
        ({'pca_dim': 9}, r'at most 8 .*successes have 20 steps of 8 features\), found pca_dim=9'),
        ({'pca_dim': 2, 'clusters': 21}, r'successes have 20 steps\), found clusters=21'),
        ({'pca_dim': 0}, 'pca_dim: expected an integer of at least 1, found 0'),
        ({'clusters': 2.5}, r'clusters: expected an integer .*, found 2\.5'),
    ],
)
def test_too_few_steps_for_pca_or_clusters_are_refused_with_the_numbers(params, message):
    rollouts = rollouts_from(np.random.default_rng(11), 2, 8)
    with pytest.raises(DetectorError, match=message):
        make_detector('pca_kmeans', **params).fit(rollouts)


def test_a_covariance_of_one_step_is_refused():
    rollouts = rollouts_from(np.random.default_rng(12), 2, 8, length=1)
    with pytest.raises(DetectorError, match=r'at least 2 steps of successes .*, found 1'):
        make_detector('mahalanobis').fit(rollouts)


@pytest.mark.parametrize('name', EMBEDDINGS)
@pytest.mark.parametrize(
    ('params', 'message'),
    [
        ({'accumulate': 'median'}, 'accumulate: expected one of none, sum, mean'),
        ({'success_only': 1}, 'success_only: expected true or false, found 1'),
    ],
)
def test_impossible_parameters_are_refused(name, params, message):
    with pytest.raises(DetectorError, match=message):
        make_detector(name, **params).fit(TRAIN)


@pytest.mark.parametrize('ridge', [0, -1.0, float('inf'), 'a'])
def test_an_impossible_ridge_is_refused(ridge):
    with pytest.raises(DetectorError, match='ridge: expected a number above 0 '):
        make_detector('mahalanobis', ridge=ridge).fit(TRAIN)


def test_successes_alone_suffice_for_success_only_and_failures_alone_do_not():
    for name in EMBEDDINGS:
        params = SMALL_PCA if name == 'pca_kmeans' else {}
        successes = [r for r in TRAIN if not r.failed]
        alone = make_detector(name, success_only=True, **params).fit(successes)
        both = make_detector(name, success_only=True, **params).fit(TRAIN)
        np.testing.assert_array_equal(alone.score(TEST[0]), both.score(TEST[0]))
        with pytest.raises(DetectorError, match='found 0 successes and'):
            make_detector(name, success_only=True, **params).fit([r for r in TRAIN if r.failed])


# --- what the detector folder may hold


def test_a_factor_that_is_not_triangular_is_refused():
    detector = make_detector('mahalanobis').fit(TRAIN)
    state = detector.state()
    state['success.factor'][0, 1] = 1.0
    with pytest.raises(DetectorError, match=r'success\.factor.*lower triangular'):
        make_detector('mahalanobis').load_state(state, 8)


@pytest.mark.parametrize('name', EMBEDDINGS)
def test_arrays_with_nan_or_of_another_kind_are_refused(name):
    params = SMALL_PCA if name == 'pca_kmeans' else {}
    state = make_detector(name, **params).fit(TRAIN).state()
    for key, array in state.items():
        if array.dtype.kind == 'f':
            broken = array.copy()
            broken.flat[0] = np.nan
            with pytest.raises(DetectorError, match='NaN'):
                make_detector(name, **params).load_state({**state, key: broken}, 8)
        other = np.float32 if array.dtype == np.float64 else np.float64
        with pytest.raises(DetectorError, match=f'{key}.*expected {array.dtype} .*found'):
            make_detector(name, **params).load_state({**state, key: array.astype(other)}, 8)
    with pytest.raises(DetectorError, match=r'failure\..*expected no such array'):
        make_detector(name, success_only=True, **params).load_state(state, 8)
    with pytest.raises(DetectorError, match=r'expected .*of shape \(.*9.*found .*of shape \(.*8'):
        make_detector(name, **params).load_state(state, 9)


def test_a_bank_smaller_than_its_neighbours_is_refused():
    state = make_detector('cosine_knn').fit(TRAIN).state()
    with pytest.raises(DetectorError, match=r'neighbours: expected at most \d+ .*found 500'):
        make_detector('cosine_knn', neighbours=500).load_state(state, 8)


def test_a_step_of_another_width_is_refused():
    detector = make_detector('mahalanobis').fit(TRAIN)
    with pytest.raises(StepError, match='shape'):
        detector.stream().step(dataclasses.replace(TEST[0].step(0), features=np.zeros(9)))
