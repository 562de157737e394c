# SPDX-License-Identifier: Apache-2.0
"""Fit RND by distillation and LogpZO by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.density import DensityDetector, Inputs
from safe_monitor_node.detectors.logpzo import LogpZO
from safe_monitor_node.detectors.rnd import Rnd, executed_chunks
from safe_training.fitting.data import require_both_outcomes, require_successes, stack_rollouts
from safe_training.fitting.losses import sum_of_squares
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

TIME_STEPS = 100
"""Factor between the time of the flow (0 to 1) and the integer time that the network reads."""


def flow_matching_loss(
    network: nn.Module,
    data: torch.Tensor,
    noise: torch.Tensor,
    time: torch.Tensor,
    counted: torch.Tensor,
) -> torch.Tensor:
    """Return the mean squared error of the velocity from data to noise.

    Parameters
    ----------
    data, noise : Tensor, shape (n, rows, width)
    time : Tensor, shape (n,)
        From 0 (data) to 1 (noise).
    counted : Tensor of bool, shape (rows, width)
        Entries that are not padding. Padding is zero in the data and stays zero at all times of the
        flow, because the network also reads zeros for padding when it scores.
    """
    noise = noise * counted
    velocity = noise - data
    x = data + time[:, None, None] * velocity
    found = network(x, torch.floor(TIME_STEPS * time))
    squares = (found - velocity).square() * counted
    return squares.sum() / (len(data) * counted.sum())


def outcome_loss(
    detector: DensityDetector,
    networks: nn.ModuleDict,
    outcome: str,
    inputs: Inputs,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the mean loss of the network of one outcome, over steps with this outcome."""
    if isinstance(detector, Rnd):
        return detector.errors(networks['target'], networks[outcome], inputs).mean()
    assert isinstance(detector, LogpZO)
    (features,) = inputs
    if 0 < detector.chunk < len(features):
        drawn = torch.randperm(len(features), generator=generator)[: detector.chunk]
        features = features[drawn.to(features.device)]
    data = detector.sequence(features)
    # Draw random numbers on the CPU, so that they are equal for all devices.
    noise = torch.randn(data.shape, generator=generator).to(data.device)
    time = torch.rand(len(data), generator=generator).to(data.device)
    counted = detector.counted(features.shape[1]).to(data.device)
    return flow_matching_loss(networks[outcome], data, noise, time, counted)


def batch_loss(
    detector: DensityDetector,
    networks: nn.ModuleDict,
    inputs: Inputs,
    failed: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor | None:
    """Return the training loss of a batch of valid steps; ``failed`` (n,) is their outcome.

    The loss is the sum over the outcomes in the batch; None if no network learns from the batch
    (failures with ``success_only``).
    """
    losses = []
    for outcome in detector.trained_outcomes():
        members = failed if outcome == 'failure' else ~failed
        if members.any():
            of_outcome = tuple(tensor[members] for tensor in inputs)
            losses.append(outcome_loss(detector, networks, outcome, of_outcome, generator))
    if not losses:
        return None
    penalised = [networks[outcome] for outcome in detector.trained_outcomes()]
    penalty = sum((sum_of_squares(network) for network in penalised), torch.zeros(()))
    total = torch.stack(losses).sum()
    return total + detector.lambda_reg * penalty if detector.lambda_reg else total


def training_inputs(detector: DensityDetector, rollouts: Sequence[Rollout]) -> Inputs:
    """Check and return the inputs of the networks, from all steps of all rollouts."""
    features = torch.from_numpy(stack_rollouts(rollouts).flat)
    if not isinstance(detector, Rnd):
        return (features,)
    chunks = [executed_chunks(rollouts[0], detector.name)]
    shape = chunks[0].shape[1:]
    chunks += [executed_chunks(r, detector.name, (shape[0], shape[1])) for r in rollouts[1:]]
    return features, torch.from_numpy(np.concatenate(chunks))


@dataclass(frozen=True)
class DensityData:
    """The inputs of the networks from all training rollouts.

    Attributes
    ----------
    inputs : tuple of Tensor
        Of all steps, concatenated.
    lengths : sequence of int
        Steps of each rollout.
    failed : sequence of bool
        Outcome of each rollout.
    """

    inputs: Inputs
    lengths: Sequence[int]
    failed: Sequence[bool]


def train(
    detector: DensityDetector,
    networks: nn.ModuleDict,
    data: DensityData,
    generator: torch.Generator,
    progress: Progress | None,
) -> None:
    """Train the networks of each outcome in place with Adam; the target is not changed."""
    trained = [networks[outcome] for outcome in detector.trained_outcomes()]
    parameters = [p for network in trained for p in network.parameters()]
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=detector.learning_rate)
    steps = torch.arange(sum(data.lengths)).split(list(data.lengths))
    fails = torch.tensor(data.failed)
    networks.train()
    for epoch in range(detector.epochs):
        total, batches = 0.0, 0
        for batch in torch.randperm(len(steps), generator=generator).split(detector.batch_size):
            index = torch.cat([steps[i] for i in batch.tolist()])
            of_step = fails[batch].repeat_interleave(torch.tensor([len(steps[i]) for i in batch]))
            on_device = tuple(tensor[index].to(device) for tensor in data.inputs)
            loss = batch_loss(detector, networks, on_device, of_step.to(device), generator)
            if loss is None:
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, batches = total + loss.item(), batches + 1
        if not np.isfinite(total):
            raise DetectorError(
                where=f'{detector.name}, epoch {epoch}',
                expected='a finite training loss',
                found=str(total),
                advice='set learning_rate to a smaller value, or check the scale of the '
                'features and actions',
            )
        if progress is not None:
            progress(epoch + 1, detector.epochs, f'loss {total / max(batches, 1):.4f}')


def fit_density(
    detector: DensityDetector,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the networks of RND or LogpZO.

    A batch consists of rollouts, as in the published code. The loss of a network is the mean over
    the valid steps of its outcome. (In the published code, padded steps count as zeros, and a batch
    of one outcome gives NaN: departures.md D3.)

    Parameters
    ----------
    detector : Rnd or LogpZO
        Fitted in place.
    rollouts : sequence of Rollout
        Labelled training rollouts with pooled features (and action chunks for RND); both outcomes
        unless ``success_only``.
    validation : sequence of Rollout, optional
        Not used: the weights of the last epoch are used, as in the published code.
    device : str, optional
        Device for training; the default is a GPU if one is available. The fitted detector is on the
        CPU.
    progress : callable, optional
        Called with (epochs done, epochs, note).

    Raises
    ------
    DetectorError
        The rollouts are not suitable for fitting, or training diverged.
    """
    detector.check_params()
    inputs = training_inputs(detector, rollouts)
    data = DensityData(inputs, [len(r) for r in rollouts], [r.failed for r in rollouts])
    (require_successes if detector.success_only else require_both_outcomes)(rollouts, detector.name)
    dim = inputs[0].shape[1]
    if isinstance(detector, Rnd):
        detector.action_shape_ = (inputs[1].shape[1], inputs[1].shape[2])
    where = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    # PyTorch initialises layers from its global generator. Fork it, so that the global state does
    # not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(detector.seed)
        networks = detector.build(dim).to(where)
    networks.requires_grad_(True)
    generator = torch.Generator().manual_seed(detector.seed)
    train(detector, networks, data, generator, progress)
    detector.set_networks(networks.to('cpu'), dim)
