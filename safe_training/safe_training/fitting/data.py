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
    read = []
    for rollout in rollouts:
        if rollout.features.shape[-1] == 0:
            raise DetectorError(
                where=f'rollout {rollout.episode_id!r}',
                expected='features',
                found='only signals',
                advice='choose a detector that uses signals, or read another feature array '
                '(--feature)',
            )
        if rollout.features.ndim != 2 or rollout.features.shape[1] != width:
            raise DetectorError(
                where=f'rollout {rollout.episode_id!r}',
                expected=f'pooled features of shape (T, {width}), as in the first rollout',
                found=f'shape {rollout.features.shape}',
                advice='convert all rollouts with the same pooling',
            )
        read.append(np.asarray(rollout.features, dtype=np.float32))
        finite = np.isfinite(read[-1]).all(axis=1)
        if not finite.all():
            raise DetectorError(
                where=f'rollout {rollout.episode_id!r}, step {int(np.argmin(finite))}',
                expected='finite features',
                found='NaN or infinity',
                advice='correct the recording, or leave this rollout out',
            )
    return StackedRollouts(
        np.concatenate(read),
        np.array([len(r) for r in rollouts]),
        np.array([r.failed for r in rollouts]),
    )


def require_both_outcomes(rollouts: Sequence[Rollout], detector: str) -> None:
    """Raise :class:`DetectorError` if the rollouts do not contain both successes and failures."""
    failures = sum(r.failed for r in rollouts)
    if failures in (0, len(rollouts)):
        raise DetectorError(
            where=detector,
            expected='training rollouts of both outcomes',
            found=f'{len(rollouts) - failures} successes and {failures} failures',
            advice=f'add {"successes" if failures else "failures"}, use more rollouts for '
            'training (--train-ratio), or choose another split',
        )


def require_successes(rollouts: Sequence[Rollout], detector: str) -> None:
    """Raise :class:`DetectorError` if all rollouts are failures."""
    if all(r.failed for r in rollouts):
        raise DetectorError(
            where=detector,
            expected='training rollouts that are successes',
            found=f'0 successes and {len(rollouts)} failures',
            advice='add successes, or choose another split',
        )
