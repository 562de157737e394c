# SPDX-License-Identifier: Apache-2.0
"""Scalars computed only from the action chunks of a step.

They serve policies that do not expose hidden states.

All signals in the suite are computed by this module. Therefore live signals and signals of
recordings are equal. The last action dimension is the gripper, as in every policy that the readers
know. All signals are computed in float64 from the executed sample (sample 0).
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
    """No signal can be computed from action chunks of this shape."""


def action_signals(
    previous: np.ndarray | None, chunk: np.ndarray, exec_horizon: int
) -> dict[str, float]:
    """Return the signals of a step, from its chunk and the previous chunk.

    Parameters
    ----------
    previous : ndarray, shape (horizon, action_dim), or None
        The executed sample of the previous inference; None at the first step.
    chunk : ndarray, shape (horizon, action_dim)
        The executed sample of this inference.
    exec_horizon : int
        Number of actions of ``previous`` that were executed before this inference.

    Returns
    -------
    dict of str to float
        * ``action_norm``: Euclidean norm of the chunk.
        * ``chunk_mse``: mean squared difference between the part of the previous chunk that was not
          executed and the part of this chunk that replaces it; 0 at the first step and without
          overlap.
        * ``action_jerk``: root mean square of the second difference of the motion without gripper:
          the actions to execute next, after the last two executed actions.
        * ``direction_reversals``: number of consecutive actions of this motion that point against
          each other (negative scalar product).
        * ``gripper_oscillation``: number of times that the gripper command changes its direction
          in the same actions.

    Raises
    ------
    SignalError
        A chunk has another shape.
    """
    if chunk.ndim != 2 or 0 in chunk.shape:
        raise SignalError(
            expected='an action chunk of shape (horizon, action_dim) that is not empty',
            found=f'shape {chunk.shape}',
        )
    if previous is not None and previous.shape[-1] != chunk.shape[-1]:
        raise SignalError(
            expected=f'an action_dim of {previous.shape[-1]} as in the previous action chunk',
            found=str(chunk.shape[-1]),
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
    """Live signals of one episode, from one step to the next; keeps only the previous chunk.

    Parameters
    ----------
    exec_horizon : int
        Number of actions of a chunk that are executed before the next inference.
    """

    def __init__(self, exec_horizon: int) -> None:
        self.exec_horizon = exec_horizon
        self._previous: np.ndarray | None = None

    def step(self, actions: np.ndarray) -> dict[str, float]:
        """Return the signals of the next step.

        Parameters
        ----------
        actions : ndarray, shape (samples, horizon, action_dim)
            Sample 0 is the executed one.

        Returns
        -------
        dict of str to float
            As :func:`action_signals`.

        Raises
        ------
        SignalError
            The array has another shape.
        """
        if actions.ndim != 3 or actions.shape[0] == 0:
            raise SignalError(
                expected='action chunks of shape (samples, horizon, action_dim), with samples >= 1',
                found=f'shape {actions.shape}',
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
        The values of :class:`SignalStream`, as float32.
    """
    stream = SignalStream(exec_horizon)
    rows = [stream.step(chunk) for chunk in actions]
    return {name: np.array([row[name] for row in rows], dtype=np.float32) for name in SIGNAL_NAMES}
