# SPDX-License-Identifier: Apache-2.0
"""Live scores of SAFE-MLP and SAFE-LSTM: one step, or the next steps of many episodes together.

One step is a matrix-vector product. Its time is the time to read the weights from memory. For the
steps of many robots, one matrix product reads the weights only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import Accumulator
from safe_monitor_node.detectors.base import Stream, checked_vector
from safe_monitor_node.detectors.networks import ACTIVATIONS, LstmNetwork, MlpNetwork, lstm_weights
from safe_monitor_node.detectors.together import Answer, in_one_batch, one_by_one
from vla_feature_bridge.step import PolicyStep


class MlpStream(Stream):
    """Scores each step separately; keeps only the accumulated score.

    Parameters
    ----------
    network : MlpNetwork
    dim : int
        Number of features.
    name : str
        Name of the detector, for errors.
    """

    def __init__(self, network: MlpNetwork, dim: int, name: str) -> None:
        linear = [module for module in network.layers if isinstance(module, nn.Linear)]
        self.layers = [(layer.weight, layer.bias) for layer in linear]
        self.activation = ACTIVATIONS[network.activation]
        self.accumulator = Accumulator(network.accumulate)
        self._dim, self._name = dim, name

    def vector(self, step: PolicyStep) -> np.ndarray:
        """Return the checked features of a step."""
        return checked_vector(step, self._dim, self._name)

    @torch.inference_mode()
    def step(self, step: PolicyStep) -> float:
        """Return the failure score after the next step of the episode."""
        x = torch.from_numpy(self.vector(step))
        last = len(self.layers) - 1
        for i, (weight, bias) in enumerate(self.layers):
            x = torch.addmv(bias, weight, x)
            if i < last:
                x = x.relu_()
        return self.accumulator.add(self.activation(x).item())


class _Overflow(Exception):
    """A sum of a batch is not finite. The streams have not changed.

    With finite features, the overflow depends on the order of the sum, which differs in a batch.
    """


def _require_finite(values: torch.Tensor) -> None:
    # If the sum is finite, all values are finite. A sum of finite numbers can also overflow.
    if not math.isfinite(values.sum().item()) and not torch.isfinite(values).all():
        raise _Overflow


def _in_batch_or_alone(
    steps: Sequence[PolicyStep],
    streams: Sequence[Stream],
    vector_of: Callable[[PolicyStep], np.ndarray],
    score: Callable[[np.ndarray, list[int]], list[float]],
) -> list[Answer]:
    try:
        return in_one_batch(steps, vector_of, score)
    except _Overflow:
        return one_by_one(streams, steps)


@torch.inference_mode()
def step_mlps(streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
    """Score the next step of streams of one SAFE-MLP; see `Detector.step_many`."""
    mlps = [stream for stream in streams if isinstance(stream, MlpStream)]
    if len(mlps) != len(streams) or len(streams) < 2:
        return one_by_one(streams, steps)

    def score(vectors: np.ndarray, positions: list[int]) -> list[float]:
        x = torch.from_numpy(vectors)
        last = len(mlps[0].layers) - 1
        for i, (weight, bias) in enumerate(mlps[0].layers):
            x = torch.addmm(bias, x, weight.t())
            _require_finite(x)
            if i < last:
                x = x.relu_()
        values = mlps[0].activation(x)[:, 0].tolist()
        return [
            mlps[position].accumulator.add(value)
            for position, value in zip(positions, values, strict=True)
        ]

    return _in_batch_or_alone(steps, streams, mlps[0].vector, score)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


class StepWeights:
    """The weights of a SAFE-LSTM, as every stream of it uses them.

    Parameters
    ----------
    network : LstmNetwork
        Without gradients.

    Attributes
    ----------
    hidden : int
    layers : list of tuple of Tensor
        Input weights, recurrent weights and the sum of the biases of each layer.
    head : Tensor, shape (hidden,)
    head_bias : float
    accumulate : Accumulate
        How the scores of the steps are accumulated.
    """

    def __init__(self, network: LstmNetwork) -> None:
        lstm = network.lstm
        self.accumulate = network.accumulate
        self.hidden = lstm.hidden_size
        self.layers: list[tuple[torch.Tensor, ...]] = []
        for k in range(lstm.num_layers):
            w_ih, w_hh, b_ih, b_hh = lstm_weights(lstm, k)
            self.layers.append((w_ih, w_hh, b_ih + b_hh))
        self.head = network.head.weight[0]
        self.head_bias = float(network.head.bias)


class LstmStream(Stream):
    """Uses the full history in constant time per step.

    One matrix-vector product per layer, in preallocated memory.

    Parameters
    ----------
    weights : StepWeights
    dim : int
        Number of features.
    name : str
        Name of the detector, for errors.
    """

    def __init__(self, weights: StepWeights, dim: int, name: str) -> None:
        self.weights, self._dim, self._name = weights, dim, name
        hidden = weights.hidden
        self.memory: list[tuple[torch.Tensor, torch.Tensor]] = []
        """State and cell of each layer."""
        for _ in weights.layers:
            state, cell = torch.zeros(2, hidden)
            self.memory.append((state, cell))
        self._gates = gates = torch.empty(4 * hidden)
        # PyTorch's gate order: input, forget, cell, output.
        self._input, self._forget, self._candidate, self._output = gates.split(hidden)
        self._input_and_forget = gates[: 2 * hidden]
        self._accumulator = Accumulator(weights.accumulate)

    def vector(self, step: PolicyStep) -> np.ndarray:
        """Return the checked features of a step."""
        return checked_vector(step, self._dim, self._name)

    def score_of(self, logit: float) -> float:
        """Return the score after a step whose head gives this value."""
        return self._accumulator.add(_sigmoid(logit + self.weights.head_bias))

    def step(self, step: PolicyStep) -> float:
        """Return the failure score after the next step of the episode."""
        x, gates = torch.from_numpy(self.vector(step)), self._gates
        for (w_ih, w_hh, bias), (state, cell) in zip(self.weights.layers, self.memory, strict=True):
            torch.addmv(bias, w_ih, x, out=gates)
            gates.addmv_(w_hh, state)
            self._input_and_forget.sigmoid_()
            self._candidate.tanh_()
            self._output.sigmoid_()
            cell.mul_(self._forget).addcmul_(self._input, self._candidate)
            torch.tanh(cell, out=state)
            state.mul_(self._output)
            x = state
        return self.score_of(torch.dot(self.weights.head, x).item())


@torch.inference_mode()
def step_lstms(streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
    """Score the next step of streams of one SAFE-LSTM; see `Detector.step_many`."""
    lstms = [stream for stream in streams if isinstance(stream, LstmStream)]
    if len(lstms) != len(streams) or len(streams) < 2:
        return one_by_one(streams, steps)

    def score(vectors: np.ndarray, positions: list[int]) -> list[float]:
        chosen = [lstms[position] for position in positions]
        first, x = chosen[0], torch.from_numpy(vectors)
        made = []
        for k, (w_ih, w_hh, bias) in enumerate(first.weights.layers):
            states = torch.stack([stream.memory[k][0] for stream in chosen])
            cells = torch.stack([stream.memory[k][1] for stream in chosen])
            gates = torch.addmm(bias, x, w_ih.t()).addmm_(states, w_hh.t())
            _require_finite(gates)
            # PyTorch's gate order: input, forget, cell, output.
            i, f, g, o = gates.chunk(4, dim=1)
            cells = torch.sigmoid(f) * cells + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(cells)
            made.append((x, cells))
        logits = torch.mv(x, first.weights.head).tolist()
        # All products are computed: from here on, no error can leave only some of the streams
        # updated.
        for k, (states, cells) in enumerate(made):
            for row, stream in enumerate(chosen):
                stream.memory[k][0].copy_(states[row])
                stream.memory[k][1].copy_(cells[row])
        return [stream.score_of(logit) for stream, logit in zip(chosen, logits, strict=True)]

    return _in_batch_or_alone(steps, streams, lstms[0].vector, score)


class LstmWindowStream(Stream):
    """Runs the LSTM again at each step, over the previous ``history`` steps.

    Parameters
    ----------
    network : LstmNetwork
    dim : int
        Number of features.
    name : str
        Name of the detector, for errors.
    """

    def __init__(self, network: LstmNetwork, dim: int, name: str) -> None:
        self._network = network
        self._dim, self._name = dim, name
        self._window = torch.zeros(network.history, dim)
        self._accumulator = Accumulator(network.accumulate)

    @torch.inference_mode()
    def step(self, step: PolicyStep) -> float:
        """Return the failure score after the next step of the episode."""
        x = torch.from_numpy(checked_vector(step, self._dim, self._name))
        last = self._network.lstm(self._window[None])[0][0, -1]
        p = torch.sigmoid(self._network.head(last)).item()
        self._window = torch.roll(self._window, -1, 0)
        self._window[-1] = x
        return self._accumulator.add(p)
