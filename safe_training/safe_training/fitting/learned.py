# SPDX-License-Identifier: Apache-2.0
"""Fit detectors on rollouts. Importing this module makes ``Detector.fit`` work."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors import DetectorError, SafeLstm, SafeMlp
from safe_training.fitting.data import Progress, TrainingData, require_both_outcomes, stack_rollouts
from safe_training.fitting.losses import (
    ClassWeights,
    cross_entropy_steps,
    hard_negative,
    hinge_steps,
    rollout_losses,
    sum_of_squares,
    time_weights,
    weighted_total,
)
from vla_feature_bridge.rollout import Rollout


@dataclass(frozen=True)
class Epoch:
    """One epoch: its mean training loss with regularisation, and the learning rate after it."""

    index: int
    loss: float
    learning_rate: float


# Lowest value of each number that steers training; the highest is that of float32.
_LOWEST = {
    'epochs': 1,
    'batch_size': 1,
    'learning_rate': 0,
    'weight_decay': 0,
    'schedule_every': 1,
    'schedule_gamma': 0,
    'warmup': 0,
    'max_grad_norm': 0,
    'lambda_fail': 0,
    'lambda_success': 0,
    'lambda_reg': 0,
    'init_weight_scale': 0,
    'hard_negative': 0,
    'seed': 0,
}
_HIGHEST = float(np.finfo(np.float32).max)


def check_parameters(detector: SafeMlp | SafeLstm) -> None:
    """Raise :class:`DetectorError` for a parameter with which nothing could be trained."""
    params = detector.get_params()
    for name, lowest in _LOWEST.items():
        value = params.get(name)
        if value is not None and not lowest <= value <= _HIGHEST:
            raise DetectorError(
                f'{detector.name}: {name} must be a number from {lowest} to {_HIGHEST:.1e}, '
                f'found {value}'
            )
    if detector.seed >= 2**63:
        raise DetectorError(f'{detector.name}: seed must be below 2**63, found {detector.seed}')


def batch_loss(
    detector: SafeMlp | SafeLstm,
    network: nn.Module,
    batch: TrainingData,
    weights: ClassWeights,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the training loss of a mini-batch, without regularisation (methods.md 3.1 to 3.3)."""
    scores = network(batch.flat, batch.lengths)
    if not torch.isfinite(scores).all():
        # Diverged. PyTorch's cross-entropy would raise an error of its own, which says nothing.
        return scores.sum() * torch.nan
    return score_loss(detector, scores, batch.valid(), batch.failed, weights, generator)


def score_loss(
    detector: SafeMlp | SafeLstm,
    scores: torch.Tensor,
    valid: torch.Tensor,
    failed: torch.Tensor,
    weights: ClassWeights,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the training loss of scores (B, T) on valid steps, without regularisation."""
    step_weights = time_weights(valid) if detector.time_weighting else valid
    if isinstance(detector, SafeMlp):
        steps = hinge_steps(scores, failed, step_weights, detector.threshold)
    elif detector.accumulate != 'none':
        steps = hinge_steps(scores, failed, step_weights)
    else:
        steps = cross_entropy_steps(scores, failed, step_weights)
    drawn = generator if detector.one_loss_per_rollout else None
    loss = weighted_total(rollout_losses(steps, valid, drawn), failed, weights)
    if isinstance(detector, SafeLstm) and detector.hard_negative > 0:
        extra = hard_negative(
            scores, failed, valid, detector.hard_negative_margin, detector.hard_negative_beta
        )
        loss = loss + detector.hard_negative * extra
    return loss


def make_optimizer(
    detector: SafeMlp | SafeLstm, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimiser that the detector's parameters ask for."""
    parameters, rate = list(parameters), detector.learning_rate
    match detector.optimizer:
        case 'adam':
            return torch.optim.Adam(parameters, lr=rate, fused=True)
        case 'adamw':
            return torch.optim.AdamW(
                parameters, lr=rate, weight_decay=detector.weight_decay, fused=True
            )
        case 'sgd':
            return torch.optim.SGD(parameters, lr=rate)
        case 'sgdm':
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    raise DetectorError(
        f'{detector.name}: optimizer must be one of adam, adamw, sgd, sgdm, '
        f'found {detector.optimizer!r}'
    )


def make_schedule(
    detector: SafeMlp | SafeLstm, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning rate's course: a linear rise over ``warmup`` epochs, then steps."""
    steps = torch.optim.lr_scheduler.StepLR(
        optimizer, detector.schedule_every, detector.schedule_gamma
    )
    if detector.warmup <= 0:
        return steps
    rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: (epoch + 1) / detector.warmup)
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer, [rise, steps], milestones=[detector.warmup]
    )


def training_epochs(
    detector: SafeMlp | SafeLstm, network: nn.Module, data: TrainingData, generator: torch.Generator
) -> Iterator[Epoch]:
    """Train ``network`` in place, one epoch each time the iterator is advanced."""
    optimizer = make_optimizer(detector, network.parameters())
    schedule = make_schedule(detector, optimizer)
    weights = data.weights(detector)
    rollouts = len(data.lengths)
    for index in range(detector.epochs):
        total = 0.0
        network.train()
        # One batch of everything needs no order, so it is not gathered again every epoch.
        batches = (
            [data]
            if rollouts <= detector.batch_size
            else map(
                data.take, torch.randperm(rollouts, generator=generator).split(detector.batch_size)
            )
        )
        for batch in batches:
            optimizer.zero_grad()
            loss = batch_loss(detector, network, batch, weights, generator)
            loss = loss + detector.lambda_reg * sum_of_squares(network)
            loss.backward()
            if detector.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), detector.max_grad_norm)
            optimizer.step()
            total += loss.item() * len(batch.lengths) / rollouts
        schedule.step()
        if not np.isfinite(total):
            raise DetectorError(
                f'{detector.name}: the training loss became {total} in epoch {index}; '
                'lower learning_rate or set max_grad_norm'
            )
        yield Epoch(index, total, float(schedule.get_last_lr()[0]))


def fresh_network(detector: SafeMlp | SafeLstm, dim: int) -> nn.Module:
    """Return the untrained network, drawn with PyTorch's current random state."""
    network = detector.build(dim)
    scale_weights(network, detector.init_weight_scale)
    return network


def scale_weights(network: nn.Module, scale: float) -> None:
    """Multiply all weights (biases left alone) of a fresh network."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if 'weight' in name:
                parameter.mul_(scale)


@dataclass
class _EarlyStopping:
    """Keeps the weights of lowest validation loss; done ``patience`` epochs after them."""

    detector: SafeMlp | SafeLstm
    data: TrainingData
    patience: int
    best_loss: float = float('inf')
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] | None = None

    def look(self, network: nn.Module, epoch: int) -> bool:
        network.eval()
        with torch.inference_mode():
            loss = float(
                batch_loss(self.detector, network, self.data, self.data.weights(self.detector))
            )
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, epoch
            self.best_weights = copy.deepcopy(network.state_dict())
        return epoch - self.best_epoch >= self.patience


def fit_learned(
    detector: SafeMlp | SafeLstm,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    patience: int = 30,
    progress: Progress | None = None,
) -> None:
    """Train SAFE-MLP or SAFE-LSTM by the losses of the paper.

    Parameters
    ----------
    rollouts : sequence of Rollout
        Labelled training rollouts with pooled features, both outcomes.
    validation : sequence of Rollout, optional
        Without it the weights of the last epoch are taken, as published. With it, training stops
        ``patience`` epochs after its loss was lowest, and those weights are taken; rollouts used
        here must not be used to calibrate a band.
    progress : callable, optional
        Called with (epochs done, epochs, note).
    """
    check_parameters(detector)
    data = stack_rollouts(rollouts)
    require_both_outcomes(rollouts, detector.name)
    dim = data.flat.shape[1]
    stopping = None
    if validation is not None:
        stopping = _EarlyStopping(detector, stack_rollouts(validation), patience)
        require_both_outcomes(validation, f'{detector.name} (validation)')
    # PyTorch initialises layers and draws dropout from its global generator; fork it to stay local.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(detector.seed)
        network = fresh_network(detector, dim)
        generator = torch.Generator().manual_seed(detector.seed)
        for epoch in training_epochs(detector, network, data, generator):
            if progress is not None:
                progress(epoch.index + 1, detector.epochs, f'loss {epoch.loss:.4f}')
            if stopping is not None and stopping.look(network, epoch.index):
                break
    if stopping is not None and stopping.best_weights is not None:
        network.load_state_dict(stopping.best_weights)
    # The last step of all is followed by no loss that would show it.
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        raise DetectorError(
            f'{detector.name}: training ended with weights that are NaN or infinite; '
            'lower learning_rate or set max_grad_norm'
        )
    detector.set_network(network, dim)
