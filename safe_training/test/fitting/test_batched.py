# SPDX-License-Identifier: Apache-2.0
"""Models trained together end as each of them would have ended alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rollout_factory import make_rollouts

import safe_training  # noqa: F401
from safe_monitor_node.detectors import DetectorError
from safe_monitor_node.detectors.learned import SafeLstm, SafeMlp
from safe_training.fitting.batched import MEMORY, can_be_stacked, stacks, train_together
from safe_training.fitting.learned import TrainingData
from vla_feature_bridge.rollout import Rollout

WIDTH = 12


def rollouts(count: int = 14) -> list[Rollout]:
    """Return rollouts of unequal length; failures drift."""

    def drifting(noise: np.ndarray, failed: bool) -> np.ndarray:
        noise[:, 0] += failed * np.arange(len(noise))
        return noise

    return make_rollouts(
        count, steps=(1, 9), dim=WIDTH, rng=3, looks=drifting, success=lambda i: i % 3 > 0
    )


FREE = [
    {'learning_rate': 1e-3, 'lambda_reg': 1e-3},
    {'learning_rate': 1e-2, 'lambda_reg': 0.0, 'lambda_fail': 3.0},
    {'learning_rate': 3e-3, 'lambda_reg': 1.0, 'optimizer': 'adamw', 'weight_decay': 0.1},
    {'learning_rate': 1e-2, 'optimizer': 'sgdm', 'max_grad_norm': 0.1, 'init_weight_scale': 0.5},
]
VARIANTS = [
    (SafeMlp, {}),
    (SafeMlp, {'accumulate': 'sum', 'time_weighting': True, 'threshold': 2.0}),
    (SafeMlp, {'layers': 1, 'activation': 'none', 'accumulate': 'none'}),
    (SafeMlp, {'layers': 3, 'activation': 'relu', 'warmup': 3, 'schedule_every': 2}),
    (SafeMlp, {'batch_size': 5}),
    (SafeLstm, {}),
    (SafeLstm, {'layers': 2, 'time_weighting': True}),
    (SafeLstm, {'accumulate': 'sum'}),
    (SafeLstm, {'accumulate': 'mean', 'hard_negative': 0.5, 'batch_size': 6}),
]


@pytest.mark.parametrize(('kind', 'bound'), VARIANTS)
def test_models_trained_together_end_as_each_would_alone(kind, bound):
    data = rollouts()
    params = [{'hidden': 7, 'epochs': 12, 'seed': 5, **bound, **free} for free in FREE]
    together = [kind(**p) for p in params]
    assert train_together(together, TrainingData.of(data)) == [''] * len(params)
    for detector, chosen in zip(together, params, strict=True):
        alone = kind(**chosen).fit(data)
        for name, array in alone.state().items():
            np.testing.assert_allclose(detector.state()[name], array, rtol=2e-4, atol=2e-5)
        untrained = kind(**{**chosen, 'epochs': 1, 'learning_rate': 0.0}).fit(data)
        moved = [np.abs(alone.state()[n] - a).max() for n, a in untrained.state().items()]
        assert max(moved) > 1e-3, 'training that changes nothing would make this test empty'


@pytest.mark.parametrize('kind', [SafeMlp, SafeLstm])
def test_bfloat16_products_change_scores_by_rounding_only(kind):
    data = rollouts()
    params = {'hidden': 16, 'epochs': 30, 'learning_rate': 1e-2}
    exact, rounded = kind(**params), kind(**params)
    train_together([exact], TrainingData.of(data))
    train_together([rounded], TrainingData.of(data), precision='bfloat16')
    gap = [
        np.abs(a - b).max()
        for a, b in zip(exact.score_all(data), rounded.score_all(data), strict=True)
    ]
    assert 0 < max(gap) < 0.05


def test_a_model_that_diverges_leaves_the_others_alone():
    data = rollouts()
    good = SafeLstm(hidden=5, epochs=6)
    bad = SafeLstm(hidden=5, epochs=6, optimizer='sgd', learning_rate=1e30, lambda_reg=1e5)
    reasons = train_together([good, bad], TrainingData.of(data))
    assert reasons[0] == '' and 'expected a finite training loss' in reasons[1]
    assert reasons[1].startswith('safe_lstm, epoch ')
    assert not bad.fitted
    with pytest.raises(DetectorError, match=r'training loss, found (nan|inf)'):
        bad.fit(data)
    alone = SafeLstm(hidden=5, epochs=6).fit(data)
    np.testing.assert_allclose(good.score(data[0]), alone.score(data[0]), atol=1e-5)


def test_models_are_grouped_by_what_they_must_share_and_by_memory():
    data = TrainingData.of(rollouts())
    detectors = [
        SafeMlp(learning_rate=1e-3),
        SafeLstm(),
        SafeMlp(learning_rate=1e-4),
        SafeMlp(hidden=8),
    ]
    assert stacks(detectors, data) == [[0, 2], [1], [3]]
    steps = 2_000_000
    large = type(data)(torch.empty(steps, 1), data.lengths, data.failed)
    many = stacks([SafeLstm(learning_rate=r) for r in (1e-5, 1e-4, 1e-3)], large)
    assert many == [[0], [1], [2]] and 4 * 14 * 256 * steps > MEMORY
    with pytest.raises(
        DetectorError, match='expected detectors that differ only in init_weight_scale'
    ):
        train_together([detectors[0], detectors[3]], data)


def test_what_draws_at_random_within_an_epoch_is_trained_alone():
    assert can_be_stacked(SafeLstm()) and can_be_stacked(SafeMlp())
    assert not can_be_stacked(SafeLstm(dropout=0.1))
    assert not can_be_stacked(SafeLstm(history=3))
    assert not can_be_stacked(SafeMlp(one_loss_per_rollout=True))
