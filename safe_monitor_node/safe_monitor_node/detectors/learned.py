# SPDX-License-Identifier: Apache-2.0
"""SAFE-MLP and SAFE-LSTM (Gu et al., arXiv 2506.09937, 4.2): learned scores of hidden states.

Each network is defined once. Training and batch scoring run it over the concatenated valid steps of
many rollouts (no padding reaches a matrix product); the stream runs the same parameters one step at
a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import Accumulate, Accumulator, check_accumulate
from safe_monitor_node.detectors.base import (
    Detector,
    DetectorError,
    Stream,
    checked_vector,
)
from safe_monitor_node.detectors.networks import (
    ACTIVATIONS,
    Activation,
    LstmNetwork,
    MlpNetwork,
    check_choice,
    lstm_weights,
)
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# Rollouts in one pass of a network: enough to fill its matrix products, few enough to bound memory.
_SCORED_TOGETHER = 64


class LearnedDetector(Detector):
    """What SAFE-MLP and SAFE-LSTM share: a network over hidden states, and its state on disk."""

    needs = frozenset({'features'})
    layers: int
    network_: nn.Module

    def build(self, dim: int) -> nn.Module:
        """Make the untrained network for ``dim`` features with PyTorch's current random state."""
        raise AssertionError('each learned detector builds its network')

    def score(self, rollout: Rollout) -> np.ndarray:
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        scores: list[np.ndarray] = []
        for start in range(0, len(rollouts), _SCORED_TOGETHER):
            batch = rollouts[start : start + _SCORED_TOGETHER]
            flat = torch.from_numpy(np.concatenate([self._checked_features(r) for r in batch]))
            lengths = torch.tensor([len(r) for r in batch])
            with torch.inference_mode():
                padded = self.network_(flat, lengths).numpy()
            scores += [row[: len(r)].copy() for row, r in zip(padded, batch, strict=True)]
        return scores

    def state(self) -> dict[str, np.ndarray]:
        self._require_fitted()
        return {name: p.detach().numpy().copy() for name, p in self.network_.state_dict().items()}

    def load_state(self, state: dict[str, np.ndarray], dim: int) -> None:
        if self.layers > len(state):
            raise DetectorError(
                f'{self.name}: {self.layers} layers cannot have {len(state)} arrays'
            )
        # Without memory and random numbers, until the arrays are known to be the right ones.
        with torch.device('meta'):
            network = self.build(dim)
        expected = {name: tuple(p.shape) for name, p in network.state_dict().items()}
        found = {name: tuple(a.shape) for name, a in state.items()}
        if expected != found:
            wrong = sorted(
                k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)
            )
            raise DetectorError(
                f'{self.name}: array {wrong[0]!r} should have shape '
                f'{expected.get(wrong[0], "(absent)")}, found {found.get(wrong[0], "(absent)")}'
            )
        for name, array in state.items():
            if array.dtype != np.float32:
                raise DetectorError(
                    f'{self.name}: array {name!r} should be float32, found {array.dtype}'
                )
        network.to_empty(device='cpu')
        network.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        self.set_network(network, dim)

    def set_network(self, network: nn.Module, dim: int) -> None:
        """Adopt a trained network."""
        self.network_ = network.eval().requires_grad_(False)
        self.dim_ = dim


class SafeMlp(LearnedDetector):
    """SAFE-MLP: each step judged alone by a small MLP, the scores accumulated over time.

    The paper sums the scores; the sum grows with the length of a task, so scores of different tasks
    cannot be compared (methods.md D39b). The default here is the running mean.

    Parameters
    ----------
    hidden, layers : int
        Width and number of linear layers (1 is linear).
    activation : {'sigmoid', 'relu', 'none'}
        Final activation.
    accumulate : {'mean', 'sum', 'none'}
        Running mean, cumulative sum (the paper's), or the plain p_t.
    threshold : float or None
        With a number, failures are pushed up to it and no further (``relu(threshold - S_t)``).
    epochs, batch_size, optimizer, learning_rate, weight_decay, schedule_every, schedule_gamma,
    warmup, max_grad_norm, lambda_fail, lambda_success, lambda_reg, time_weighting,
    one_loss_per_rollout, init_weight_scale, seed
        Training, see :mod:`safe_training.fitting.learned`; they do not change how a step is scored.
    """

    name = 'safe_mlp'

    def __init__(
        self,
        *,
        hidden: int = 256,
        layers: int = 2,
        activation: Activation = 'sigmoid',
        accumulate: Accumulate = 'mean',
        threshold: float | None = None,
        epochs: int = 300,
        batch_size: int = 512,
        optimizer: str = 'adam',
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        schedule_every: int = 300,
        schedule_gamma: float = 1.0,
        warmup: int = 0,
        max_grad_norm: float | None = None,
        lambda_fail: float = 1.0,
        lambda_success: float = 1.0,
        lambda_reg: float = 1e-2,
        time_weighting: bool = False,
        one_loss_per_rollout: bool = False,
        init_weight_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.layers = layers
        self.activation = activation
        self.accumulate = accumulate
        self.threshold = threshold
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule_every = schedule_every
        self.schedule_gamma = schedule_gamma
        self.warmup = warmup
        self.max_grad_norm = max_grad_norm
        self.lambda_fail = lambda_fail
        self.lambda_success = lambda_success
        self.lambda_reg = lambda_reg
        self.time_weighting = time_weighting
        self.one_loss_per_rollout = one_loss_per_rollout
        self.init_weight_scale = init_weight_scale
        self.seed = seed

    def build(self, dim: int) -> MlpNetwork:
        check_accumulate(self.name, self.accumulate)
        check_choice(self.name, 'activation', self.activation, tuple(ACTIVATIONS))
        if self.hidden < 1 or self.layers < 1:
            raise DetectorError(
                f'{self.name}: hidden and layers must be at least 1, '
                f'found {self.hidden} and {self.layers}'
            )
        return MlpNetwork(dim, self.hidden, self.layers, self.activation, self.accumulate)

    def stream(self) -> Stream:
        self._require_fitted()
        assert isinstance(self.network_, MlpNetwork)
        return _MlpStream(self.network_, self.dim_)


class _MlpStream(Stream):
    def __init__(self, network: MlpNetwork, dim: int) -> None:
        linear = [module for module in network.layers if isinstance(module, nn.Linear)]
        self._layers = [(layer.weight, layer.bias) for layer in linear]
        self._activation = ACTIVATIONS[network.activation]
        self._accumulator = Accumulator(network.accumulate)
        self._dim = dim

    @torch.inference_mode()
    def step(self, step: PolicyStep) -> float:
        x = torch.from_numpy(checked_vector(step, self._dim, SafeMlp.name))
        last = len(self._layers) - 1
        for i, (weight, bias) in enumerate(self._layers):
            x = torch.addmv(bias, weight, x)
            if i < last:
                x = x.relu_()
        return self._accumulator.add(self._activation(x).item())


class SafeLstm(LearnedDetector):
    """SAFE-LSTM: an LSTM reads the hidden states so far and gives the probability of failure.

    Parameters
    ----------
    hidden, layers : int
        Width and number of LSTM layers.
    history : int
        -1 for the whole episode so far; n >= 1 for an own run over the n steps before the current
        one (which is then not among them, as published).
    accumulate : {'none', 'sum', 'mean'}
        'sum' and 'mean' accumulate p_t over time with a stopped gradient and train with the hinge
        loss.
    dropout : float
        Before the linear head, in training only.
    hard_negative, hard_negative_margin, hard_negative_beta
        Weight, margin and sharpness of the hard-negative loss; beta <= 0 takes the true maximum.
    epochs, batch_size, optimizer, learning_rate, weight_decay, schedule_every, schedule_gamma,
    warmup, max_grad_norm, lambda_fail, lambda_success, lambda_reg, time_weighting,
    one_loss_per_rollout, init_weight_scale, seed
        Training, see :mod:`safe_training.fitting.learned`; they do not change how a step is scored.
    """

    name = 'safe_lstm'

    def __init__(
        self,
        *,
        hidden: int = 256,
        layers: int = 1,
        history: int = -1,
        accumulate: Accumulate = 'none',
        dropout: float = 0.0,
        hard_negative: float = 0.0,
        hard_negative_margin: float = 0.1,
        hard_negative_beta: float = 50.0,
        epochs: int = 300,
        batch_size: int = 512,
        optimizer: str = 'adam',
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-2,
        schedule_every: int = 300,
        schedule_gamma: float = 1.0,
        warmup: int = 0,
        max_grad_norm: float | None = None,
        lambda_fail: float = 1.0,
        lambda_success: float = 1.0,
        lambda_reg: float = 1e-2,
        time_weighting: bool = False,
        one_loss_per_rollout: bool = False,
        init_weight_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.layers = layers
        self.history = history
        self.accumulate = accumulate
        self.dropout = dropout
        self.hard_negative = hard_negative
        self.hard_negative_margin = hard_negative_margin
        self.hard_negative_beta = hard_negative_beta
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule_every = schedule_every
        self.schedule_gamma = schedule_gamma
        self.warmup = warmup
        self.max_grad_norm = max_grad_norm
        self.lambda_fail = lambda_fail
        self.lambda_success = lambda_success
        self.lambda_reg = lambda_reg
        self.time_weighting = time_weighting
        self.one_loss_per_rollout = one_loss_per_rollout
        self.init_weight_scale = init_weight_scale
        self.seed = seed

    @property
    def gives_probability(self) -> bool:
        # Cross-entropy of every step against the outcome is what a probability is trained with.
        return self.accumulate == 'none'

    def build(self, dim: int) -> LstmNetwork:
        check_accumulate(self.name, self.accumulate)
        if self.hidden < 1 or self.layers < 1:
            raise DetectorError(
                f'{self.name}: hidden and layers must be at least 1, '
                f'found {self.hidden} and {self.layers}'
            )
        if self.history == 0 or self.history < -1:
            raise DetectorError(
                f'{self.name}: history must be -1 (all) or at least 1, found {self.history}'
            )
        if not 0 <= self.dropout < 1:
            raise DetectorError(f'{self.name}: dropout must lie in [0, 1), found {self.dropout}')
        return LstmNetwork(
            dim, self.hidden, self.layers, self.history, self.dropout, self.accumulate
        )

    def stream(self) -> Stream:
        self._require_fitted()
        assert isinstance(self.network_, LstmNetwork)
        if self.history < 0:
            return _LstmStream(self.network_, self.dim_)
        return _LstmWindowStream(self.network_, self.dim_)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


class _LstmStream(Stream):
    """Full history in constant time: one matrix-vector product a layer, on preallocated memory."""

    def __init__(self, network: LstmNetwork, dim: int) -> None:
        lstm, self._dim, hidden = network.lstm, dim, network.lstm.hidden_size
        self._hidden = hidden
        self._layers: list[tuple[Any, ...]] = []
        for k in range(lstm.num_layers):
            w_ih, w_hh, b_ih, b_hh = lstm_weights(lstm, k)
            cell = torch.zeros(hidden)
            state = torch.zeros(hidden)
            gates = torch.empty(4 * hidden)
            self._layers.append((w_ih, w_hh, b_ih + b_hh, state, cell, gates))
        self._head = network.head.weight[0]
        self._head_bias = float(network.head.bias)
        self._accumulator = Accumulator(network.accumulate)

    @torch.inference_mode()
    def step(self, step: PolicyStep) -> float:
        x = torch.from_numpy(checked_vector(step, self._dim, SafeLstm.name))
        h = self._hidden
        for w_ih, w_hh, bias, state, cell, gates in self._layers:
            torch.addmv(bias, w_ih, x, out=gates)
            gates.addmv_(w_hh, state)
            gates[: 2 * h].sigmoid_()
            gates[2 * h : 3 * h].tanh_()
            gates[3 * h :].sigmoid_()
            cell.mul_(gates[h : 2 * h]).addcmul_(gates[:h], gates[2 * h : 3 * h])
            torch.tanh(cell, out=state)
            state.mul_(gates[3 * h :])
            x = state
        return self._accumulator.add(_sigmoid(torch.dot(self._head, x).item() + self._head_bias))


class _LstmWindowStream(Stream):
    """An own LSTM run over the last ``history`` steps before each step."""

    def __init__(self, network: LstmNetwork, dim: int) -> None:
        self._network = network
        self._dim = dim
        self._window = torch.zeros(network.history, dim)
        self._accumulator = Accumulator(network.accumulate)

    @torch.inference_mode()
    def step(self, step: PolicyStep) -> float:
        x = torch.from_numpy(checked_vector(step, self._dim, SafeLstm.name))
        last = self._network.lstm(self._window[None])[0][0, -1]
        p = torch.sigmoid(self._network.head(last)).item()
        self._window = torch.roll(self._window, -1, 0)
        self._window[-1] = x
        return self._accumulator.add(p)
