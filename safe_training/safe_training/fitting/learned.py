# SPDX-License-Identifier: Apache-2.0
"""Fit SAFE-MLP and SAFE-LSTM, one detector at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.learned import SafeLstm, SafeMlp
from safe_monitor_node.detectors.networks import pad_steps
from safe_training.fitting.data import require_both_outcomes, stack_rollouts
from safe_training.fitting.losses import (
    ClassWeights,
    class_weights,
    cross_entropy_steps,
    hard_negative,
    hinge_steps,
    rollout_losses,
    sum_of_squares,
    time_weights,
    weighted_total,
    window_losses,
)
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

Learned = SafeMlp | SafeLstm


@dataclass(frozen=True)
class TrainingData:
    """Rollouts as tensors: the steps of all rollouts are concatenated, without padding.

    Attributes
    ----------
    flat : Tensor of float32, shape (N, D)
        Features of all steps.
    lengths : Tensor of int64, shape (B,)
        Steps of each rollout.
    failed : Tensor of float32, shape (B,)
        1 for failures.
    """

    flat: torch.Tensor
    lengths: torch.Tensor
    failed: torch.Tensor

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> TrainingData:
        """Return checked and labelled rollouts; see :func:`~.data.stack_rollouts`."""
        stacked = stack_rollouts(rollouts)
        return cls(
            torch.from_numpy(stacked.flat),
            torch.from_numpy(stacked.lengths),
            torch.from_numpy(stacked.failed).float(),
        )

    def take(self, rollouts: torch.Tensor) -> TrainingData:
        """Return the rollouts with these indices, in their order."""
        parts = torch.split(self.flat, self.lengths.tolist())
        return TrainingData(
            torch.cat([parts[i] for i in rollouts.tolist()]),
            self.lengths[rollouts],
            self.failed[rollouts],
        )

    def valid(self) -> torch.Tensor:
        """Return the mask (B, T): True for valid steps, False for padding."""
        return pad_steps(torch.ones(len(self.flat)), self.lengths)

    def weights(self, detector: Learned) -> ClassWeights:
        """Return the class weights of these rollouts."""
        n_fail = int(self.failed.sum())
        return class_weights(
            n_fail, len(self.failed) - n_fail, detector.lambda_fail, detector.lambda_success
        )


@dataclass(frozen=True)
class Epoch:
    """An epoch, its mean training loss with regularisation, and the learning rate after it."""

    index: int
    loss: float
    learning_rate: float


def batch_loss(
    detector: Learned,
    network: nn.Module,
    batch: TrainingData,
    weights: ClassWeights,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the training loss of a mini-batch, without regularisation."""
    scores = network(batch.flat, batch.lengths)
    if not torch.isfinite(scores).all():
        # The training has diverged. (PyTorch's cross-entropy would raise an error without this
        # reason.)
        return scores.sum() * torch.nan
    return score_loss(detector, scores, batch.valid(), batch.failed, weights, generator)


def score_loss(
    detector: Learned,
    scores: torch.Tensor,
    valid: torch.Tensor,
    failed: torch.Tensor,
    weights: ClassWeights,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the training loss of scores (B, T) on valid steps, without regularisation."""
    if isinstance(detector, SafeMlp) and detector.window is not None:
        return weighted_total(
            window_losses(scores, failed, valid, detector.window), failed, weights
        )
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


def make_optimizer(detector: Learned, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters of the detector."""
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
    raise AssertionError('check_params allows no other optimizer')


def make_schedule(
    detector: Learned, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning-rate schedule: a linear rise over ``warmup`` epochs, then steps."""
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
    detector: Learned, network: nn.Module, data: TrainingData, generator: torch.Generator
) -> Iterator[Epoch]:
    """Train ``network`` in place; yields after every epoch."""
    optimizer = make_optimizer(detector, network.parameters())
    schedule = make_schedule(detector, optimizer)
    weights = data.weights(detector)
    rollouts = len(data.lengths)
    for index in range(detector.epochs):
        total = 0.0
        network.train()
        # If there is only one batch, the order is not important. Therefore the batch is not copied
        # again in every epoch.
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
                where=f'{detector.name}, epoch {index}',
                expected='a finite training loss',
                found=str(total),
                advice='set learning_rate to a smaller value, or set max_grad_norm',
            )
        yield Epoch(index, total, float(schedule.get_last_lr()[0]))


def fresh_network(detector: Learned, dim: int) -> nn.Module:
    """Return an untrained network; PyTorch's global generator draws its weights."""
    network = detector.build(dim)
    scale_weights(network, detector.init_weight_scale)
    return network


def scale_weights(network: nn.Module, scale: float) -> None:
    """Multiply all weights of a new network by a factor; biases are not changed."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if 'weight' in name:
                parameter.mul_(scale)


@dataclass
class _EarlyStopping:
    """Early stopping.

    Stores the weights with the lowest validation loss, and stops when the loss has not improved for
    ``patience`` epochs.
    """

    detector: Learned
    data: TrainingData
    patience: int
    best_loss: float = float('inf')
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] | None = None

    def should_stop(self, network: nn.Module, epoch: int) -> bool:
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
    detector: Learned,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    patience: int = 30,
    progress: Progress | None = None,
) -> None:
    """Train SAFE-MLP or SAFE-LSTM by the losses of the paper.

    Parameters
    ----------
    detector : SafeMlp or SafeLstm
        Fitted in place.
    rollouts : sequence of Rollout
        Labelled training rollouts with pooled features, both outcomes.
    validation : sequence of Rollout, optional
        If not given, the weights of the last epoch are used, as in the published code. If given,
        training stops when the validation loss has not improved for ``patience`` epochs, and the
        weights with the lowest validation loss are used. These rollouts must not be used to
        calibrate a band.
    patience : int
        Epochs without a lower validation loss after which training stops.
    progress : callable, optional
        Called with (epochs done, epochs, note).

    Raises
    ------
    DetectorError
        The rollouts are not suitable for fitting, or training diverged.
    """
    detector.check_params()
    data = TrainingData.of(rollouts)
    require_both_outcomes(rollouts, detector.name)
    dim = data.flat.shape[1]
    stopping = None
    if validation is not None:
        stopping = _EarlyStopping(detector, TrainingData.of(validation), patience)
        require_both_outcomes(validation, f'{detector.name} (validation)')
    # PyTorch initialises layers and draws dropout from its global generator. Fork it, so that the
    # global state does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(detector.seed)
        network = fresh_network(detector, dim)
        generator = torch.Generator().manual_seed(detector.seed)
        for epoch in training_epochs(detector, network, data, generator):
            if progress is not None:
                progress(epoch.index + 1, detector.epochs, f'loss {epoch.loss:.4f}')
            if stopping is not None and stopping.should_stop(network, epoch.index):
                break
    if stopping is not None and stopping.best_weights is not None:
        network.load_state_dict(stopping.best_weights)
    # No loss is computed after the last update. Therefore check the weights.
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        raise DetectorError(
            where=f'{detector.name}, after the last epoch',
            expected='finite weights',
            found='NaN or infinity',
            advice='set learning_rate to a smaller value, or set max_grad_norm',
        )
    detector.set_network(network, dim)
