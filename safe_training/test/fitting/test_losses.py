# SPDX-License-Identifier: Apache-2.0
"""Losses and training steps of SAFE-MLP and SAFE-LSTM against the published vectors."""

import json

import numpy as np
import pytest
import torch
from shared_files import assert_golden, golden_arrays

from safe_monitor_node.detectors import make_detector
from safe_monitor_node.detectors.networks import stop_gradient_cumsum
from safe_training.fitting import losses
from safe_training.fitting.learned import TrainingData, batch_loss, training_epochs

LOSSES, MLP, LSTM, TRAINING = (
    golden_arrays(name) for name in ('losses', 'safe_mlp', 'safe_lstm', 'training_steps')
)
FORWARD_CASES = [
    (name, sorted({key.split('/')[0] for key in archive} - {'common'}))
    for name, archive in (('safe_mlp', MLP), ('safe_lstm', LSTM))
]


def golden(archive, key):
    return torch.from_numpy(np.asarray(archive[key]))


def training_data(archive, prefix):
    valid = golden(archive, f'{prefix}/in/valid_masks')
    features = golden(archive, f'{prefix}/in/features')
    return TrainingData(
        features[valid > 0],
        valid.sum(dim=1).long(),
        1 - golden(archive, f'{prefix}/in/success_labels'),
    ), valid


def detector_for(config, kind):
    """Translate a published configuration into our parameters."""
    summed = config.pop('cumsum', kind == 'safe_mlp')
    mean = config.pop('rmean', False)
    params = {'accumulate': 'mean' if mean else 'sum' if summed else 'none'}
    names = {
        'hidden_dim': 'hidden',
        'n_layers': 'layers',
        'final_act_layer': 'activation',
        'n_history_steps': 'history',
        'use_time_weighting': 'time_weighting',
        'lambda_hard_heg': 'hard_negative',
        'lr': 'learning_rate',
        'epochs': 'epochs',
        'lambda_reg': 'lambda_reg',
    }
    for key, value in config.items():
        params[names[key]] = value
    return make_detector(kind, **params)


def weights_of(archive, prefix):
    renamed = {'projector': 'layers', 'fc': 'head', 'lstm': 'lstm'}
    out = {}
    for key in archive:
        if key.startswith(prefix + '/'):
            head, *rest = key[len(prefix) + 1 :].split('|')
            out['.'.join([renamed[head], *rest])] = archive[key]
    return out


def network_for(detector, archive, prefix, dim):
    network = detector.build(dim)
    network.load_state_dict(
        {k: torch.from_numpy(v.copy()) for k, v in weights_of(archive, prefix).items()}
    )
    return network


@pytest.mark.parametrize(
    ('kind', 'case'), [(kind, case) for kind, cases in FORWARD_CASES for case in cases]
)
def test_golden_scores_loss_and_gradients(kind, case):
    archive = MLP if kind == 'safe_mlp' else LSTM
    data, valid = training_data(archive, 'common')
    config = json.loads(str(archive[f'{case}/in/config']))
    detector = detector_for(config, kind)
    network = network_for(detector, archive, f'{case}/weights', data.flat.shape[1])
    scores = network(data.flat, data.lengths)
    mask = valid.numpy() > 0
    assert_golden(
        scores.detach().numpy()[mask[:, : scores.shape[1]]],
        archive[f'{case}/out/scores'][mask],
        1e-5,
    )

    weights = losses.ClassWeights(*archive['common/in/class_weights'].tolist())
    loss = batch_loss(detector, network, data, weights)
    assert_golden(loss, archive[f'{case}/out/loss'], 1e-5)
    loss.backward()
    expected = weights_of(archive, f'{case}/grad')
    for name, parameter in network.named_parameters():
        assert_golden(parameter.grad, expected[name], 1e-5)
    assert_golden(
        0.1 * losses.sum_of_squares(network), archive[f'{case}/out/reg_loss_lambda0p1'], 1e-5
    )


@pytest.mark.parametrize(('case', 'kind'), [('mlp_adam', 'safe_mlp'), ('lstm_adam', 'safe_lstm')])
def test_golden_training_steps(case, kind):
    data, valid = training_data(TRAINING, case)
    detector = detector_for(json.loads(str(TRAINING[f'{case}/in/config'])), kind)
    network = network_for(detector, TRAINING, f'{case}/weights0', data.flat.shape[1])
    assert_golden(np.array(data.weights(detector)), TRAINING[f'{case}/out/class_weights'], 1e-6)
    epochs = list(training_epochs(detector, network, data, torch.Generator()))
    assert_golden(np.array([e.loss for e in epochs]), TRAINING[f'{case}/out/epoch_losses'], 1e-4)
    assert_golden(
        np.array([e.learning_rate for e in epochs]), TRAINING[f'{case}/out/lr_after_epoch'], 1e-6
    )
    expected = weights_of(TRAINING, f'{case}/weights6')
    for name, parameter in network.named_parameters():
        assert_golden(parameter, expected[name], 1e-4)
    mask = valid.numpy() > 0
    scores = network(data.flat, data.lengths).detach().numpy()
    assert_golden(
        scores[mask[:, : scores.shape[1]]], TRAINING[f'{case}/out/scores_after'][mask], 1e-4
    )


def test_golden_time_weights_and_class_weights():
    valid = golden(LOSSES, 'timew/in/valid_masks')
    assert_golden(losses.time_weights(valid), LOSSES['timew/out/on'], 1e-6)
    assert_golden(valid, LOSSES['timew/out/off'], 1e-6)
    for row, expected in zip(
        LOSSES['classw/in/nsucc_nfail_lambdafail_lambdasucc'],
        LOSSES['classw/out/weights_fail_succ'],
        strict=True,
    ):
        n_success, n_fail, lambda_fail, lambda_success = row
        assert_golden(
            losses.class_weights(int(n_fail), int(n_success), lambda_fail, lambda_success),
            expected,
            1e-6,
        )


def test_golden_aggregation():
    steps = golden(LOSSES, 'agg/in/losses').requires_grad_()
    valid, failed = (
        golden(LOSSES, 'agg/in/valid_masks'),
        1 - golden(LOSSES, 'agg/in/success_labels'),
    )
    weights = losses.ClassWeights(*LOSSES['agg/in/class_weights'].tolist())
    per_rollout = losses.rollout_losses(steps, valid)
    total = losses.weighted_total(per_rollout, failed, weights)
    means = [total, per_rollout[failed == 0].mean(), per_rollout[failed == 1].mean()]
    assert_golden(torch.stack(means), LOSSES['agg/out/monitor_success_fail'], 1e-6)
    total.backward()
    assert_golden(steps.grad, LOSSES['agg/out/grad_monitor_wrt_losses'], 1e-6)


@pytest.mark.parametrize('case', ['hn_hard', 'hn_soft50'])
def test_golden_hard_negatives(case):
    preds = golden(LOSSES, f'{case}/in/preds').requires_grad_()
    loss = losses.hard_negative(
        preds,
        golden(LOSSES, f'{case}/in/fail_labels'),
        golden(LOSSES, f'{case}/in/valid_masks'),
        float(LOSSES[f'{case}/in/alpha']),
        float(LOSSES[f'{case}/in/beta']),
    )
    assert_golden(loss, LOSSES[f'{case}/out/loss'], 1e-6)
    loss.backward()
    assert_golden(preds.grad, LOSSES[f'{case}/out/grad'], 1e-6)


def test_golden_stop_gradient_cumsum():
    x = golden(LOSSES, 'csg/in/x').requires_grad_()
    y = stop_gradient_cumsum(x)
    assert_golden(y, LOSSES['csg/out/y'], 1e-6)
    y.backward(golden(LOSSES, 'csg/in/cotangent'))
    assert_golden(x.grad, LOSSES['csg/out/vjp'], 1e-6)


@pytest.mark.parametrize('case', ['lstm_bce_from_scores', 'mlp_hinge_from_scores'])
def test_golden_losses_from_scores(case):
    scores = golden(LOSSES, f'{case}/in/scores').requires_grad_()
    valid = golden(LOSSES, f'{case}/in/valid_masks')
    failed = 1 - golden(LOSSES, f'{case}/in/success_labels')
    weights = losses.ClassWeights(*LOSSES[f'{case}/in/class_weights'].tolist())
    step_loss = losses.cross_entropy_steps if case.startswith('lstm') else losses.hinge_steps
    steps = step_loss(scores, failed, losses.time_weights(valid))
    loss = losses.weighted_total(losses.rollout_losses(steps, valid), failed, weights)
    assert_golden(loss, LOSSES[f'{case}/out/loss'], 1e-6)
    loss.backward()
    assert_golden(scores.grad, LOSSES[f'{case}/out/grad_scores'], 1e-6)


def test_one_loss_per_rollout_draws_a_valid_step():
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(12.0).reshape(2, 6)
    valid = torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    drawn = torch.stack([losses.rollout_losses(steps, valid, generator) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {0.0, 1.0}
    assert set(drawn[:, 1].tolist()) == {6.0, 7.0, 8.0, 9.0, 10.0, 11.0}


def test_the_loss_of_windows_by_hand():
    scores = torch.tensor([[0.2, 0.4, 0.9, 0.1], [0.8, 0.1, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]])
    valid = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    failed = torch.tensor([1.0, 0.0, 1.0])
    found = losses.window_losses(scores, failed, valid, 2)
    # The largest windows are (0.4 + 0.9) / 2 and (0.8 + 0.1) / 2; the last rollout is shorter.
    assert found.tolist() == pytest.approx([-np.log(0.65), -np.log(0.55), -np.log(0.3)], rel=1e-5)
    single = losses.window_losses(scores, failed, valid, 1)
    assert single.tolist() == pytest.approx([-np.log(0.9), -np.log(0.2), -np.log(0.3)], rel=1e-5)
    longer = losses.window_losses(scores, failed, valid, 9)
    assert longer.tolist() == pytest.approx([-np.log(0.4), -np.log(0.55), -np.log(0.3)], rel=1e-5)


def test_only_the_largest_window_teaches():
    scores = torch.tensor([[0.2, 0.4, 0.9, 0.1]], requires_grad=True)
    losses.window_losses(scores, torch.ones(1), torch.ones(1, 4), 2).sum().backward()
    assert (scores.grad != 0).tolist() == [[False, True, True, False]]
