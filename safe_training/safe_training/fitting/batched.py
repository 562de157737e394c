# SPDX-License-Identifier: Apache-2.0
"""Train many SAFE-MLPs or SAFE-LSTMs on the same rollouts at once.

Models that differ in their learning rate, regularisation or class weights read the same features.
When the models are stacked, one pass over the features per epoch is enough. The input layers of all
models are computed as one matrix product, the recurrence runs over time once for all models, and
padded steps are not computed. Except for rounding, each model is equal to the result of
:func:`safe_training.fitting.learned.fit_learned`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.learned import SafeLstm, SafeMlp
from safe_monitor_node.detectors.networks import ACTIVATIONS, MlpNetwork, pad_steps, time_major
from safe_training.fitting.learned import (
    Learned,
    TrainingData,
    fresh_network,
    make_optimizer,
    make_schedule,
    score_loss,
)
from safe_training.fitting.losses import ClassWeights
from safe_training.fitting.lstm_kernel import FirstLayer, LayerRun, LstmLayer, Workspace
from safe_training.fitting.precision import Precision
from vla_feature_bridge.progress import Progress

#: Parameters that may differ between models that are trained together.
FREE = frozenset(
    {
        'learning_rate',
        'lambda_reg',
        'lambda_fail',
        'lambda_success',
        'weight_decay',
        'init_weight_scale',
        'max_grad_norm',
        'schedule_gamma',
        'optimizer',
    }
)

#: Maximum memory for the activations of a group of models [bytes]. A group with a single model may
#: need more.
MEMORY = 2 << 30


def can_be_stacked(detector: Any) -> bool:
    """Return whether a detector can be trained together with others.

    Models with a windowed LSTM, dropout, or one random step per rollout are trained one at a time.
    """
    if isinstance(detector, SafeLstm):
        return detector.history < 0 and detector.dropout == 0 and not detector.one_loss_per_rollout
    return isinstance(detector, SafeMlp) and not detector.one_loss_per_rollout


def _bound(detector: Learned) -> tuple[Any, ...]:
    """Return the parameters that models must share to be trained together."""
    params = detector.get_params().items()
    return (detector.name, *sorted((k, v) for k, v in params if k not in FREE))


def stacks(detectors: Sequence[Learned], data: TrainingData) -> list[list[int]]:
    """Return groups of detectors (indices) that can be trained together within :data:`MEMORY`.

    The groups are in the order of their first members.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, detector in enumerate(detectors):
        groups.setdefault(_bound(detector), []).append(index)
    found = []
    for members in groups.values():
        first = detectors[members[0]]
        # Gates, cells, states, hidden units, and the gradients of all of them.
        floats = 14 * first.hidden if isinstance(first, SafeLstm) else 4 * first.hidden
        together = max(1, MEMORY // (4 * floats * first.layers * len(data.flat)))
        found += [members[i : i + together] for i in range(0, len(members), together)]
    return found


@dataclass(frozen=True)
class _Batch:
    """Rollouts in the form that a stack of models reads: valid steps only, in the order of time.

    ``place`` (B, T) holds the position of each step in ``x`` (N, D), and N for padding.
    """

    x: torch.Tensor
    batch_sizes: list[int]
    place: torch.Tensor
    valid: torch.Tensor
    failed: torch.Tensor

    @classmethod
    def of(cls, data: TrainingData, device: torch.device, precision: torch.dtype) -> _Batch:
        index, batch_sizes = time_major(data.lengths)
        back = torch.empty_like(index)
        back[index] = torch.arange(len(index))
        valid = data.valid()
        place = torch.where(valid > 0, pad_steps(back, data.lengths), len(index))
        return cls(
            data.flat[index].to(device, precision),
            batch_sizes,
            place.to(device),
            valid.to(device),
            data.failed.to(device),
        )

    def padded(self, p: torch.Tensor) -> torch.Tensor:
        """Return p_t (K, N) by rollout and step: (K, B, T), zero-padded."""
        wide = torch.cat([p, p.new_zeros(len(p), 1)], dim=1)
        return wide.index_select(1, self.place.flatten()).view(len(p), *self.place.shape)


def _lstm_probabilities(
    detector: SafeLstm, stack: Mapping[str, torch.Tensor], batch: _Batch, space: Workspace
) -> torch.Tensor:
    states = batch.x
    for layer in range(detector.layers):
        w_ih, w_hh, b_ih, b_hh = (
            stack[f'lstm.{name}_l{layer}']
            for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
        )
        states = LstmLayer.apply(
            states, w_ih, w_hh, b_ih + b_hh, LayerRun(f'lstm{layer}', batch.batch_sizes, space)
        )
    logits = torch.bmm(states, stack['head.weight'].transpose(1, 2)).squeeze(2)
    return torch.sigmoid(logits + stack['head.bias'])


def _mlp_probabilities(
    detector: SafeMlp, stack: Mapping[str, torch.Tensor], batch: _Batch, space: Workspace
) -> torch.Tensor:
    values = FirstLayer.apply(
        batch.x, stack['layers.0.weight'], stack['layers.0.bias'], detector.layers > 1, space
    )
    for layer in range(1, detector.layers):
        weight, bias = stack[f'layers.{2 * layer}.weight'], stack[f'layers.{2 * layer}.bias']
        product = torch.bmm(values, weight.to(values.dtype).transpose(1, 2))
        values = product + bias[:, None].to(values.dtype)
        if layer < detector.layers - 1:
            values = values.relu()
    return ACTIVATIONS[detector.activation](values.squeeze(2).float())


def train_together(
    detectors: Sequence[Learned],
    data: TrainingData,
    *,
    device: torch.device | str = 'cpu',
    precision: Precision = 'float32',
    progress: Progress | None = None,
) -> list[str]:
    """Train detectors of one group of :func:`stacks` on the same rollouts, in place.

    Parameters
    ----------
    detectors : sequence of K SafeMlp or SafeLstm
        They may differ in :data:`FREE` only. The result of each detector is equal to the result of
        its own ``fit``.
    data : TrainingData
        Rollouts of both outcomes.
    device : torch.device or str
        Where to train; the trained networks are on the CPU.
    precision : {'float32', 'bfloat16'}
        Precision of the matrix products. The parameters, their updates, the activations of an LSTM
        and the losses are float32 in any case.
    progress : callable, optional
        Called with (epochs done, epochs, note).

    Returns
    -------
    list of K str
        An empty string for a trained detector, otherwise the reason of the failure (the loss
        diverged). A failed detector stays unfitted and does not affect the other detectors.
    """
    first = detectors[0]
    for detector in detectors:
        detector.check_params()
    if len({_bound(detector) for detector in detectors}) != 1:
        raise DetectorError(
            where=first.name,
            expected=f'detectors that differ only in {", ".join(sorted(FREE))}',
            found='detectors that differ in other parameters',
            advice='group the detectors with stacks() first',
        )
    space = Workspace(torch.device(device), getattr(torch, precision))
    dim = data.flat.shape[1]
    networks = []
    for detector in detectors:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(detector.seed)
            networks.append(fresh_network(detector, dim))
    stack = _Stack(detectors, networks, data, torch.device(device), space)
    diverged = stack.train(data, progress)
    stack.unstack(networks)
    reasons = []
    for detector, network, epoch in zip(detectors, networks, diverged, strict=True):
        finite = all(bool(torch.isfinite(p).all()) for p in network.parameters())
        if epoch is None and finite:
            detector.set_network(network, dim)
            reasons.append('')
        else:
            reasons.append(str(_divergence(detector.name, epoch)))
    return reasons


def _divergence(name: str, epoch: int | None) -> DetectorError:
    """Return the reason why a detector has no result; the epoch is None after the last epoch."""
    return DetectorError(
        where=f'{name}, after the last epoch' if epoch is None else f'{name}, epoch {epoch}',
        expected='finite weights' if epoch is None else 'a finite training loss',
        found='NaN or infinity',
        advice='set learning_rate to a smaller value, or set max_grad_norm',
    )


class _Stack:
    """The parameters of K models, stacked, with one optimiser and schedule for each."""

    def __init__(
        self,
        detectors: Sequence[Learned],
        networks: Sequence[nn.Module],
        data: TrainingData,
        device: torch.device,
        space: Workspace,
    ) -> None:
        self._detectors = detectors
        self._space = space
        self._device = device
        states = [network.state_dict() for network in networks]
        self._stacked = {
            name: torch.stack([state[name] for state in states]).to(device).requires_grad_()
            for name in states[0]
        }
        # The part of each model in the stack: the parameters of its own optimiser.
        self._views = [
            {name: nn.Parameter(tensor.detach()[k]) for name, tensor in self._stacked.items()}
            for k in range(len(detectors))
        ]
        self._optimizers = [
            make_optimizer(detector, views.values())
            for detector, views in zip(detectors, self._views, strict=True)
        ]
        self._schedules = [
            make_schedule(detector, optimizer)
            for detector, optimizer in zip(detectors, self._optimizers, strict=True)
        ]
        weights = [data.weights(detector) for detector in detectors]
        self._fail = torch.tensor([w.fail for w in weights], device=device)
        self._success = torch.tensor([w.success for w in weights], device=device)
        self._accumulated = cast(Any, networks[0]).accumulated
        self._probabilities: Callable[[Any, Any, _Batch, Workspace], torch.Tensor] = (
            _mlp_probabilities if isinstance(networks[0], MlpNetwork) else _lstm_probabilities
        )

    def train(self, data: TrainingData, progress: Progress | None) -> list[int | None]:
        """Run all epochs; return for each model the epoch in which its loss diverged."""
        first = self._detectors[0]
        diverged: list[int | None] = [None] * len(self._detectors)
        rollouts = len(data.lengths)
        whole = (
            [_Batch.of(data, self._device, self._space.precision)]
            if rollouts <= first.batch_size
            else None
        )
        generator = torch.Generator().manual_seed(first.seed)
        for epoch in range(first.epochs):
            total = torch.zeros(len(self._detectors), device=self._device)
            batches = whole or (
                _Batch.of(data.take(chosen), self._device, self._space.precision)
                for chosen in torch.randperm(rollouts, generator=generator).split(first.batch_size)
            )
            for batch in batches:
                total += self._descend(batch) * len(batch.failed) / rollouts
            for schedule in self._schedules:
                schedule.step()
            losses = total.tolist()
            for k, loss in enumerate(losses):
                if diverged[k] is None and not abs(loss) < float('inf'):
                    diverged[k] = epoch
            if progress is not None:
                progress(epoch + 1, first.epochs, f'{len(losses)} models, loss {min(losses):.4f}')
        return diverged

    def _descend(self, batch: _Batch) -> torch.Tensor:
        """Take one step of every model; return their losses (K,), without regularisation."""
        first = self._detectors[0]

        def loss_of_one(p: torch.Tensor, fail: torch.Tensor, success: torch.Tensor) -> torch.Tensor:
            weights = ClassWeights(fail, success)  # type: ignore[arg-type]
            return score_loss(first, self._accumulated(p), batch.valid, batch.failed, weights)

        p = batch.padded(self._probabilities(first, self._stacked, batch, self._space))
        # If one model diverges, do not raise an error for all models. Its loss is set to NaN below.
        finite = torch.isfinite(p)
        losses = torch.vmap(loss_of_one)(
            torch.where(finite, p, 0.5), self._fail, self._success
        ).where(finite.flatten(1).all(dim=1), torch.nan)
        for tensor in self._stacked.values():
            tensor.grad = None
        # The loss of a model depends on its own parameters only, so the sum has the same gradients.
        losses.sum().backward()
        for k, (detector, views) in enumerate(zip(self._detectors, self._views, strict=True)):
            for name, view in views.items():
                gradient = self._stacked[name].grad
                assert gradient is not None
                view.grad = gradient[k]
                if 'bias' not in name and detector.lambda_reg:
                    # The gradient of losses.sum_of_squares.
                    view.grad.add_(view.detach(), alpha=2 * detector.lambda_reg)
            if detector.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(views.values(), detector.max_grad_norm)
            self._optimizers[k].step()
        return losses.detach()

    def unstack(self, networks: Sequence[nn.Module]) -> None:
        """Copy each model's parameters into its network."""
        for k, network in enumerate(networks):
            network.load_state_dict(
                {name: tensor.detach()[k].cpu() for name, tensor in self._stacked.items()}
            )
