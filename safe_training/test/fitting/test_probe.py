# SPDX-License-Identifier: Apache-2.0
"""The linear probe: its fit against scikit-learn, what it chooses, and its leave-one-task-out."""

import dataclasses

import numpy as np
import pytest
from rollout_factory import make_rollout
from sklearn.linear_model import LogisticRegression

from safe_monitor_node.detectors import DetectorError, StepError, make_detector
from safe_monitor_node.detectors.signal_history import (
    SignalHistory,
    signal_histories,
    smoothed,
)
from safe_training.calibration.functional import calibrate
from safe_training.evaluation.fit_and_calibrate import fit_and_calibrate
from safe_training.evaluation.left_out import leave_one_task_out_scores
from safe_training.evaluation.protocol import Protocol, choose_split
from safe_training.fitting.probe_regression import (
    logistic_regression,
    task_balanced_weights,
    within_task_auc,
)
from safe_training.metrics.ranking import rank
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.pooling import FeatureSpec

WIDTH = 12


def marked_rollouts(in_features=0.0, in_signals=0.0, tasks=5, each=12, seed=0, signals=True):
    """Return rollouts whose failures show in the features, in chunk_mse, in both or in neither."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=WIDTH) / np.sqrt(WIDTH)
    rollouts = []
    for task in range(tasks):
        place = 3 * rng.normal(size=WIDTH)
        for index in range(each):
            # Some tasks fail more than others, which says nothing inside a task.
            failed = index < 2 + task
            length = int(rng.integers(8, 14))
            features = place + rng.normal(size=(length, WIDTH))
            mse = np.exp(rng.normal(size=length))
            if failed:
                features += in_features * direction
                mse *= np.exp(in_signals)
            rollouts.append(
                make_rollout(
                    index,
                    features=features.astype(np.float32),
                    task=f'task_{task}',
                    success=not failed,
                    signals={'chunk_mse': mse, 'height': rng.normal(size=length)}
                    if signals
                    else {},
                )
            )
    return rollouts


def auc(detector, rollouts):
    """Return the mean AUC inside the tasks, of the largest score up to step 8."""
    values = np.array([scores[:8].max() for scores in detector.score_all(rollouts)])
    failed = np.array([r.failed for r in rollouts])
    tasks = np.array([r.task for r in rollouts])
    return np.mean([rank(values[tasks == t], failed[tasks == t]).roc_auc for t in set(tasks)])


# --- its parts


@pytest.mark.parametrize('l2', [0.01, 0.3, 10.0])
def test_the_regression_is_that_of_scikit_learn(l2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 7)) * rng.uniform(0.1, 3, size=7)
    failed = x @ rng.normal(size=7) + rng.normal(size=400) > 1
    weights = rng.uniform(0, 2, size=400) * (rng.random(400) > 0.2)
    expected = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-10, max_iter=10000)
    expected.fit(x, failed, sample_weight=weights)
    for start in (None, rng.normal(size=8)):
        found = logistic_regression(x, failed, weights, l2, start)
        np.testing.assert_allclose(found[:-1], expected.coef_[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[-1], expected.intercept_[0], rtol=1e-4, atol=1e-6)


def test_a_separable_set_has_a_finite_probe():
    x = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    found = logistic_regression(x, x[:, 0] > 0, np.ones(4), 1e-4)
    assert np.isfinite(found).all()
    assert found[0] > 3


def test_inside_each_task_failures_weigh_what_successes_weigh():
    task = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    failed = np.array([1, 0, 0, 0, 1, 0, 0, 0], bool)
    np.testing.assert_allclose(
        task_balanced_weights(task, failed), [2, 2 / 3, 2 / 3, 2 / 3, 1, 1, 0, 0]
    )
    # No task has both outcomes: then over all of them.
    np.testing.assert_allclose(
        task_balanced_weights(task[3:6], np.array([0, 1, 1], bool)), [1.5, 0.75, 0.75]
    )


def test_the_auc_inside_tasks_counts_a_task_by_what_it_knows():
    task = np.repeat([0, 1, 2], [4, 2, 3])
    failed = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0], bool)
    values = np.array([3, 2, 1, 2, 0, 1, 9, 9, 9.0])
    # Task 0 has AUC 7/8 and weight 2 * 2 / 4, task 1 has 0 and weight 1/2, task 2 one outcome.
    assert within_task_auc(values, failed, task) == pytest.approx(7 / 8 / 1.5)
    assert np.isnan(within_task_auc(values[6:], failed[6:], task[6:]))


def test_the_history_of_a_signal():
    values = np.array([[1.0, 0.0], [3.0, -3.0], [0.0, 1.0]])
    history = signal_histories(values, [3], np.array([1.0, 3.0]))
    squashed = np.array([np.log([2, 4, 1]), [0, -np.log(2), np.log(4 / 3)]])
    np.testing.assert_allclose(history[..., 0], squashed.T)
    np.testing.assert_allclose(history[-1, :, 1], squashed.mean(axis=1))
    np.testing.assert_allclose(history[-1, :, 2], squashed.max(axis=1))
    recent = 0.7 * (0.7 * squashed[:, 0] + 0.3 * squashed[:, 1]) + 0.3 * squashed[:, 2]
    np.testing.assert_allclose(history[-1, :, 3], recent)


def test_histories_of_many_rollouts_are_those_of_their_steps():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 300)
    values = rng.normal(size=(lengths.sum(), 2)) * rng.integers(0, 2, (lengths.sum(), 2))
    scale = np.array([0.5, 2.0])
    found = signal_histories(values, lengths, scale)
    for part, rows in zip(
        np.split(found, np.cumsum(lengths)[:-1]),
        np.split(values, np.cumsum(lengths)[:-1]),
        strict=True,
    ):
        history = SignalHistory(scale)
        np.testing.assert_allclose(part, [history.add(row) for row in rows], atol=1e-12)


def test_smoothing_starts_at_the_first_value():
    raw = np.array([2.0, 4.0, 0.0])
    np.testing.assert_array_equal(smoothed(raw, 0.0), raw)
    np.testing.assert_allclose(smoothed(raw, 0.5), [2, 3, 1.5])


# --- what it finds and what it chooses


@pytest.mark.parametrize(
    ('where', 'rest'),
    [({'in_features': 6.0}, 'signals'), ({'in_signals': 2.0}, 'features')],
    ids=['features', 'signals'],
)
def test_it_finds_failures_of_new_tasks_where_they_show(where, rest):
    rollouts = marked_rollouts(**where, tasks=8)
    seen = [r for r in rollouts if r.task < 'task_5']
    unseen = [r for r in rollouts if r.task >= 'task_5']
    assert auc(make_detector('linear_probe').fit(seen), unseen) > 0.85
    probe = make_detector('linear_probe', choose=True).fit(seen)
    assert probe.choice_['method'] == 'linear'
    assert probe.choice_['inputs'] != rest
    assert auc(probe, unseen) > 0.85
    # Reading the wrong thing, it knows nothing.
    assert abs(auc(make_detector('linear_probe', inputs=rest).fit(seen), unseen) - 0.5) < 0.2


def test_it_falls_back_to_the_distance_where_failures_go_elsewhere_in_every_task():
    rollouts = marked_rollouts(tasks=6, each=16)
    rng = np.random.default_rng(1)
    strange = []
    for rollout in rollouts:
        if rollout.failed:
            away = rng.normal(size=WIDTH)
            away *= 25 / np.linalg.norm(away)
            rollout = dataclasses.replace(rollout, features=rollout.features + np.float32(away))
        strange.append(rollout)
    assert make_detector('linear_probe').fit(strange).choice_['method'] == 'linear'
    probe = make_detector('linear_probe', choose=True).fit(strange)
    assert probe.choice_['method'] == 'distance'
    assert auc(probe, strange) > 0.9
    assert probe.choice_['leave_one_task_out_auc'] > 0.9


def test_the_distance_is_the_mahalanobis_distance_to_the_successes():
    rollouts = marked_rollouts(tasks=2)
    probe = make_detector('linear_probe', method='distance', smoothing=0.0).fit(rollouts)
    steps = np.concatenate([r.features for r in rollouts if r.success]).astype(np.float64)
    covariance = np.linalg.inv(np.cov(steps, rowvar=False))
    centred = rollouts[0].features - steps.mean(axis=0)
    expected = np.sqrt(np.einsum('ti,ij,tj->t', centred, covariance, centred))
    # Rollouts weigh the same whatever their length, and there is a ridge: not exactly this.
    assert np.corrcoef(probe.score(rollouts[0]), expected)[0, 1] > 0.95


def test_the_collapsed_probe_is_the_long_way_round():
    rollouts = marked_rollouts(in_features=1.0, in_signals=1.0)
    probe = make_detector('linear_probe', inputs='both', l2=0.3, smoothing=0.0, method='linear')
    probe.fit(rollouts)
    flat = np.concatenate([r.features for r in rollouts]).astype(np.float64)
    standard = (flat - flat.mean(axis=0)) / flat.std(axis=0)
    _, values, axes = np.linalg.svd(standard, full_matrices=False)
    components = standard @ axes.T / (values / np.sqrt(len(flat)))
    signals = [r.signals['chunk_mse'][:, None] for r in rollouts]
    scale = np.array([np.median(np.concatenate(signals))])
    history = np.concatenate([signal_histories(s, [len(s)], scale) for s in signals])[:, 0]
    history = (history - history.mean(axis=0)) / history.std(axis=0)
    x = np.hstack([components, history])
    lengths = np.array([len(r) for r in rollouts])
    failed = np.array([r.failed for r in rollouts])
    weights = task_balanced_weights(np.array([int(r.task[-1]) for r in rollouts]), failed)
    beta = logistic_regression(
        x, np.repeat(failed, lengths), np.repeat(weights / lengths, lengths), 0.3
    )
    found = np.concatenate(probe.score_all(rollouts))
    np.testing.assert_allclose(found, x @ beta[:-1] + beta[-1], atol=2e-3)


def test_the_values_of_steps_are_the_scores_without_smoothing():
    rollouts = marked_rollouts(in_features=1.0, in_signals=1.0)
    smooth, raw = (make_detector('linear_probe', smoothing=s).fit(rollouts) for s in (0.7, 0.0))
    for rollout in rollouts[:5]:
        found = smooth.step_values(smooth.score(rollout))
        np.testing.assert_allclose(found, raw.score(rollout), atol=1e-5)


def test_by_default_nothing_is_chosen():
    rollouts = marked_rollouts(in_features=6.0)
    fixed = {'inputs': 'both', 'l2': 1.0, 'smoothing': 0.5, 'method': 'linear'}
    for given in ({}, {'smoothing': 0.2, 'l2': 0.7}, {'inputs': 'features'}):
        probe = make_detector('linear_probe', **given).fit(rollouts)
        expected = {**fixed, **given}
        assert {name: probe.choice_[name] for name in expected} == expected
        assert probe.choice_['leave_one_task_out_auc'] is None
    bare = [dataclasses.replace(r, features=np.zeros((len(r), 0), np.float32)) for r in rollouts]
    probe = make_detector('linear_probe').fit(bare)
    signals = {'inputs': 'signals', 'l2': 0.3, 'smoothing': 0.7}
    assert {name: probe.choice_[name] for name in signals} == signals
    with pytest.raises(DetectorError, match='found no features'):
        make_detector('linear_probe', method='distance').fit(bare)


def test_without_anything_to_choose_nothing_is_chosen():
    rollouts = marked_rollouts(in_features=1.0)
    params = {'inputs': 'features', 'l2': 1.0, 'smoothing': 0.3, 'method': 'linear'}
    probe = make_detector('linear_probe', **params, choose=True).fit(rollouts)
    assert {name: probe.choice_[name] for name in params} == params
    assert probe.choice_['leave_one_task_out_auc'] is None


def test_what_it_chose_makes_the_same_probe_again():
    rollouts = marked_rollouts(in_features=2.0, in_signals=0.5)
    probe = make_detector('linear_probe', choose=True).fit(rollouts)
    assert not probe.chosen()['choose']
    again = make_detector('linear_probe', **probe.chosen()).fit(rollouts)
    np.testing.assert_allclose(again.score(rollouts[0]), probe.score(rollouts[0]), atol=1e-4)


def test_one_task_leaves_nothing_out_and_is_fitted_by_default_choices():
    rollouts = [r for r in marked_rollouts(in_features=3.0) if r.task == 'task_4']
    probe = make_detector('linear_probe', choose=True).fit(rollouts)
    assert auc(probe, rollouts) > 0.8
    assert probe.choice_['leave_one_task_out_auc'] is None


def test_the_signals_that_a_bridge_computes_are_preferred_to_what_a_recording_adds():
    rollouts = marked_rollouts()
    assert make_detector('linear_probe').fit(rollouts).choice_['signals'] == ['chunk_mse']
    both = make_detector('linear_probe', signals=['height', 'chunk_mse']).fit(rollouts)
    assert both.choice_['signals'] == ['height', 'chunk_mse']
    other = [
        dataclasses.replace(r, signals={'height': r.signals['height'], 'age': r.signals['height']})
        for r in rollouts
    ]
    assert make_detector('linear_probe').fit(other).choice_['signals'] == ['age', 'height']


def test_features_alone_need_no_signals():
    rollouts = marked_rollouts(in_features=6.0, signals=False)
    with pytest.raises(DetectorError, match=r"'task_0/0'.*expected action signals.*=features"):
        make_detector('linear_probe').fit(rollouts)
    probe = make_detector('linear_probe', inputs='features').fit(rollouts)
    assert auc(probe, rollouts) > 0.9
    stream = probe.stream()
    found = [stream.step(rollouts[0].step(t)) for t in range(len(rollouts[0]))]
    np.testing.assert_allclose(found, probe.score(rollouts[0]), rtol=1e-5)


def test_signals_alone_need_no_features():
    rollouts = [
        dataclasses.replace(r, features=np.zeros((len(r), 0), np.float32))
        for r in marked_rollouts(in_signals=2.0)
    ]
    probe = make_detector('linear_probe').fit(rollouts)
    assert probe.choice_['inputs'] == 'signals'
    assert auc(probe, rollouts) > 0.9
    with pytest.raises(
        DetectorError,
        match="inputs='features': expected rollouts with features, found no features;",
    ):
        make_detector('linear_probe', inputs='features').fit(rollouts)


def test_constant_features_and_signals_are_no_trouble():
    rollouts = marked_rollouts(in_features=6.0)
    flat = []
    for rollout in rollouts:
        features = np.concatenate([rollout.features, np.full((len(rollout), 3), 7.1)], axis=1)
        signals = {**rollout.signals, 'action_norm': np.zeros(len(rollout))}
        flat.append(
            dataclasses.replace(rollout, features=features.astype(np.float32), signals=signals)
        )
    probe = make_detector('linear_probe').fit(flat)
    assert auc(probe, flat) > 0.85
    np.testing.assert_array_equal(probe.projection_[:, WIDTH:], 0)


def test_a_missing_or_broken_signal_is_refused_live_and_forgotten():
    rollouts = marked_rollouts(in_features=2.0)
    probe = make_detector('linear_probe').fit(rollouts)
    expected = probe.score(rollouts[0])
    stream = probe.stream()
    for t in range(3):
        step = rollouts[0].step(t)
        for signals in ({}, {'chunk_mse': np.nan}, {'chunk_mse': np.inf}):
            with pytest.raises(StepError, match=f'step {t}.*signal'):
                stream.step(dataclasses.replace(step, signals=signals))
        assert stream.step(step) == pytest.approx(expected[t], rel=1e-5)


@pytest.mark.parametrize(
    ('params', 'message'),
    [
        ({'inputs': 'pixels'}, 'inputs: expected one of'),
        ({'method': 'magic'}, 'method: expected one of'),
        ({'components': 0}, 'components: expected an integer of at least 1'),
        ({'l2': 0.0}, 'l2: expected a number above 0 '),
        ({'smoothing': 1.0}, 'smoothing: expected .* of at least 0 and below 1'),
        ({'signals': 'chunk_mse'}, 'signals: expected .* a list of names'),
        ({'signals': ['speed']}, "'task_0/0'.*'speed' .*found the signals chunk_mse, height"),
        (
            {'method': 'distance', 'inputs': 'signals'},
            "inputs: .*found 'signals'; choose inputs='features'",
        ),
    ],
)
def test_parameters_without_meaning_are_refused(params, message):
    with pytest.raises(DetectorError, match=message):
        make_detector('linear_probe', **params).fit(marked_rollouts(tasks=2))


# --- leave one task out


@pytest.mark.parametrize('name', ['linear_probe', 'action_norm', 'mahalanobis'])
def test_each_task_is_scored_by_a_detector_that_never_saw_it(name):
    rollouts = marked_rollouts(in_features=3.0, tasks=3)
    if name == 'action_norm':
        rollouts = [dataclasses.replace(r, actions=np.ones((len(r), 1, 2, 7))) for r in rollouts]
    # In no order of tasks.
    rollouts = [rollouts[i] for i in np.random.default_rng(0).permutation(len(rollouts))]
    detector = make_detector(name).fit(rollouts)
    params = detector.chosen() if name == 'linear_probe' else {}
    seen = []
    found = leave_one_task_out_scores(
        detector, rollouts, progress=lambda done, total, note: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for task in ('task_0', 'task_1', 'task_2'):
        model = make_detector(name, **params).fit([r for r in rollouts if r.task != task])
        for scores, rollout in zip(found, rollouts, strict=True):
            if rollout.task == task:
                np.testing.assert_allclose(scores, model.score(rollout), rtol=1e-5)


def test_leaving_a_task_out_needs_another_one_with_both_outcomes():
    rollouts = marked_rollouts(tasks=2)
    one = [r for r in rollouts if r.task == 'task_0']
    with pytest.raises(DetectorError, match='at least 2 tasks, found 1'):
        leave_one_task_out_scores(make_detector('linear_probe'), one)
    lucky = [r for r in rollouts if r.task == 'task_0' or r.success]
    with pytest.raises(DetectorError, match=r"without task 'task_0'.*and 0 failures"):
        leave_one_task_out_scores(make_detector('linear_probe'), lucky)


def test_a_band_is_calibrated_on_successes_scored_without_their_task():
    made = marked_rollouts(in_features=3.0, tasks=6, each=20)
    rollouts = Rollouts(made, FeatureSpec('features', WIDTH))
    bands = {}
    for calibration in ('heldout', 'loto'):
        protocol = Protocol(calibrate_on=calibration, seen_train_ratio=0.6)
        split = choose_split(rollouts, 0, protocol)
        fitted = fit_and_calibrate(make_detector('linear_probe'), rollouts, split, protocol)
        bands[calibration] = fitted.band
        assert fitted.band.provenance['scores'] == calibration
        used = {
            *fitted.band.provenance['center_rollouts'],
            *fitted.band.provenance['calibration_rollouts'],
        }
        part = split.seen if calibration == 'heldout' else split.train
        assert used == {rollouts[i].episode_id for i in part if rollouts[i].success}
    assert 'leave-one-task-out' in bands['loto'].provenance['calibrated_on']
    training = [rollouts[i] for i in split.train]
    scores = leave_one_task_out_scores(fitted.detector, training)
    expected = calibrate(
        [s for s, r in zip(scores, training, strict=True) if r.success],
        alphas=bands['loto'].alphas,
        max_steps=bands['loto'].length,
        generator=np.random.default_rng(0),
    )
    np.testing.assert_allclose(bands['loto'].upper, expected.upper, rtol=1e-6)
