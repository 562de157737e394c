# SPDX-License-Identifier: Apache-2.0
"""Scalars computed only from the action chunks of a step.

They serve policies that do not expose hidden states.

All signals in the suite are computed by this module. Therefore live signals and signals of
recordings are equal. The last action dimension is the gripper, as in every policy that the readers
know. All signals are computed in float64 from the executed sample (sample 0).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

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
    """No signal can be computed from these action chunks or numbers of executed actions."""


def action_signals(
    previous: np.ndarray | None,
    chunk: np.ndarray,
    exec_horizon: int,
    executed: int | None = None,
) -> dict[str, float]:
    """Return the signals of a step, from its chunk and the previous chunk.

    Parameters
    ----------
    previous : ndarray, shape (horizon, action_dim), or None
        The executed sample of the previous inference; None at the first step.
    chunk : ndarray, shape (horizon, action_dim)
        The executed sample of this inference.
    exec_horizon : int
        Number of actions of ``chunk`` that will be executed before the next inference.
    executed : int, optional
        Number of actions of ``previous`` that were executed before this inference; the default is
        ``exec_horizon``. See :class:`SignalStream` for real-time chunking (RTC).

    Returns
    -------
    dict of str to float
        * ``action_norm``: Euclidean norm of the chunk.
        * ``chunk_mse``: mean squared difference between the part of the previous chunk that was not
          executed and the part of this chunk that replaces it; 0 at the first step and without
          overlap.
        * ``action_jerk``: root mean square of the second difference of the motion without gripper:
          the actions to execute next, after the last two executed actions.
        * ``direction_reversals``: number of pairs of consecutive actions of this motion in opposite
        directions (negative scalar product).
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
    executed = exec_horizon if executed is None else executed
    chunk = np.asarray(chunk, dtype=np.float64)
    motion = chunk[:exec_horizon]
    mse = 0.0
    if previous is not None:
        previous = np.asarray(previous, dtype=np.float64)
        left = previous[executed:]
        overlap = min(len(left), len(chunk))
        if overlap:
            mse = float(((left[:overlap] - chunk[:overlap]) ** 2).mean())
        motion = np.concatenate([previous[max(0, executed - 2) : executed], motion])
    # Slices and methods instead of np.diff, np.mean and np.sum: a live step meets cold caches, and
    # these functions run much Python code.
    arm = motion[:, :-1] if motion.shape[1] > 1 else motion
    velocity = arm[1:] - arm[:-1]
    jerk = velocity[1:] - velocity[:-1]
    turns = (arm[1:] * arm[:-1]).sum(axis=1)
    gripper = np.sign(motion[1:, -1] - motion[:-1, -1])
    gripper = gripper[gripper != 0]
    flat = chunk.ravel(order='K')
    return {
        'action_norm': math.sqrt(flat.dot(flat)),
        'chunk_mse': mse,
        'action_jerk': math.sqrt((jerk**2).mean()) if jerk.size else 0.0,
        'direction_reversals': float(np.count_nonzero(turns < 0)),
        'gripper_oscillation': float(np.count_nonzero(gripper[1:] != gripper[:-1])),
    }


class SignalStream:
    """Computes the live signals of one episode step by step; keeps only the previous chunk.

    Under real-time chunking (RTC), the next inference runs while actions of the chunk are still
    being executed. The number of executed actions is then not known when a step is computed. It is
    known at the next step: give it to :meth:`step` as ``executed``.

    Parameters
    ----------
    exec_horizon : int
        Number of actions of a chunk that are executed before the next inference; the nominal
        number under RTC.
    """

    def __init__(self, exec_horizon: int) -> None:
        self.exec_horizon = exec_horizon
        self._previous: np.ndarray | None = None

    def __copy__(self) -> SignalStream:
        twin = SignalStream(self.exec_horizon)
        twin._previous = self._previous
        return twin

    def step(self, actions: np.ndarray, executed: int | None = None) -> dict[str, float]:
        """Return the signals of the next step.

        Parameters
        ----------
        actions : ndarray, shape (samples, horizon, action_dim)
            Sample 0 is the executed one.
        executed : int, optional
            Number of actions of the previous chunk that were executed before this inference: the
            number of control cycles between the observations of the two inferences. The default is
            ``exec_horizon``. It has no effect at the first step.

        Returns
        -------
        dict of str to float
            As :func:`action_signals`.

        Raises
        ------
        SignalError
            The array has another shape, or ``executed`` is not an integer from 0 to the length of
            the previous chunk. The stream does not change.
        """
        if actions.ndim != 3 or actions.shape[0] == 0:
            raise SignalError(
                expected='action chunks of shape (samples, horizon, action_dim), with samples >= 1',
                found=f'shape {actions.shape}',
            )
        signals = action_signals(
            self._previous, actions[0], self.exec_horizon, self._checked(executed)
        )
        self._previous = np.array(actions[0])
        return signals

    def _checked(self, executed: int | None) -> int | None:
        if executed is None or self._previous is None:
            return None
        try:
            number = operator.index(executed)
        except TypeError:
            number = -1
        if not 0 <= number <= len(self._previous):
            raise SignalError(
                expected=f"'executed' as an integer from 0 to {len(self._previous)} (the number of "
                'actions of the previous chunk)',
                found=repr(executed),
            )
        return number


def rollout_signals(
    actions: np.ndarray, exec_horizon: int, executed: Sequence[int] | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the signals of a whole rollout.

    Parameters
    ----------
    actions : ndarray, shape (T, samples, horizon, action_dim)
    exec_horizon : int
        As in :class:`SignalStream`.
    executed : sequence of int, length T, optional
        ``executed`` of :meth:`SignalStream.step` at each step; the first entry has no effect.

    Returns
    -------
    dict of str to ndarray of float32, shape (T,)
        The values of :class:`SignalStream`, as float32.

    Raises
    ------
    SignalError
        An array or a number does not fit, or ``executed`` has another length than ``actions``.
    """
    numbers = [None] * len(actions) if executed is None else list(executed)
    if len(numbers) != len(actions):
        raise SignalError(
            expected=f'executed with one number for each of {len(actions)} steps',
            found=f'{len(numbers)} numbers',
        )
    stream = SignalStream(exec_horizon)
    rows = [stream.step(chunk, number) for chunk, number in zip(actions, numbers, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.float32) for name in SIGNAL_NAMES}
