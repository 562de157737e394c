# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a training part, stacked and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from safe_monitor_node.detectors import DetectorError, SafeLstm, SafeMlp
from safe_monitor_node.detectors.networks import pad_steps
from safe_training.fitting.losses import ClassWeights, class_weights
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TrainingData:
    """Rollouts as tensors: the valid steps of all of them, concatenated; nothing is padded.

    Attributes
    ----------
    flat : Tensor of float32, shape (N, D)
    lengths : Tensor of int64, shape (B,)
    failed : Tensor of float32, shape (B,)
        1 for failures.
    """

    flat: torch.Tensor
    lengths: torch.Tensor
    failed: torch.Tensor

    def take(self, rollouts: torch.Tensor) -> TrainingData:
        """Return the rollouts with these indices, in their order."""
        parts = torch.split(self.flat, self.lengths.tolist())
        return TrainingData(
            torch.cat([parts[i] for i in rollouts.tolist()]),
            self.lengths[rollouts],
            self.failed[rollouts],
        )

    def valid(self) -> torch.Tensor:
        """Return the mask (B, T) of real steps."""
        return pad_steps(torch.ones(len(self.flat)), self.lengths)

    def weights(self, detector: SafeMlp | SafeLstm) -> ClassWeights:
        """Return the class weights of these rollouts."""
        n_fail = int(self.failed.sum())
        return class_weights(
            n_fail, len(self.failed) - n_fail, detector.lambda_fail, detector.lambda_success
        )


def stack_rollouts(rollouts: Sequence[Rollout]) -> TrainingData:
    """Read labelled rollouts into memory as float32.

    Raises
    ------
    DetectorError
        No rollouts, features that are absent, raw, of different widths or not finite, or
        unlabelled rollouts.
    """
    if not rollouts:
        raise DetectorError('there are no rollouts to fit on; is the split or the set empty?')
    width = rollouts[0].features.shape[-1]
    for rollout in rollouts:
        if rollout.features.shape[-1] == 0:
            raise DetectorError(
                f'rollout {rollout.episode_id!r}: carries no features (signals only); '
                'choose a detector that works on signals, or another feature with --feature'
            )
        if rollout.features.ndim != 2 or rollout.features.shape[1] != width:
            raise DetectorError(
                f'rollout {rollout.episode_id!r}: expected pooled features '
                f'(T, {width}) as in the first rollout, found {rollout.features.shape}; '
                'convert with one pooling for all'
            )
        if not np.isfinite(np.asarray(rollout.features, dtype=np.float32)).all():
            raise DetectorError(
                f'rollout {rollout.episode_id!r}: the features hold NaN or infinity'
            )
    flat = np.concatenate([np.asarray(r.features, dtype=np.float32) for r in rollouts])
    return TrainingData(
        torch.from_numpy(flat),
        torch.tensor([len(r) for r in rollouts]),
        torch.tensor([float(r.failed) for r in rollouts]),
    )


def require_both_outcomes(rollouts: Sequence[Rollout], detector: str) -> None:
    """Raise :class:`DetectorError` unless there are successes and failures to learn from."""
    failures = sum(r.failed for r in rollouts)
    if failures in (0, len(rollouts)):
        found = 'failures' if failures else 'successes'
        raise DetectorError(
            f'{detector} learns from both outcomes, but all {len(rollouts)} training rollouts are '
            f'{found}; add rollouts of the other outcome, '
            'give more of them to training (--train-ratio), or another --seed'
        )
