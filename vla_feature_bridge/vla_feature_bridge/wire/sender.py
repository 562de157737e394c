# SPDX-License-Identifier: Apache-2.0
"""Sends the steps and the episodes of a policy to the bridge. It needs no ROS.

::

    sender = StepSender('auto', feature_name='hidden_states[token=last]', exec_horizon=8,
                        policy='openvla')
    sender.start(task='pick_up_the_mug', instruction='pick up the mug')
    while not done:
        ...
        sender.publish(hidden_state, chunks)
    sender.end(success=True)
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from dataclasses import KW_ONLY, dataclass
from secrets import token_hex
from typing import Any

from vla_feature_bridge.deferred import settle_all
from vla_feature_bridge.episode_steps import EpisodeEventRecord, EpisodeSteps
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.step_checks import (
    StepError,
    check_positive,
    check_seconds,
    check_stamp,
    check_text,
)
from vla_feature_bridge.step_sink import EpisodeSink
from vla_feature_bridge.tensors import as_array
from vla_feature_bridge.wire.address import default_address, parse_address
from vla_feature_bridge.wire.link import Link
from vla_feature_bridge.wire.messages import (
    Hello,
    Image,
    check_source,
    encode_event,
    encode_image,
    encode_step,
)
from vla_feature_bridge.wire.send_queue import Outgoing, SendQueue

LOGGER = logging.getLogger('vla_feature_bridge')
_ALL: weakref.WeakSet[StepSender] = weakref.WeakSet()


@dataclass(eq=False, repr=False)
class StepSender(EpisodeSink):
    """Sends one frame for each inference, and one frame at each start and end of an episode.

    A thread connects to the bridge, sends, and connects again if the connection ends. The thread of
    the policy only checks and copies the arrays; it never waits for the bridge. If the bridge does
    not read, frames wait in a queue. If the queue is full, the oldest steps are dropped and
    counted; START and END are dropped last. After a new connection, the last START or END is sent
    again.

    Steps are numbered, checked and refused as :class:`~vla_feature_bridge.step_sink.EpisodeSink`
    says. Problems are logged by the logger ``vla_feature_bridge``.

    A process that forks keeps its sender in the parent. In the child, the sender refuses every
    call: make a sender after the fork.

    Parameters
    ----------
    address : str
        Where the bridge listens: ``unix:/path``, ``tcp://host:port``, or ``'auto'`` for the default
        address of a bridge (:func:`~vla_feature_bridge.wire.address.default_address`).
    source : str
        Unique name of this process at the bridge. It is the namespace of the topics. If it is
        empty, the topics have no namespace. Only one sender may have an empty name.
    feature_name, exec_horizon, policy, action_space
        As in :class:`~vla_feature_bridge.episode_steps.EpisodeSteps`.
    queue_depth : int
        Number of frames that wait at most.
    queue_bytes : int
        Number of bytes that wait at most; also the largest frame.
    wait_for_monitor : float
        How long the first :meth:`start` waits until the bridge reports that a monitor listens [s];
        0 does not wait.
    strict : bool
        Raise errors: for development and tests.

    Raises
    ------
    SafeError
        A parameter is wrong. It is not an error if no bridge listens.
    """

    address: str
    _: KW_ONLY
    source: str = ''
    feature_name: str
    exec_horizon: int
    policy: str = ''
    action_space: str = ''
    queue_depth: int = 256
    queue_bytes: int = 64 << 20
    wait_for_monitor: float = 5.0
    strict: bool = False

    def __post_init__(self) -> None:
        if self.address == 'auto':
            self.address = default_address()
        address = parse_address(self.address)
        steps = EpisodeSteps(self.feature_name, self.exec_horizon, self.policy, self.action_space)
        self.source = check_source(self.source)
        depth = check_positive(self.queue_depth, 'queue_depth', 'settings of the policy')
        size = check_positive(self.queue_bytes, 'queue_bytes', 'settings of the policy')
        EpisodeSink.__init__(
            self,
            steps,
            lambda text: LOGGER.warning('%s: %s', self.address, text),
            strict=self.strict,
            wait_for_monitor=self.wait_for_monitor,
        )
        self._queue = SendQueue(depth, size)
        self._link = Link(
            address,
            Hello(
                source=self.source,
                instance=token_hex(8),
                feature_name=self.feature_name,
                policy=self.policy,
                action_space=self.action_space,
                pid=os.getpid(),
            ),
            self._queue,
            self._problem,
        )
        _ALL.add(self)

    @property
    def state(self) -> str:
        """``'connecting'``, ``'connected'``, ``'refused'`` or ``'closed'``."""
        return self._link.state

    @property
    def monitor_listens(self) -> bool:
        """True if the bridge reports that a monitor listens."""
        return self._monitor_listens()

    @property
    def sent(self) -> int:
        """Number of steps that were completely handed to the system."""
        self.deferred.settle()
        return self._link.sent_steps

    @property
    def dropped(self) -> int:
        """Number of correct steps that were lost on this side."""
        self.deferred.settle()
        return self._dropped()

    @property
    def dropped_images(self) -> int:
        """Number of images that were dropped."""
        return self._queue.dropped['image']

    @property
    def dropped_events(self) -> int:
        """Number of START and END that were dropped, after all steps."""
        return self._queue.dropped['start'] + self._queue.dropped['end']

    @property
    def waiting(self) -> int:
        """Number of frames that wait to be sent."""
        self.deferred.settle()
        return self._link.waiting

    def image(self, name: str, array: Any, stamp: Any = None) -> None:
        """Send a camera image.

        Images are dropped before steps.

        Parameters
        ----------
        name : str
            Name of the camera.
        array : array of uint8, shape (height, width, 3) RGB, (height, width, 1) or (height, width)
        stamp : int [ns] or builtin_interfaces/Time, optional
            Time of the image; default: the present time.

        Raises
        ------
        SafeError
            The array is not an image, or a name is not text, and the sender is strict.
        """
        with self._calls:
            if not self._can_send():
                return
            try:
                image = Image(
                    check_text(name, 'name', 'image'),
                    as_array(array),
                    time.time_ns() if stamp is None else check_stamp(stamp, 'image'),
                )
                self._put('image', encode_image(image, self._dropped()))
            except Exception as error:
                self._refuse(error)

    def close(self, timeout: float = 1.0) -> None:
        """Send what waits, for at most ``timeout`` seconds, and close the connection.

        A running episode is not ended. Called at the exit of Python too.
        """
        try:
            seconds = check_seconds(timeout, 'timeout')
        except StepError as error:
            self._refuse(error)
            seconds = 1.0
        self.deferred.settle(seconds)
        self._is_closed = True
        if self._is_mine:
            self._link.close(seconds)

    def _send_step(self, step: PolicyStep) -> None:
        self._put('step', encode_step(step, self._dropped()))

    def _send_event(self, event: EpisodeEventRecord) -> None:
        again = encode_event(event, self._dropped(), resent=True)
        self._put(event.kind, encode_event(event, self._dropped()), again)

    def _dropped(self) -> int:
        # Without settling: the caller holds the lock that a deferred call needs.
        return self._lost + self._queue.dropped['step']

    def _monitor_listens(self) -> bool:
        return self._link.status.monitor

    def _put(self, kind: str, data: bytes, again: bytes = b'') -> None:
        if len(data) > self._queue.size:
            raise StepError(
                where=f'{kind} frame',
                expected=f'at most queue_bytes = {self._queue.size} bytes',
                found=f'{len(data)} bytes',
                advice='pool the features, or make queue_bytes larger',
            )
        self._queue.put(Outgoing(kind, data, again))
        self._link.wake()

    def _after_fork(self) -> None:
        """Leave the connection to the parent."""
        self._wait_time = 0.0
        self._link.release()


def _after_fork() -> None:
    for sender in list(_ALL):
        sender._after_fork()


os.register_at_fork(after_in_child=_after_fork)
# After the import of ``link``: what is registered last is called first, before the links close.
atexit.register(settle_all)
