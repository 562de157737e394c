# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a training part, stacked and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.base import DetectorError, require_rollouts
from vla_feature_bridge.rollout import Rollout


@dataclass(frozen=True)
class StackedRollouts:
    """The steps of all rollouts, concatenated; nothing is padded.

    Attributes
    ----------
    flat : ndarray of float32, shape (N, D)
        Features of all steps.
    lengths : ndarray of int64, shape (B,)
        Steps of each rollout.
    failed : ndarray of bool, shape (B,)
        True for failures.
    """

    flat: np.ndarray
    lengths: np.ndarray
    failed: np.ndarray


def stack_rollouts(rollouts: Sequence[Rollout]) -> StackedRollouts:
    """Return labelled rollouts, read into memory as float32.

    Raises
    ------
    DetectorError
        There are no rollouts, or a rollout has no features, has raw features, has a different width
        than the first rollout, or contains NaN or infinity.
    RolloutError
        A rollout has no label.
    """
    require_rollouts(rollouts)
    width = rollouts[0].features.shape[-1]
    for rollout in rollouts:
        if rollout.features.shape[-1] == 0:
            raise DetectorError(
                f'rollout {rollout.episode_id!r}: expected features, found only signals; choose '
                'a detector that uses signals, or choose another feature array with --feature'
            )
        if rollout.features.ndim != 2 or rollout.features.shape[1] != width:
            raise DetectorError(
                f'rollout {rollout.episode_id!r}: expected pooled features '
                f'(T, {width}) as in the first rollout, found {rollout.features.shape}; '
                'convert all rollouts with the same pooling'
            )
        if not np.isfinite(np.asarray(rollout.features, dtype=np.float32)).all():
            raise DetectorError(
                f'rollout {rollout.episode_id!r}: the features hold NaN or infinity; '
                'leave the rollout out'
            )
    return StackedRollouts(
        np.concatenate([np.asarray(r.features, dtype=np.float32) for r in rollouts]),
        np.array([len(r) for r in rollouts]),
        np.array([r.failed for r in rollouts]),
    )


def require_both_outcomes(rollouts: Sequence[Rollout], detector: str) -> None:
    """Raise :class:`DetectorError` if the rollouts do not contain both successes and failures."""
    failures = sum(r.failed for r in rollouts)
    if failures in (0, len(rollouts)):
        found = 'failures' if failures else 'successes'
        raise DetectorError(
            f'{detector} learns from both outcomes, but all {len(rollouts)} training rollouts '
            f'are {found}; add rollouts of the other outcome, increase the training share '
            '(--train-ratio), or choose a different split'
        )


def require_successes(rollouts: Sequence[Rollout], detector: str) -> None:
    """Raise :class:`DetectorError` unless there are successes to learn from."""
    if all(r.failed for r in rollouts):
        raise DetectorError(
            f'{detector} learns from successes, but all {len(rollouts)} training rollouts are '
            'failures; add successes, or choose other training tasks (a different split)'
        )
