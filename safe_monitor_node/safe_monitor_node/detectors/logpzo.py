# SPDX-License-Identifier: Apache-2.0
"""LogpZO: the likelihood of a hidden state under a flow-matching model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from safe_monitor_node.detectors.density import (
    DensityDetector,
    Inputs,
    as_sequence,
    real_entries,
    sequence_rows,
)


@dataclass(kw_only=True, eq=False)
class LogpZO(DensityDetector):
    """Distance of a hidden state from noise after one step of a learned flow.

    Two U-Nets are trained by flow matching. The first U-Net learns the velocity from hidden states
    of successes to noise. The second U-Net learns the velocity from hidden states of failures to
    noise. The first velocity moves a hidden state that is similar to successes to approximately
    standard normal noise. It moves other hidden states to other values. Score = (|x + v_success(x,
    0)|^2 - |x + v_failure(x, 0)|^2) / D; the paper does not divide by the number of features D.

    Parameters
    ----------
    in_dim : int
        Width of the rows into which the features are divided: the channels of the U-Net.
    chunk : int
        Number of steps of each outcome that are drawn from a batch of rollouts for training (not an
        action chunk); 0 uses all steps.
    reference_compatible : bool
        Compute loss and score as in the published code: include the zero padding of the features,
        and do not divide the score by the number of features.
    """

    name = 'logpzo'

    in_dim: int = 20
    batch_size: int = 24
    chunk: int = 0

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_integer('in_dim')
        self._check_integer('chunk', least=0)

    def layout(self, dim: int) -> tuple[tuple[str, ...], int, int]:
        """Return the names of the networks, their channels and the width of their condition."""
        return self.trained_outcomes(), self.in_dim, 0

    def rows(self, dim: int) -> int:
        """Return the length of the sequence that the networks read."""
        return sequence_rows(dim, self.in_dim, self.multiple)

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """Return features (n, D) as the network's input (n, rows, in_dim)."""
        return as_sequence(features, self.in_dim, self.multiple)

    def counted(self, dim: int) -> torch.Tensor:
        """Return the mask (rows, in_dim) of the entries that count in loss and score."""
        real = real_entries(dim, self.in_dim, self.multiple)
        return torch.ones_like(real) if self.reference_compatible else real

    def nonconformity(self, outcome: str, inputs: Inputs) -> torch.Tensor:
        """Return the squared distance from 0 after one step of the flow, as float64 (n,)."""
        (features,) = inputs
        x = self.sequence(features)
        latent = x + self.scoring_[outcome](x, x.new_zeros(len(x)))
        squares = (latent.double() * self.counted(self.dim_)).square().sum(dim=(1, 2))
        # For noise, the mean square is about 1 for any number of features.
        return squares if self.reference_compatible else squares / self.dim_
