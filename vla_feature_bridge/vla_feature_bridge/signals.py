# SPDX-License-Identifier: Apache-2.0
"""Scalars of one step from the emitted action chunks alone: what even a closed policy allows.

This is the only definition; the bridge computes them live and the readers for dumps that carry
actions but no signals of their own. The last action dimension is the gripper, as in every policy we
read. All work in float64 on the executed sample (sample 0).
"""

from __future__ import annotations

import numpy as np

from vla_feature_bridge.errors import SafeError

SIGNAL_NAMES = (
    'action_norm',
    'chunk_mse',
    'action_jerk',
    'direction_reversals',
    'gripper_oscillation',
)


class SignalError(SafeError):
    """An action chunk has a shape from which no signal can be derived."""


def action_signals(
    previous: np.ndarray | None, chunk: np.ndarray, exec_horizon: int
) -> dict[str, float]:
    """Derive this step's signals from its chunk and the one before.

    Parameters
    ----------
    previous : ndarray, shape (horizon, action_dim), or None
        The executed sample of the previous inference; None at the first step.
    chunk : ndarray, shape (horizon, action_dim)
        The executed sample of this inference.
    exec_horizon : int
        Actions of ``previous`` that were executed before this inference.

    Returns
    -------
    dict of str to float
        * ``action_norm``: Euclidean norm of the chunk.
        * ``chunk_mse``: mean squared difference between the part of the previous chunk that was not
          executed and the part of this chunk that replaces it; 0 at the first step and when nothing
          overlaps.
        * ``action_jerk``: root mean square of the second difference of the executed motion (the
          actions about to be executed, preceded by up to two that were just executed).
        * ``direction_reversals``: how many of those consecutive motions point against each other
          (negative scalar product of the non-gripper dimensions).
        * ``gripper_oscillation``: how often the gripper command changes its direction in them.
    """
    if chunk.ndim != 2 or 0 in chunk.shape:
        raise SignalError(
            f'expected an action chunk (horizon, action_dim), found shape {chunk.shape}'
        )
    if previous is not None and previous.shape[-1] != chunk.shape[-1]:
        raise SignalError(
            f'consecutive chunks have different action widths: {previous.shape[-1]} and '
            f'{chunk.shape[-1]}'
        )
    chunk = np.asarray(chunk, dtype=np.float64)
    motion = chunk[:exec_horizon]
    mse = 0.0
    if previous is not None:
        previous = np.asarray(previous, dtype=np.float64)
        left = previous[exec_horizon:]
        overlap = min(len(left), len(chunk))
        if overlap:
            mse = float(np.mean((left[:overlap] - chunk[:overlap]) ** 2))
        motion = np.concatenate([previous[max(0, exec_horizon - 2) : exec_horizon], motion])
    arm = motion[:, :-1] if motion.shape[1] > 1 else motion
    jerk = np.diff(arm, n=2, axis=0)
    turns = np.sum(arm[1:] * arm[:-1], axis=1)
    gripper = np.sign(np.diff(motion[:, -1]))
    gripper = gripper[gripper != 0]
    return {
        'action_norm': float(np.linalg.norm(chunk)),
        'chunk_mse': mse,
        'action_jerk': float(np.sqrt(np.mean(jerk**2))) if jerk.size else 0.0,
        'direction_reversals': float(np.count_nonzero(turns < 0)),
        'gripper_oscillation': float(np.count_nonzero(gripper[1:] != gripper[:-1])),
    }


class SignalStream:
    """Live signals of one episode: keeps the previous chunk, nothing else."""

    def __init__(self, exec_horizon: int) -> None:
        self.exec_horizon = exec_horizon
        self._previous: np.ndarray | None = None

    def step(self, actions: np.ndarray) -> dict[str, float]:
        """Return a step's signals from its sampled chunks ``(samples, horizon, action_dim)``."""
        if actions.ndim != 3 or actions.shape[0] == 0:
            raise SignalError(
                f'expected chunks (samples, horizon, action_dim), found shape {actions.shape}'
            )
        signals = action_signals(self._previous, actions[0], self.exec_horizon)
        self._previous = np.array(actions[0])
        return signals


def rollout_signals(actions: np.ndarray, exec_horizon: int) -> dict[str, np.ndarray]:
    """Return the signals of a whole rollout.

    Parameters
    ----------
    actions : ndarray, shape (T, samples, horizon, action_dim)

    Returns
    -------
    dict of str to ndarray of float32, shape (T,)
        The values that :class:`SignalStream` gives step by step.
    """
    stream = SignalStream(exec_horizon)
    rows = [stream.step(chunk) for chunk in actions]
    return {name: np.array([row[name] for row in rows], dtype=np.float32) for name in SIGNAL_NAMES}
