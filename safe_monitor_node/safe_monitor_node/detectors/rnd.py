# SPDX-License-Identifier: Apache-2.0
"""Random network distillation (RND)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.base import ArraySpec, DetectorError, StepError, checked_chunk
from safe_monitor_node.detectors.density import (
    EPS,
    DensityDetector,
    Inputs,
    as_sequence,
    sequence_rows,
)
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep


def executed_chunks(
    rollout: Rollout, detector: str, expected: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the executed chunks as finite float32, shape (T, horizon, action_dim).

    Raises
    ------
    StepError
        The rollout has no chunks, or the chunks do not have the shape ``expected`` or are not
        finite.
    """
    where = f'rollout {rollout.episode_id!r}'
    if rollout.actions is None or 0 in rollout.actions.shape:
        raise StepError(
            where=where,
            expected=f'action chunks for detector {detector}',
            found='none',
            advice='record the action chunks, or choose another detector',
        )
    chunks = np.array(rollout.actions[:, 0], dtype=np.float32)
    if expected is not None and chunks.shape[1:] != expected:
        raise StepError(
            where=where,
            expected=f'chunks of shape {expected} (horizon, action_dim) for detector {detector}',
            found=f'shape {chunks.shape[1:]}',
        )
    if not np.isfinite(chunks).all():
        bad = int(np.flatnonzero(~np.isfinite(chunks).all(axis=(1, 2)))[0])
        raise StepError(
            where=where,
            expected='finite executed action chunks',
            found=f'NaN or infinity at step {bad}',
        )
    return chunks


@dataclass(kw_only=True, eq=False)
class Rnd(DensityDetector):
    """Random network distillation.

    The score is the error of trained networks that imitate a fixed random network.

    A fixed random U-Net reads the executed action chunk, conditioned on the hidden state. Two other
    U-Nets learn to imitate it: one on steps of successes, one on steps of failures. The error of an
    imitator is large if a step differs from its training steps. Score = error of the imitator of
    successes - error of the imitator of failures.

    Parameters
    ----------
    reference_compatible : bool
        Include the zero padding of a chunk in the error, as in the published code.
    """

    name = 'rnd'
    needs = frozenset({'features', 'actions'})

    action_shape_: tuple[int, int] = field(init=False, repr=False)

    def layout(self, dim: int) -> tuple[tuple[str, ...], int, int]:
        """Return the names of the networks, their channels and the width of their condition."""
        return ('target', *self.trained_outcomes()), self.action_shape_[1], dim

    def rows(self, dim: int) -> int:
        """Return the length of the sequence that the networks read."""
        horizon, width = self.action_shape_
        return sequence_rows(horizon * width, width, self.multiple)

    def errors(self, target: nn.Module, predictor: nn.Module, inputs: Inputs) -> torch.Tensor:
        """Return the distance between the outputs of two networks (n,), averaged over the chunk.

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

    def nonconformity(self, outcome: str, inputs: Inputs) -> torch.Tensor:
        """Return the error of the imitator of one outcome as float64 (n,)."""
        return self.errors(self.scoring_['target'], self.scoring_[outcome], inputs).double()

    def rollout_inputs(self, rollout: Rollout) -> Inputs:
        """Return the features and executed chunks of a rollout, checked."""
        (features,) = super().rollout_inputs(rollout)
        return features, torch.from_numpy(executed_chunks(rollout, self.name, self.action_shape_))

    def step_inputs(self, step: PolicyStep) -> Inputs:
        """Return the features and the executed chunk of a step, checked."""
        (features,) = super().step_inputs(step)
        chunk = checked_chunk(step, self.name)
        if chunk.shape != self.action_shape_:
            raise StepError(
                where=f'step {step.step}',
                expected=f'a chunk of shape {self.action_shape_} (horizon, action_dim) for '
                f'detector {self.name}',
                found=f'shape {chunk.shape}',
            )
        return features, torch.from_numpy(chunk.astype(np.float32))[None]

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters of all networks, and the shape of a chunk."""
        return super().state() | {'action_shape': np.array(self.action_shape_, dtype=np.int64)}

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`."""
        self.check_params()
        shape = state.get('action_shape')
        if shape is None or shape.shape != (2,) or shape.dtype != np.int64 or (shape < 1).any():
            raise DetectorError(
                where=f"detector {self.name}: array 'action_shape'",
                expected='two positive int64 numbers (horizon, action_dim)',
                found='no such array' if shape is None else f'{shape.dtype} {shape.tolist()}',
                advice='fit the detector again',
            )
        self.action_shape_ = (int(shape[0]), int(shape[1]))
        specs = self.network_specs(dim) | {'action_shape': ArraySpec((2,), np.int64)}
        arrays = self.checked_state(state, specs)
        del arrays['action_shape']
        self._load_networks(arrays, dim)
