# SPDX-License-Identifier: Apache-2.0
"""The networks of the learned detectors, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import Accumulate

Activation = Literal['sigmoid', 'relu', 'none']

ACTIVATIONS = {'sigmoid': torch.sigmoid, 'relu': torch.relu, 'none': lambda x: x}


def pad_steps(flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the concatenated steps (N, ...) of B rollouts, zero-padded: (B, longest, ...)."""
    return nn.utils.rnn.pad_sequence(list(torch.split(flat, lengths.tolist())), batch_first=True)


def time_major(lengths: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return an order of the concatenated steps of rollouts by time, long rollouts first.

    Parameters
    ----------
    lengths : Tensor of int64, shape (B,)

    Returns
    -------
    index : Tensor of int64, shape (N,)
        Position of each step of the new order in the concatenated rollouts.
    batch_sizes : list of int
        Number of rollouts that have not ended at each time step; they are the first rollouts of the
        previous time step.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    times = torch.arange(int(lengths.max()))[:, None]
    alive = times < lengths[order][None]
    starts = torch.cumsum(lengths, 0) - lengths
    return (starts[order][None] + times)[alive], alive.sum(dim=1).tolist()


def stop_gradient_cumsum(values: torch.Tensor) -> torch.Tensor:
    """Return the cumulative sum over time, with the derivative d S_t / d p_k = [k == t].

    ``values`` has shape (B, T, ...). SAFE-LSTM uses this sum, because its recurrence already
    contains the past steps.
    """
    total = torch.cumsum(values, dim=1)
    return values + (total - values).detach()


def accumulated_steps(
    p: torch.Tensor,
    accumulate: Accumulate,
    cumulative: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return the scores (B, T) of padded p_t; ``cumulative`` sums them over time."""
    if accumulate == 'none':
        return p
    total = cumulative(p)
    if accumulate == 'sum':
        return total
    return total / torch.arange(1, total.shape[1] + 1, dtype=total.dtype, device=total.device)


class MlpNetwork(nn.Module):
    """MLP with ``layers`` linear layers D -> hidden -> ... -> 1 and ReLU between the layers.

    It returns one score per step.
    """

    def __init__(
        self, dim: int, hidden: int, layers: int, activation: Activation, accumulate: Accumulate
    ) -> None:
        super().__init__()
        widths = [dim] + [hidden] * (layers - 1) + [1]
        modules: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            modules += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.layers = nn.Sequential(*modules[:-1])
        self.activation = activation
        self.accumulate = accumulate

    def per_step(self, flat: torch.Tensor) -> torch.Tensor:
        """Return p_t (N,) of steps (N, D), before any accumulation."""
        return ACTIVATIONS[self.activation](self.layers(flat).squeeze(-1))

    def forward(self, flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return scores (B, T) of the concatenated steps (N, D) of rollouts with lengths (B,)."""
        return self.accumulated(pad_steps(self.per_step(flat), lengths))

    def accumulated(self, p: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, T) of padded p_t."""
        return accumulated_steps(p, self.accumulate, partial(torch.cumsum, dim=1))


def lstm_weights(lstm: nn.LSTM, layer: int) -> tuple[torch.Tensor, ...]:
    """Return input weights, recurrent weights and both biases of one layer."""
    names = ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
    return tuple(getattr(lstm, f'{name}_l{layer}') for name in names)


class LstmNetwork(nn.Module):
    """LSTM D -> hidden, then a linear head and a sigmoid; one score per step."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        layers: int,
        history: int,
        dropout: float,
        accumulate: Accumulate,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, layers, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, 1)
        self.history = history
        self.accumulate = accumulate

    def forward(self, flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return scores (B, T) of the concatenated steps (N, D) of rollouts with lengths (B,)."""
        if self.history >= 0:
            p = self._probability(self._windowed(flat, lengths))
        else:
            p = pad_steps(self._full(flat, lengths), lengths)
        return self.accumulated(p)

    def accumulated(self, p: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, T) of padded p_t."""
        return accumulated_steps(p, self.accumulate, stop_gradient_cumsum)

    def _probability(self, states: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.dropout(states)).squeeze(-1))

    def _full(self, flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # Time-major order of the valid steps only, long rollouts first: one product for all inputs,
        # then a recurrence over a shrinking batch. torch.nn.LSTM takes 2.5 times as long on a CPU
        # for this.
        index, batch_sizes = time_major(lengths)
        states = flat[index]
        for k in range(self.lstm.num_layers):
            states = self._recur(states, batch_sizes, k)
        back = torch.empty_like(index)
        back[index] = torch.arange(len(index))
        return self._probability(states)[back]

    def _recur(self, inputs: torch.Tensor, batch_sizes: list[int], layer: int) -> torch.Tensor:
        w_ih, w_hh, b_ih, b_hh = lstm_weights(self.lstm, layer)
        projected = torch.addmm(b_ih + b_hh, inputs, w_ih.t())
        state = cell = projected.new_zeros(batch_sizes[0], self.lstm.hidden_size)
        states = []
        for gates, size in zip(projected.split(batch_sizes), batch_sizes, strict=True):
            # PyTorch's gate order: input, forget, cell, output.
            i, f, g, o = torch.addmm(gates, state[:size], w_hh.t()).chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell[:size] + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            states.append(state)
        return torch.cat(states)

    def _windowed(self, flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # For each t, run the LSTM again over the previous `history` steps. Steps before the start
        # are zeros. The current step is not included (as in the published code).
        padded = pad_steps(flat, lengths)
        batch, steps, dim = padded.shape
        before = nn.functional.pad(padded, (0, 0, self.history, 0))[:, : steps + self.history - 1]
        windows = before.unfold(1, self.history, 1).transpose(2, 3).reshape(-1, self.history, dim)
        last = self.lstm(windows)[0][:, -1]
        return last.reshape(batch, steps, -1)
