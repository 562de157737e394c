# SPDX-License-Identifier: Apache-2.0
"""Publishes the steps and the episodes of a policy from the process of the policy.

::

    publisher = StepPublisher(node, 'hidden_states[token=last]', exec_horizon=8, policy='openvla')
    publisher.start(task='pick_up_the_mug', instruction='pick up the mug')
    while not done:
        ...
        publisher.publish(hidden_state, chunks)
    publisher.end(success=True)
"""

from __future__ import annotations

import copy
import math
import operator
from datetime import datetime
from secrets import token_hex
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.messages import (
    NANOSECONDS,
    step_to_message,
    time_from_message,
)
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS
from vla_feature_bridge.signals import SignalStream
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep, StepField
from vla_feature_bridge.tensors import DTYPES, FLOATS, as_array, first_not_finite

_OUTCOMES = {
    None: EpisodeEvent.OUTCOME_UNKNOWN,
    True: EpisodeEvent.OUTCOME_SUCCESS,
    False: EpisodeEvent.OUTCOME_FAILURE,
}
_MAX_EXEC_HORIZON = 2**32 - 1
#: Range of a stamp [ns]: seconds are an int32 in a message.
_STAMPS = range(-(2**31) * NANOSECONDS, 2**31 * NANOSECONDS)
_MAX_NUMBER = float(np.finfo(np.float32).max)
#: Further fields that a policy may give with a step.
_MORE_FIELDS = {f.name: f for f in STEP_FIELDS if f.kind != 'stamp' and f.name != 'actions'}


class PublisherError(SafeError):
    """A step or an event is wrong, and is not published."""


class StepPublisher:
    """Publishes one message for each inference, and an event when an episode starts and ends.

    Steps are numbered from 0 in each episode, and the action signals are computed. Arrays may be
    NumPy arrays or PyTorch tensors on any device, also bfloat16. Publishing copies the arrays once
    and never waits for a subscriber.

    Parameters
    ----------
    node : rclpy.node.Node
        Publishes on its ``vla/policy_step`` and ``vla/episode``.
    feature_name : str
        Name of the features and their pooling, as ``safe_training info`` prints it for the
        rollouts that the detector was fitted on: ``'hidden_states[token=last]'``.
    exec_horizon : int
        Number of actions of a chunk that are executed before the next inference.
    policy : str
        Name of the policy.
    step_qos, episode_qos : rclpy.qos.QoSProfile
        Quality of service of the two topics; ``qos_overrides`` parameters of the node change it.

    Raises
    ------
    PublisherError
        ``feature_name`` is empty, ``exec_horizon`` is no positive integer, or ``policy`` is no
        text.
    """

    def __init__(
        self,
        node: Node,
        feature_name: str,
        exec_horizon: int,
        policy: str = '',
        step_qos: Any = STEP_QOS,
        episode_qos: Any = EPISODE_QOS,
    ) -> None:
        if not isinstance(feature_name, str) or not feature_name:
            raise PublisherError(
                where='StepPublisher',
                expected='a feature_name',
                found=repr(feature_name),
                advice='take the name that `safe_training info SET` prints, '
                "such as 'hidden_states[token=last]'",
            )
        self._exec_horizon = _positive(exec_horizon, 'exec_horizon')
        self._feature_name = feature_name
        self._policy = _text(policy, 'policy', 'StepPublisher')
        self._clock = node.get_clock()
        overriding = QoSOverridingOptions.with_default_policies()
        self._steps = node.create_publisher(
            PolicyStepMessage, 'vla/policy_step', step_qos, qos_overriding_options=overriding
        )
        self._events = node.create_publisher(
            EpisodeEvent, 'vla/episode', episode_qos, qos_overriding_options=overriding
        )
        self._dim: int | None = None
        self._episode_id = ''

    @property
    def episode_id(self) -> str:
        """Id of the episode that runs; empty if none does."""
        return self._episode_id

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Begin an episode and publish its START. If another episode still runs, it is ended first.

        Parameters
        ----------
        task : str
            Name of the task, by which splits and averages group episodes.
        instruction : str
            Language instruction of the policy.
        episode_id : str
            Unique name of the episode; without it, one is made from the local time.

        Returns
        -------
        str
            The ``episode_id``.

        Raises
        ------
        PublisherError
            An argument is no text. Nothing is published, and a running episode goes on.
        """
        where = 'StepPublisher.start'
        event = EpisodeEvent(
            kind=EpisodeEvent.KIND_START,
            task=_text(task, 'task', where),
            instruction=_text(instruction, 'instruction', where),
            episode_id=_text(episode_id, 'episode_id', where),
        )
        if self._episode_id:
            self.end(reason='the next episode began')
        if not event.episode_id:
            event.episode_id = f'{datetime.now():%Y%m%d-%H%M%S}-{token_hex(3)}'
        self._publish_event(event)
        self._episode_id, self._task, self._instruction = event.episode_id, task, instruction
        self._step = 0
        self._signals = SignalStream(self._exec_horizon)
        self._has_actions: bool | None = None
        return self._episode_id

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode and publish its END.

        Parameters
        ----------
        success : bool, numpy.bool or None
            The outcome; None if it is not known (yet).
        reason : str
            Why the episode ended, for people.

        Raises
        ------
        PublisherError
            No episode runs, ``success`` is of another type, or ``reason`` is no text. Nothing is
            published, and the episode goes on.
        """
        self._check_running('end')
        # Every text that is not empty is true, also 'failure'. A wrong outcome would move adaptive
        # thresholds and become a training label.
        if not (success is None or isinstance(success, (bool, np.bool_))):
            raise PublisherError(
                where='StepPublisher.end',
                expected='success as True, False or None',
                found=repr(success),
            )
        event = EpisodeEvent(
            kind=EpisodeEvent.KIND_END,
            episode_id=self._episode_id,
            task=self._task,
            instruction=self._instruction,
            outcome=_OUTCOMES[None if success is None else bool(success)],
            reason=_text(reason, 'reason', 'StepPublisher.end'),
        )
        self._publish_event(event)
        self._episode_id = ''

    def publish(
        self, features: Any, actions: Any = None, *, stamp: int | Time | None = None, **fields: Any
    ) -> PolicyStep:
        """Publish the next step of the episode.

        Parameters
        ----------
        features : array, shape (D,) pooled or (..., D) raw, a float dtype
            The hidden state of this inference; finite.
        actions : array, shape (samples, horizon, action_dim), or None
            Sampled action chunks, sample 0 is executed; at every step of an episode or at none.
        stamp : int [ns] or builtin_interfaces/Time, optional
            Time of the observation that the policy acted on; the node's present time without it.
        **fields
            Other fields of :data:`vla_feature_bridge.step.STEP_FIELDS`: ``token_probability`` and
            ``token_entropy``, shape (tokens,); ``inference_time`` [s].

        Returns
        -------
        PolicyStep
            The step as it was published.

        Raises
        ------
        PublisherError
            No episode runs, an array has another shape or dtype than expected, or a value is not
            finite or does not fit the message. Nothing is published, and the next step gets the
            same number and the same signals.
        SignalError
            ``action_dim`` differs from the previous step; nothing is published.
        """
        self._check_running('publish')
        where = f'step {self._step} of episode {self._episode_id!r}'
        if unknown := sorted(set(fields) - set(_MORE_FIELDS)):
            raise PublisherError(
                where=where,
                expected=f'fields among {", ".join(_MORE_FIELDS)}',
                found=', '.join(unknown),
            )
        step = PolicyStep(
            features=self._checked_features(features, where),
            feature_name=self._feature_name,
            stamp=self._stamp(stamp, where),
            episode_id=self._episode_id,
            step=self._step,
            policy=self._policy,
            instruction=self._instruction,
            actions=self._checked_actions(actions, where),
            exec_horizon=self._exec_horizon,
            **{'inference_time': math.nan}
            | {
                name: _checked_field(_MORE_FIELDS[name], value, where)
                for name, value in fields.items()
                if value is not None
            },
        )
        # The signals go on from this step only if it is published.
        signals = copy.copy(self._signals)
        if step.actions is not None:
            step.signals = signals.step(step.actions)
        self._steps.publish(step_to_message(step))
        self._signals = signals
        self._dim, self._has_actions = step.features.shape[-1], step.actions is not None
        self._step += 1
        return step

    def _check_running(self, method: str) -> None:
        if not self._episode_id:
            raise PublisherError(
                where=f'StepPublisher.{method}',
                expected='a running episode',
                found='none',
                advice='call start() first',
            )

    def _stamp(self, stamp: int | Time | None, where: str) -> int:
        if stamp is None:
            return int(self._clock.now().nanoseconds)
        if isinstance(stamp, Time):
            return time_from_message(stamp)
        try:
            number = operator.index(stamp)
        except TypeError:
            number = _STAMPS.stop
        if number not in _STAMPS:
            raise PublisherError(
                where=where,
                expected='stamp as an integer of nanoseconds whose seconds fit 32 bits, or as a '
                'builtin_interfaces/Time',
                found=repr(stamp),
            )
        return number

    def _checked_features(self, features: Any, where: str) -> np.ndarray:
        array = as_array(features)
        if array.dtype.name not in FLOATS or array.ndim == 0 or array.size == 0:
            raise PublisherError(
                where=where,
                expected=f'features of shape (D,) or (..., D) and dtype {", ".join(FLOATS)}',
                found=f'shape {array.shape} of {array.dtype}',
            )
        if self._dim not in (None, array.shape[-1]):
            raise PublisherError(
                where=where,
                expected=f'features of width {self._dim} as before',
                found=f'width {array.shape[-1]}',
                advice='use one StepPublisher for each kind of features',
            )
        _check_finite('features', array, where)
        return array

    def _checked_actions(self, actions: Any, where: str) -> np.ndarray | None:
        if self._has_actions not in (None, actions is not None):
            raise PublisherError(
                where=where,
                expected='actions at every step of an episode or at none',
                found='a step without actions' if actions is None else 'a step with actions',
            )
        if actions is None:
            return None
        array = as_array(actions)
        if array.ndim == 2:
            raise PublisherError(
                where=where,
                expected='actions of shape (samples, horizon, action_dim)',
                found=f'shape {array.shape}',
                advice='add the axis of samples: actions[None]',
            )
        if array.ndim != 3 or array.size == 0 or array.dtype.name not in DTYPES:
            raise PublisherError(
                where=where,
                expected=f'actions of shape (samples, horizon, action_dim) and dtype '
                f'{", ".join(DTYPES)}',
                found=f'shape {array.shape} of {array.dtype}',
            )
        if array.shape[1] < self._exec_horizon:
            raise PublisherError(
                where=where,
                expected=f'chunks of at least exec_horizon = {self._exec_horizon} actions',
                found=f'shape {array.shape}',
            )
        _check_finite('actions', array, where)
        return array

    def _publish_event(self, event: EpisodeEvent) -> None:
        event.header.stamp = self._clock.now().to_msg()
        self._events.publish(event)


def _text(value: str, name: str, where: str) -> str:
    """Return a text that a message can hold."""
    try:
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise PublisherError(
        where=where, expected=f'{name} as a text (str, valid Unicode)', found=repr(value)
    )


def _positive(number: int, name: str) -> int:
    try:
        value = operator.index(number)
    except TypeError:
        value = 0
    if not 1 <= value <= _MAX_EXEC_HORIZON:
        raise PublisherError(
            where='StepPublisher',
            expected=f'{name} from 1 to {_MAX_EXEC_HORIZON}',
            found=repr(number),
        )
    return value


def _checked_field(field: StepField, value: Any, where: str) -> Any:
    array = as_array(value)
    if array.ndim != len(field.axes) or array.dtype.name not in DTYPES:
        shape = ', '.join(field.axes)
        raise PublisherError(
            where=where,
            expected=f'{field.name} of shape ({shape}): {field.doc}',
            found=f'shape {array.shape} of {array.dtype}',
        )
    if field.kind == 'number':
        number = float(array)
        if abs(number) > _MAX_NUMBER:  # NaN means unknown.
            raise PublisherError(
                where=where,
                expected=f'{field.name} as a number that fits float32',
                found=repr(number),
            )
        return number
    _check_finite(field.name, array, where)
    return array


def _check_finite(name: str, array: np.ndarray, where: str) -> None:
    if first_not_finite(array) is not None:
        raise PublisherError(where=where, expected=f'finite {name}', found='NaN or infinity')
