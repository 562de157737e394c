# SPDX-License-Identifier: Apache-2.0
"""Random network distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError, StepError, checked_chunk
from safe_monitor_node.detectors.density import EPS, DensityDetector, as_sequence
from safe_monitor_node.detectors.logpzo import executed_chunks
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep


class Rnd(DensityDetector):
    """Random network distillation: how badly networks imitate a random one at this step.

    A fixed random U-Net reads the executed action chunk under the condition of the hidden state.
    Two more learn to imitate it, one on successful steps, one on failed ones; an imitator is bad
    where it never learned. Score = error of the successes' imitator - error of the failures'.

    Parameters
    ----------
    down_dims : list of int or None
        Channels of the U-Net's levels; None for the published 256, 512, 1024 (about 64 million
        parameters a network: fit on a GPU).
    kernel_size, groups, time_dim : int
        Convolution kernel, groups of the normalisation, width of the embedded time.
    success_only : bool
        Only the successes' imitator.
    accumulate : {'none', 'sum', 'mean'}
        The step alone (as published), cumulative sum, or running mean over the episode so far.
    epochs, batch_size, learning_rate, lambda_reg, seed
        Training, see :mod:`safe_training.fitting.density`; batches are of rollouts.
    reference_compatible : bool
        Count the zeros that pad a chunk to the U-Net's length among the errors, as published.
    """

    name = 'rnd'
    needs = frozenset({'features', 'actions'})
    action_shape_: tuple[int, int]

    def __init__(
        self,
        *,
        down_dims: Sequence[int] | None = None,
        kernel_size: int = 5,
        groups: int = 8,
        time_dim: int = 128,
        success_only: bool = False,
        accumulate: Accumulate = 'none',
        epochs: int = 200,
        batch_size: int = 64,
        learning_rate: float = 1e-4,
        lambda_reg: float = 0.0,
        reference_compatible: bool = False,
        seed: int = 0,
    ) -> None:
        self.down_dims = down_dims
        self.kernel_size = kernel_size
        self.groups = groups
        self.time_dim = time_dim
        self.success_only = success_only
        self.accumulate = accumulate
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.lambda_reg = lambda_reg
        self.reference_compatible = reference_compatible
        self.seed = seed

    def layout(self, dim: int) -> tuple[tuple[str, ...], int, int]:
        return ('target', *self.trained_outcomes()), self.action_shape_[1], dim

    def errors(
        self, target: nn.Module, predictor: nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Return the distance between two networks' outputs ``(n,)``, averaged over the chunk.

        ``inputs`` are features (n, D) and executed chunks (n, horizon, action_dim).
        """
        features, chunks = inputs
        horizon, width = chunks.shape[1:]
        x = as_sequence(chunks.flatten(1), width, self.multiple)
        time = x.new_zeros(len(x))
        with torch.no_grad():
            wanted = target(x, time, features)
        difference = predictor(x, time, features) - wanted + EPS
        distances = torch.linalg.vector_norm(difference, dim=-1)
        rows = distances.shape[1] if self.reference_compatible else horizon
        return distances[:, :rows].mean(dim=1)

    def strangeness(self, outcome: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.errors(self.networks_['target'], self.networks_[outcome], inputs).double()

    def rollout_inputs(self, rollout: Rollout) -> tuple[torch.Tensor, ...]:
        (features,) = super().rollout_inputs(rollout)
        return features, torch.from_numpy(executed_chunks(rollout, self.name, self.action_shape_))

    def step_inputs(self, step: PolicyStep) -> tuple[torch.Tensor, ...]:
        (features,) = super().step_inputs(step)
        chunk = checked_chunk(step, self.name)
        if chunk.shape != self.action_shape_:
            raise StepError(
                f'step {step.step}: detector {self.name} was fitted on chunks of shape '
                f'{self.action_shape_} (horizon, action_dim), found {chunk.shape}'
            )
        return features, torch.from_numpy(chunk.astype(np.float32))[None]

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {'action_shape': np.array(self.action_shape_, dtype=np.int64)}

    def load_state(self, state: dict[str, np.ndarray], dim: int) -> None:
        shape = state.get('action_shape')
        if shape is None or shape.shape != (2,) or shape.dtype != np.int64 or (shape < 1).any():
            raise DetectorError(
                f"{self.name}: array 'action_shape' should hold two positive int64, found {shape!r}"
            )
        self.action_shape_ = (int(shape[0]), int(shape[1]))
        self.load_networks({k: a for k, a in state.items() if k != 'action_shape'}, dim)
