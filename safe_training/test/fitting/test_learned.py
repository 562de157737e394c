# SPDX-License-Identifier: Apache-2.0
"""Fitting the learned detectors: they learn, they stop where they should, and they say when not."""

import dataclasses

import numpy as np
import pytest
import torch
from rollout_factory import make_rollouts

from safe_monitor_node.detectors import DetectorError, make_detector
from safe_training.evaluation.protocol import EvaluationError, Protocol, choose_split
from safe_training.fitting.learned import (
    TrainingData,
    batch_loss,
    scale_weights,
    training_epochs,
)

WIDTH = 6
LEARNED = ('safe_mlp', 'safe_lstm')
TINY = {'hidden': 8, 'epochs': 5}

every_learned = pytest.mark.parametrize('name', LEARNED)


def cued_rollouts(count=20, seed=0, cue=1.0, lengths=(5, 9), cue_steps=slice(None)):
    """Return noise, with the outcome readable from feature 0 in some steps of a rollout."""

    def cued(noise, failed):
        features = 0.3 * noise
        features[cue_steps, 0] += cue if failed else -cue
        return features

    return make_rollouts(count, steps=lengths, dim=WIDTH, rng=seed, looks=cued)


def flipped(rollouts):
    return [dataclasses.replace(r, success=not r.success) for r in rollouts]


def final_scores(detector, rollouts):
    """Return the last score of failures and of successes."""
    scores = [
        (r.failed, s[-1]) for r, s in zip(rollouts, detector.score_all(rollouts), strict=True)
    ]
    return [s for failed, s in scores if failed], [s for failed, s in scores if not failed]


def assert_same_weights(first, second):
    for (name, a), b in zip(first.state().items(), second.state().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


# --- they learn


@pytest.mark.parametrize(
    ('name', 'params'),
    [
        ('safe_mlp', {}),
        ('safe_mlp', {'accumulate': 'sum', 'threshold': 10.0}),
        ('safe_mlp', {'layers': 1, 'batch_size': 4}),
        ('safe_lstm', {}),
        ('safe_lstm', {'accumulate': 'mean'}),
        ('safe_lstm', {'history': 2}),
        ('safe_lstm', {'layers': 2, 'hard_negative': 1.0, 'time_weighting': True}),
        ('safe_lstm', {'optimizer': 'adamw', 'one_loss_per_rollout': True}),
        ('safe_lstm', {'optimizer': 'sgdm', 'learning_rate': 0.2, 'max_grad_norm': 1.0}),
    ],
    ids=str,
)
def test_a_separable_problem_is_learnt(name, params):
    defaults = {'hidden': 8, 'epochs': 80, 'learning_rate': 0.02, 'lambda_reg': 1e-3}
    detector = make_detector(name, **{**defaults, **params}).fit(cued_rollouts())
    failures, successes = final_scores(detector, cued_rollouts(seed=1))
    assert min(failures) > max(successes), 'failure is the positive class'


def test_the_lstm_remembers_the_first_step_and_the_mlp_cannot():
    options = {'lengths': (6, 7), 'cue_steps': slice(0, 1), 'cue': 2.0}
    train, test = cued_rollouts(40, **options), cued_rollouts(20, seed=1, **options)
    defaults = {'hidden': 8, 'epochs': 150, 'learning_rate': 0.02, 'lambda_reg': 1e-4}
    lstm = make_detector('safe_lstm', **defaults).fit(train)
    failures, successes = final_scores(lstm, test)
    assert min(failures) > max(successes)
    mlp = make_detector('safe_mlp', accumulate='none', **defaults).fit(train)
    failures, successes = final_scores(mlp, test)
    assert min(failures) < max(successes)


def test_windows_find_the_few_steps_that_tell_the_outcome():
    """The cue of a failure lies in three of 24 steps; the mean over a rollout hardly shows it."""

    def looks(noise, failed):
        features = 0.3 * noise
        if failed:
            features[12:15, 0] += 2.0
        return features

    made = {'steps': 24, 'dim': WIDTH, 'looks': looks}
    defaults = {'hidden': 8, 'epochs': 150, 'learning_rate': 0.02, 'lambda_reg': 1e-3}
    detector = make_detector('safe_mlp', window=3, accumulate='none', **defaults)
    detector.fit(make_rollouts(40, rng=0, **made))
    for rollout in make_rollouts(20, rng=1, **made):
        scores = detector.score(rollout)
        cued = scores[12:15].mean()
        if rollout.failed:
            assert cued > 0.7 > np.delete(scores, [12, 13, 14]).mean() + 0.3
        else:
            assert scores.max() < 0.6


@pytest.mark.parametrize(
    ('params', 'expected'),
    [
        ({}, "accumulate: expected 'none'"),
        ({'accumulate': 'none', 'activation': 'relu'}, "activation: expected 'sigmoid'"),
        ({'accumulate': 'none', 'threshold': 1.0}, 'threshold: expected None'),
        ({'accumulate': 'none', 'time_weighting': True}, 'time_weighting: expected False'),
        ({'accumulate': 'none', 'window': 0}, 'window: expected an integer of at least 1'),
    ],
)
def test_windows_exclude_what_they_would_ignore(params, expected):
    with pytest.raises(DetectorError, match=expected):
        make_detector('safe_mlp', **{'window': 3, **params}).check_params()


@every_learned
def test_the_training_loss_falls(name):
    notes = []
    detector = make_detector(name, hidden=8, epochs=30, learning_rate=0.02, lambda_reg=1e-3)
    detector.fit(cued_rollouts(), progress=lambda done, total, note: notes.append(note))
    losses = [float(note.removeprefix('loss ')) for note in notes]
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 0.1


# --- class weights


def test_class_weights_balance_the_classes():
    data = TrainingData.of(
        [r for r in cued_rollouts(20) if not r.failed][:9] + cued_rollouts(2)[1:]
    )
    weights = data.weights(make_detector('safe_mlp', lambda_fail=2.0))
    assert weights.fail == pytest.approx(2.0 * 10 / (1 + 1))
    assert weights.success == pytest.approx(10 / (9 + 1))


@every_learned
def test_a_larger_weight_of_failures_raises_the_scores(name):
    rollouts = cued_rollouts(cue=0.1)
    means = [
        np.mean(
            np.concatenate(
                make_detector(name, lambda_fail=weight, learning_rate=0.01, **TINY)
                .fit(rollouts)
                .score_all(rollouts)
            )
        )
        for weight in (0.1, 1.0, 10.0)
    ]
    assert means[0] < means[1] < means[2]


# --- early stopping


def fit_counting(detector, rollouts, **options):
    """Fit and return how many epochs were trained."""
    done = []
    detector.fit(rollouts, progress=lambda epoch, total, note: done.append(epoch), **options)
    return done[-1]


@every_learned
def test_early_stopping_takes_the_weights_of_the_best_epoch(name):
    # Few noisy rollouts to learn by heart, and others to see that it does not carry over.
    train, validation = cued_rollouts(8, cue=0.15), cued_rollouts(30, seed=1, cue=0.15)
    params = {'hidden': 8, 'learning_rate': 0.02, 'lambda_reg': 1e-4}
    stopped = make_detector(name, epochs=400, **params)
    epochs = fit_counting(stopped, train, validation=validation, patience=20)
    assert 22 < epochs < 400, 'it stopped, and not at the very first epoch'
    best = make_detector(name, epochs=epochs - 20, **params)
    assert fit_counting(best, train) == epochs - 20
    assert_same_weights(stopped, best)
    losses = []
    for detector in (best, make_detector(name, epochs=epochs, **params).fit(train)):
        data = TrainingData.of(validation)
        losses.append(batch_loss(detector, detector.network_, data, data.weights(detector)))
    assert losses[0] < losses[1]


@every_learned
def test_the_best_weights_are_taken_when_training_ends_before_patience_does(name):
    train = cued_rollouts()
    detector = make_detector(name, **TINY)
    assert fit_counting(detector, train, validation=flipped(train), patience=100) == 5
    assert_same_weights(detector, make_detector(name, **{**TINY, 'epochs': 1}).fit(train))


@every_learned
def test_without_validation_the_last_epoch_is_taken(name):
    train = cued_rollouts()
    detector = make_detector(name, **TINY)
    assert fit_counting(detector, train) == 5
    data = TrainingData.of(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = detector.build(WIDTH)
    scale_weights(network, 1.0)
    for _ in training_epochs(detector, network, data, torch.Generator()):
        pass
    for name, parameter in network.state_dict().items():
        np.testing.assert_array_equal(detector.state()[name], parameter.numpy())


@pytest.mark.parametrize(
    ('name', 'params'),
    [('safe_mlp', {}), ('safe_lstm', {}), ('safe_lstm', {'dropout': 0.5, 'batch_size': 6})],
    ids=str,
)
def test_looking_at_validation_does_not_change_how_it_is_learnt(name, params):
    train = cued_rollouts()
    with_it = make_detector(name, **TINY, **params).fit(train, validation=train, patience=100)
    assert_same_weights(with_it, make_detector(name, **TINY, **params).fit(train))


@every_learned
@pytest.mark.parametrize(
    ('validation', 'message'),
    [
        ([], 'expected one or more training rollouts, found none'),
        ([r for r in cued_rollouts() if r.failed], r'\(validation\).* failures'),
        (
            [dataclasses.replace(cued_rollouts()[0], success=None)],
            "'task 0/0': expected an outcome",
        ),
    ],
    ids=['none', 'one class', 'unlabelled'],
)
def test_validation_rollouts_that_do_not_do_are_refused(name, validation, message):
    detector = make_detector(name, **TINY)
    with pytest.raises(DetectorError, match=message):
        detector.fit(cued_rollouts(), validation=validation)
    assert not detector.fitted


# --- how the steps are taken


def epochs_of(**params):
    detector = make_detector('safe_mlp', **{**TINY, **params})
    data = TrainingData.of(cued_rollouts())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = detector.build(WIDTH)
    before = torch.nn.utils.parameters_to_vector(network.parameters()).clone().detach()
    epochs = list(training_epochs(detector, network, data, torch.Generator().manual_seed(0)))
    after = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    return epochs, float((after - before).norm())


def test_the_learning_rate_follows_its_schedule():
    epochs, _ = epochs_of(learning_rate=0.8, schedule_every=2, schedule_gamma=0.5)
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2])
    epochs, _ = epochs_of(learning_rate=0.8, warmup=3, schedule_every=100)
    assert [epoch.learning_rate for epoch in epochs][:3] == pytest.approx([0.8 * 2 / 3, 0.8, 0.8])


def test_a_clipped_gradient_takes_small_steps():
    _, free = epochs_of(optimizer='sgd', learning_rate=0.1, lambda_reg=1.0)
    _, clipped = epochs_of(optimizer='sgd', learning_rate=0.1, lambda_reg=1.0, max_grad_norm=0.01)
    assert clipped <= 5 * 0.1 * 0.01 * 1.001
    assert free > 10 * clipped


def test_the_loss_of_an_epoch_weighs_every_rollout_the_same():
    # A learning rate of 0: every epoch sees the same network, whatever the batches are.
    whole, moved = epochs_of(learning_rate=0.0)
    assert moved == 0.0
    one_by_one, _ = epochs_of(learning_rate=0.0, batch_size=1)
    uneven, _ = epochs_of(learning_rate=0.0, batch_size=7)
    for other in (one_by_one, uneven):
        assert [e.loss for e in other] == pytest.approx([e.loss for e in whole], rel=1e-5)


def test_regularisation_draws_the_weights_in_and_leaves_the_biases():
    train = cued_rollouts()
    free = make_detector('safe_mlp', hidden=8, epochs=60, learning_rate=0.02, lambda_reg=0.0)
    tight = make_detector('safe_mlp', hidden=8, epochs=60, learning_rate=0.02, lambda_reg=1.0)
    weights = [
        sum(np.square(a).sum() for n, a in d.fit(train).state().items() if 'weight' in n)
        for d in (free, tight)
    ]
    assert weights[1] < 0.1 * weights[0]


def test_the_scale_of_the_first_weights_leaves_the_biases():
    networks = []
    for scale in (1.0, 3.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks.append(make_detector('safe_lstm', hidden=4).build(WIDTH))
        scale_weights(networks[-1], scale)
    plain, scaled = (network.state_dict() for network in networks)
    for name, parameter in plain.items():
        factor = 3.0 if 'weight' in name else 1.0
        torch.testing.assert_close(scaled[name], factor * parameter)


# --- and when they do not learn


@pytest.mark.parametrize(
    ('name', 'params', 'message'),
    [
        ('safe_mlp', {'learning_rate': 1e30}, 'epoch [1-4]: .* loss, found (nan|inf)'),
        ('safe_lstm', {'learning_rate': 1e30}, 'epoch [1-4]: .* loss, found (nan|inf)'),
        ('safe_mlp', {'init_weight_scale': 1e30}, 'epoch 0: .* loss, found (nan|inf)'),
        (
            'safe_mlp',
            {'learning_rate': 3e38, 'optimizer': 'sgd', 'epochs': 1, 'lambda_reg': 10.0},
            'after the last epoch: expected finite weights, found NaN or infinity',
        ),
    ],
)
def test_a_loss_that_is_no_number_is_reported_with_what_to_do(name, params, message):
    detector = make_detector(name, **{**TINY, **params})
    with pytest.raises(DetectorError, match=message) as caught:
        detector.fit(cued_rollouts())
    assert 'set learning_rate to a smaller value' in str(caught.value)
    assert not detector.fitted


@every_learned
def test_a_fit_that_fails_leaves_the_last_one(name):
    rollouts = cued_rollouts()
    detector = make_detector(name, **TINY).fit(rollouts)
    before = detector.score(rollouts[0])
    detector.learning_rate = 1e30
    with pytest.raises(DetectorError):
        detector.fit(rollouts)
    np.testing.assert_array_equal(detector.score(rollouts[0]), before)


IMPOSSIBLE = [
    *((name, value) for name in ('epochs', 'batch_size', 'schedule_every') for value in (0, -3)),
    *(
        (name, value)
        for name in ('learning_rate', 'weight_decay', 'lambda_reg', 'lambda_fail', 'max_grad_norm')
        for value in (-1.0, float('nan'), float('inf'))
    ),
    ('init_weight_scale', float('nan')),
    ('schedule_gamma', -0.5),
    ('warmup', -1),
    ('seed', -1),
    ('seed', 2**70),
    ('hidden', 0),
    ('layers', 0),
    ('accumulate', 'max'),
    ('optimizer', 'lion'),
]


@every_learned
@pytest.mark.parametrize(('parameter', 'value'), IMPOSSIBLE, ids=str)
def test_a_parameter_with_which_nothing_can_be_trained_is_refused(name, parameter, value):
    detector = make_detector(name, **{**TINY, parameter: value})
    with pytest.raises(DetectorError, match=f'{name}: .*{parameter}'):
        detector.fit(cued_rollouts())
    assert not detector.fitted


@pytest.mark.parametrize(
    ('name', 'parameter', 'value'),
    [
        ('safe_lstm', 'history', 0),
        ('safe_lstm', 'history', -2),
        ('safe_lstm', 'dropout', 1.0),
        ('safe_lstm', 'dropout', -0.1),
        ('safe_lstm', 'hard_negative', -1.0),
        ('safe_mlp', 'activation', 'tanh'),
    ],
)
def test_a_parameter_of_one_detector_is_checked_too(name, parameter, value):
    with pytest.raises(DetectorError, match=f'{name}: .*{parameter}'):
        make_detector(name, **{**TINY, parameter: value}).fit(cued_rollouts())


def test_rollouts_that_their_source_sets_aside_are_the_unseen_part_and_nothing_else():
    rollouts = make_rollouts(
        60,
        task=lambda i: f'task{i % 10}',
        success=lambda i: i % 3 > 0,
        unseen=lambda i: i % 10 in (2, 5),
    )
    split = choose_split(rollouts, 0, Protocol())
    assert set(split.unseen) == {i for i, r in enumerate(rollouts) if r.unseen}
    assert split.unseen_tasks == ('task2', 'task5')
    assert not {rollouts[i].task for i in split.train + split.seen} & {'task2', 'task5'}
    split.check_against([r.task for r in rollouts])
    with pytest.raises(EvaluationError, match='found only tasks that the source marks as unseen'):
        choose_split([r for r in rollouts if r.unseen], 0, Protocol())
