# SPDX-License-Identifier: Apache-2.0
"""Makes the steps and events of a policy's episodes: checks, step numbers, signals. No ROS.

``StepPublisher`` (ROS 2) and ``StepSender`` (socket) send these steps and events. Both classes
implement :class:`StepSink`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, Protocol

import numpy as np

from vla_feature_bridge.signals import SignalStream
from vla_feature_bridge.step import NO_FEATURE, STEP_FIELDS, PolicyStep
from vla_feature_bridge.step_checks import (
    StepError,
    check_actions,
    check_features,
    check_field,
    check_positive,
    check_presence,
    check_signals,
    check_stamp,
    check_success,
    check_text,
)

#: Optional fields of a step.
_MORE_FIELDS = {f.name: f for f in STEP_FIELDS if f.kind != 'stamp' and f.name != 'actions'}


@dataclass(frozen=True)
class EpisodeEventRecord:
    """Start, end or label of an episode; the plain form of ``safe_msgs/EpisodeEvent``.

    Attributes
    ----------
    kind : str
        ``'start'``, ``'end'`` or ``'label'``.
    episode_id, task, instruction : str
        As in the message.
    success : bool or None
        The outcome; None if it is unknown.
    reason : str
        Why, for people.
    stamp : int
        Time of the event [ns].
    """

    kind: Literal['start', 'end', 'label']
    episode_id: str
    task: str = ''
    instruction: str = ''
    success: bool | None = None
    reason: str = ''
    stamp: int = 0


class StepSink(Protocol):
    """Interface of an object that sends the steps and episodes of a policy.

    After its construction, a sink never raises an error into the loop of the policy, unless it was
    made with ``strict=True``: it counts and logs wrong input, and keeps the text in ``last_error``.
    """

    last_error: str

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Begin an episode and return its id."""

    def publish(
        self, features: Any, actions: Any = None, *, stamp: Any = None, **fields: Any
    ) -> PolicyStep | None:
        """Send the next step and return it, or None if it was refused or lost."""

    def skip(self, reason: str) -> None:
        """Leave out the step of an inference, so that the reader notices the gap."""

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode."""

    def close(self) -> None:
        """Send nothing more."""


@dataclass(frozen=True)
class _Episode:
    """The running episode: its START, and the state that the next step depends on.

    ``instruction`` and ``executed`` are the instruction and the ``exec_horizon`` of the last step.
    ``has_actions`` and ``has_features`` are None before the first step.
    """

    start: EpisodeEventRecord
    signals: SignalStream
    step: int = 0
    instruction: str = ''
    executed: int = 0
    has_actions: bool | None = None
    has_features: bool | None = None


@dataclass(frozen=True)
class _State:
    """State that the next call depends on; ``dim`` is the width of the previous features."""

    episode: _Episode | None = None
    dim: int | None = None


class EpisodeSteps:
    """Checks and numbers the steps of a policy, and makes the events of its episodes.

    Arrays may be NumPy arrays or PyTorch tensors on any device, also bfloat16. Integers may be
    Python's, NumPy's or tensors. Nothing changes if a call raises an error.

    Parameters
    ----------
    feature_name : str
        Name of the features and their pooling, as ``safe_training info`` prints it for the
        rollouts that the detector was fitted on: ``'hidden_states[token=last]'``. ``'none'`` for a
        policy without features.
    exec_horizon : int
        Number of actions of a chunk that are executed before the next inference.
    policy : str
        Name of the policy.
    action_space : str
        Name of the space of the actions: ``'normalized'``, ``'robot'`` or another name; empty if
        it is unknown.
    clock : callable
        Returns the present time [ns].

    Raises
    ------
    StepError
        ``feature_name`` is empty, a name is not text, or ``exec_horizon`` is below 1.
    """

    def __init__(
        self,
        feature_name: str,
        exec_horizon: int,
        policy: str = '',
        action_space: str = '',
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        where = 'settings of the policy'
        if not isinstance(feature_name, str) or not feature_name:
            raise StepError(
                where=where,
                expected='a feature_name',
                found=repr(feature_name),
                advice='take the name that `safe_training info SET` prints, '
                f"such as 'hidden_states[token=last]', or {NO_FEATURE!r} for a policy without "
                'features',
            )
        self.feature_name = check_text(feature_name, 'feature_name', where)
        self.exec_horizon = check_positive(exec_horizon, 'exec_horizon', where)
        self.policy = check_text(policy, 'policy', where)
        self.action_space = check_text(action_space, 'action_space', where)
        self._clock = clock
        self._state = self._before = _State()

    @property
    def episode_id(self) -> str:
        """Id of the running episode; empty if no episode runs."""
        return self._state.episode.start.episode_id if self._state.episode else ''

    def start(
        self, *, task: str = '', instruction: str = '', episode_id: str = ''
    ) -> list[EpisodeEventRecord]:
        """Begin an episode.

        Parameters
        ----------
        task : str
            Name of the task, by which splits and averages group episodes.
        instruction : str
            Language instruction of the policy.
        episode_id : str
            Unique name of the episode. The default name contains the local time.

        Returns
        -------
        list of EpisodeEventRecord
            The START. If another episode still runs, its END comes first.

        Raises
        ------
        StepError
            An argument is not text.
        """
        for name, value in (('task', task), ('instruction', instruction)):
            check_text(value, name, 'start')
        name = check_text(episode_id, 'episode_id', 'start')
        event = EpisodeEventRecord(
            kind='start',
            episode_id=name or f'{datetime.now():%Y%m%d-%H%M%S}-{token_hex(3)}',
            task=task,
            instruction=instruction,
            stamp=self._clock(),
        )
        running = self._state.episode
        ended = [self._ended(running, reason='the next episode began')] if running else []
        episode = _Episode(
            event,
            SignalStream(self.exec_horizon),
            instruction=instruction,
            executed=self.exec_horizon,
        )
        self._advance(_State(episode, self._state.dim))
        return [*ended, event]

    def end(self, success: bool | None = None, reason: str = '') -> EpisodeEventRecord:
        """End the episode.

        Parameters
        ----------
        success : bool, numpy.bool, 0-d array or tensor of bool, or None
            The outcome; None if it is not known (yet).
        reason : str
            Why the episode ended, for people.

        Returns
        -------
        EpisodeEventRecord
            The END.

        Raises
        ------
        StepError
            No episode runs, ``success`` is of another type, or ``reason`` is not text.
        """
        event = self._ended(self.check_running('end'), check_success(success, 'end'), reason)
        self._advance(_State(None, self._state.dim))
        return event

    def step(
        self,
        features: Any,
        actions: Any = None,
        *,
        stamp: Any = None,
        instruction: str | None = None,
        exec_horizon: int | None = None,
        executed: int | None = None,
        **fields: Any,
    ) -> PolicyStep:
        """Return the next step of the episode.

        Parameters
        ----------
        features : array, shape (D,) pooled or (..., D) raw, a float dtype; or None
            The hidden state of this inference; finite. None for a black-box step, at every step of
            an episode.
        actions : array, shape (samples, horizon, action_dim), or None
            Sampled action chunks, sample 0 is executed; at every step of an episode or at none.
        stamp : int [ns] or builtin_interfaces/Time, optional
            Time of the observation that the policy acted on; default: the present time.
        instruction : str, optional
            Language instruction from this step on.
        exec_horizon : int, optional
            Number of actions of this chunk that will be executed before the next inference.
        executed : int, optional
            Number of actions of the previous chunk that were really executed; default: the
            previous ``exec_horizon``.
        **fields
            Other fields of :data:`vla_feature_bridge.step.STEP_FIELDS`: ``token_probability`` and
            ``token_entropy``, shape (tokens,); ``inference_time`` [s].

        Raises
        ------
        StepError
            No episode runs, an array has another shape or dtype than expected, or a value is not
            finite or does not fit a message.
        SignalError
            ``action_dim`` differs from the previous step, or ``executed`` is too large.
        """
        episode = self.check_running('publish')
        where = f'step {episode.step} of episode {episode.start.episode_id!r}'
        if unknown := sorted(set(fields) - set(_MORE_FIELDS)):
            raise StepError(
                where=where,
                expected=f'fields among {", ".join(_MORE_FIELDS)}',
                found=', '.join(unknown),
            )
        check_presence('actions', actions, episode.has_actions, where)
        horizon = (
            self.exec_horizon
            if exec_horizon is None
            else check_positive(exec_horizon, 'exec_horizon', where)
        )
        step = PolicyStep(
            features=self._checked_features(features, episode, where),
            feature_name=NO_FEATURE if features is None else self.feature_name,
            stamp=self._clock() if stamp is None else check_stamp(stamp, where),
            episode_id=episode.start.episode_id,
            step=episode.step,
            policy=self.policy,
            instruction=episode.instruction
            if instruction is None
            else check_text(instruction, 'instruction', where),
            actions=None if actions is None else check_actions(actions, horizon, where),
            exec_horizon=horizon,
            action_space=self.action_space,
            **{'inference_time': math.nan}
            | {
                name: check_field(_MORE_FIELDS[name], value, where)
                for name, value in fields.items()
                if value is not None
            },
        )
        signals = copy.copy(episode.signals)
        if step.actions is not None:
            signals.exec_horizon = horizon
            done = episode.executed if executed is None else executed
            step.signals = check_signals(signals, step.actions, done, where)
        self._advance_past(step, episode, signals, features is not None)
        return step

    def check_running(self, method: str) -> _Episode:
        """Return the running episode.

        Raises
        ------
        StepError
            No episode runs. The error contains ``method`` as the name of the called method.
        """
        if self._state.episode is None:
            raise StepError(
                where=method,
                expected='a running episode',
                found='none',
                advice='call start() first',
            )
        return self._state.episode

    def undo(self) -> None:
        """Undo the last :meth:`start`, :meth:`step` or :meth:`end`, because it was not sent."""
        self._state = self._before

    def skip(self) -> None:
        """Count an inference whose step is not sent, so that the reader notices the gap.

        The next signals are those of a first step. Without an episode, this call has no effect.
        """
        if episode := self._state.episode:
            skipped = replace(
                episode, step=episode.step + 1, signals=SignalStream(self.exec_horizon)
            )
            self._advance(replace(self._state, episode=skipped))

    def _advance(self, state: _State) -> None:
        self._before, self._state = self._state, state

    def _advance_past(
        self, step: PolicyStep, episode: _Episode, signals: SignalStream, has_features: bool
    ) -> None:
        after = replace(
            episode,
            signals=signals,
            step=step.step + 1,
            instruction=step.instruction,
            executed=step.exec_horizon,
            has_actions=step.actions is not None,
            has_features=has_features,
        )
        self._advance(_State(after, step.features.shape[-1] if has_features else self._state.dim))

    def _ended(
        self, episode: _Episode, success: bool | None = None, reason: str = ''
    ) -> EpisodeEventRecord:
        return replace(
            episode.start,
            kind='end',
            success=success,
            reason=check_text(reason, 'reason', 'end'),
            stamp=self._clock(),
        )

    def _checked_features(self, features: Any, episode: _Episode, where: str) -> np.ndarray:
        check_presence('features', features, episode.has_features, where)
        if features is None:
            return np.zeros(0, np.float32)
        if self.feature_name == NO_FEATURE:
            raise StepError(
                where=where,
                expected=f'no features, because feature_name is {NO_FEATURE!r}',
                found='features',
                advice='give the name of the features as feature_name',
            )
        return check_features(features, self._state.dim, where)
