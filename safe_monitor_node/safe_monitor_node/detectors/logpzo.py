# SPDX-License-Identifier: Apache-2.0
"""The likelihood of an observation under a flow-matching model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError, StepError
from safe_monitor_node.detectors.density import DensityDetector, as_sequence, real_entries
from vla_feature_bridge.rollout import Rollout


def executed_chunks(
    rollout: Rollout, detector: str, expected: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the executed chunks ``(T, horizon, action_dim)`` as finite float32.

    Raises
    ------
    StepError
        There are none, of another shape than ``expected``, or with NaN or infinity.
    """
    if rollout.actions is None or 0 in rollout.actions.shape:
        raise StepError(
            f'rollout {rollout.episode_id!r}: detector {detector} needs action chunks, it has none'
        )
    chunks = np.array(rollout.actions[:, 0], dtype=np.float32)
    if expected is not None and chunks.shape[1:] != expected:
        raise StepError(
            f'rollout {rollout.episode_id!r}: detector {detector} expects chunks of shape '
            f'{expected} (horizon, action_dim), found {chunks.shape[1:]}'
        )
    if not np.isfinite(chunks).all():
        bad = int(np.flatnonzero(~np.isfinite(chunks).all(axis=(1, 2)))[0])
        raise StepError(
            f'rollout {rollout.episode_id!r}: the actions of step {bad} hold NaN or infinity'
        )
    return chunks


class LogpZO(DensityDetector):
    """How far out of a standard normal a hidden state lands, its flow followed for one step.

    A U-Net learns by flow matching the velocity from successful hidden states to noise, another
    that from failed ones. From a familiar state the first velocity leads to about noise, from a
    strange one elsewhere. Score = (|x + v_success(x, 0)|^2 - |x + v_failure(x, 0)|^2) / D; the
    paper does not divide by the number of features.

    Parameters
    ----------
    in_dim : int
        Width of the rows that the features are cut into, the U-Net's channels.
    down_dims : list of int or None
        Channels of the U-Net's levels; None for the published 256, 512, 1024 (about 60 million
        parameters a network: fit on a GPU).
    kernel_size, groups, time_dim : int
        Convolution kernel, groups of the normalisation, width of the embedded time.
    success_only : bool
        Only the successes' flow.
    accumulate : {'none', 'sum', 'mean'}
        The step alone (as published), cumulative sum, or running mean over the episode so far.
    epochs, batch_size, chunk, learning_rate, lambda_reg, seed
        Training, see :mod:`safe_training.fitting.density`; batches are of rollouts, of which ``chunk``
        steps of each outcome are drawn (0 takes all).
    reference_compatible : bool
        As published, count the zeros that pad the features to the U-Net's shape in loss and score,
        and do not divide the score by their number.
    """

    name = 'logpzo'
    needs = frozenset({'features'})

    def __init__(
        self,
        *,
        in_dim: int = 20,
        down_dims: Sequence[int] | None = None,
        kernel_size: int = 5,
        groups: int = 8,
        time_dim: int = 128,
        success_only: bool = False,
        accumulate: Accumulate = 'none',
        epochs: int = 200,
        batch_size: int = 24,
        chunk: int = 0,
        learning_rate: float = 1e-4,
        lambda_reg: float = 0.0,
        reference_compatible: bool = False,
        seed: int = 0,
    ) -> None:
        self.in_dim = in_dim
        self.down_dims = down_dims
        self.kernel_size = kernel_size
        self.groups = groups
        self.time_dim = time_dim
        self.success_only = success_only
        self.accumulate = accumulate
        self.epochs = epochs
        self.batch_size = batch_size
        self.chunk = chunk
        self.learning_rate = learning_rate
        self.lambda_reg = lambda_reg
        self.reference_compatible = reference_compatible
        self.seed = seed

    def check_params(self) -> None:
        super().check_params()
        if not isinstance(self.in_dim, int) or self.in_dim < 1:
            raise DetectorError(f'{self.name}: in_dim must be at least 1, found {self.in_dim!r}')
        if not isinstance(self.chunk, int) or self.chunk < 0:
            raise DetectorError(f'{self.name}: chunk must be at least 0, found {self.chunk!r}')

    def layout(self, dim: int) -> tuple[tuple[str, ...], int, int]:
        return self.trained_outcomes(), self.in_dim, 0

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """Return features ``(n, D)`` as the network's input ``(n, rows, in_dim)``."""
        return as_sequence(features, self.in_dim, self.multiple)

    def counted(self, dim: int) -> torch.Tensor:
        """Return which entries ``(rows, in_dim)`` count in loss and score."""
        real = real_entries(dim, self.in_dim, self.multiple)
        return torch.ones_like(real) if self.reference_compatible else real

    def strangeness(self, outcome: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (features,) = inputs
        x = self.sequence(features)
        latent = x + self.networks_[outcome](x, x.new_zeros(len(x)))
        squares = (latent.double() * self.counted(self.dim_)).square().sum(dim=(1, 2))
        # The mean square is about 1 for noise, whatever the number of features.
        return squares if self.reference_compatible else squares / self.dim_
