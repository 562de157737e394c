# SPDX-License-Identifier: Apache-2.0
"""Joins messages of several topics by their stamps, with ``message_filters`` of ROS 2.

``message_filters`` is part of a ROS 2 distribution. It is not on PyPI. It is imported only if
topics must be joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.messages import time_from_message, time_to_message


class JoinError(SafeError):
    """Messages cannot be joined."""


@dataclass(slots=True)
class Stamped:
    """A message and the time by which it is joined.

    Attributes
    ----------
    message
    header : std_msgs.msg.Header
        ``message_filters`` reads its stamp.
    stamp : int
        The same time [ns].
    measured : bool
        True if the sender of the message set the stamp, False if it is the time of receiving.
    ordinal : int
        Index of the message among all messages of its topic, from 0.
    """

    message: Any
    header: Header
    stamp: int
    measured: bool
    ordinal: int


@dataclass(slots=True)
class Counts:
    """Numbers of received, joined and waiting messages of one topic.

    Attributes
    ----------
    received, joined : int
    without_stamp : int
        Number of messages that had no header or the stamp 0, and got the time of receiving.
    waiting : int
        Number of messages that came after the last joined one, and wait for partners. An earlier
        message can be joined too, if a message of another topic is late; it is not counted here.
    last_joined : int
        Index of the last message that was joined, among all messages of its topic.
    """

    received: int = 0
    joined: int = 0
    without_stamp: int = 0
    waiting: int = 0
    last_joined: int = -1

    @property
    def lost(self) -> int:
        """Number of messages that found no partners."""
        return self.received - self.joined - self.waiting


class Join:
    """Joins one message of each input to a set whose stamps are equal, or nearly equal.

    Parameters
    ----------
    names : sequence of str
        One name for each input, for texts. With one input, each message is a set by itself.
    on_joined : callable
        Called with a list of :class:`Stamped`, one for each input.
    rule : str
        ``'exact'`` for equal stamps, ``'approximate'`` for stamps that differ by less than
        ``slop``.
    slop : float
        [s]
    queue_size : int
        How many messages of each input wait for partners.
    allow_headerless : bool
        Whether messages without a stamp are joined by the time of receiving.

    Raises
    ------
    JoinError
        There is more than one input and ``message_filters`` is not installed.
    """

    def __init__(
        self,
        names: Sequence[str],
        on_joined: Callable[[list[Stamped]], None],
        *,
        rule: str = 'exact',
        slop: float = 0.05,
        queue_size: int = 20,
        allow_headerless: bool = True,
    ) -> None:
        self.names, self.rule = tuple(names), rule
        self.counts = {name: Counts() for name in names}
        self.problem = ''
        self._on_joined = on_joined
        self._allow_headerless = allow_headerless
        self._filters: list[Any] = []
        self._synchronizer: Any = None
        if len(self.names) > 1:
            filters = _message_filters()
            self._filters = [filters.SimpleFilter() for _ in self.names]
            self._synchronizer = (
                filters.TimeSynchronizer(self._filters, queue_size)
                if rule == 'exact'
                else filters.ApproximateTimeSynchronizer(self._filters, queue_size, slop)
            )
            self._synchronizer.registerCallback(self._on_set)

    def add(self, name: str, message: Any, now: int) -> None:
        """Handle a message of an input.

        Parameters
        ----------
        name : str
        message
        now : int
            The present time [ns].

        Raises
        ------
        JoinError
            The message has no stamp, and is not joined without one.
        """
        counts = self.counts[name]
        ordinal = counts.received
        counts.received += 1
        stamp = stamp_of(message)
        if not stamp:
            counts.without_stamp += 1
            self._check_joined_without_stamp(name)
        header = Header(stamp=time_to_message(stamp or now))
        stamped = Stamped(message, header, stamp or now, bool(stamp), ordinal)
        if self._synchronizer is None:
            self._on_set(stamped)
        else:
            self._filters[self.names.index(name)].signalMessage(stamped)
        self._count_waiting()

    def _check_joined_without_stamp(self, name: str) -> None:
        if self._synchronizer is None:
            return
        if self.rule == 'exact':
            raise JoinError(
                where=name,
                expected='messages with a stamp, because join is exact',
                found='a message without a header, or with the stamp 0',
                advice='set the parameter join to approximate',
            )
        if not self._allow_headerless:
            raise JoinError(
                where=name,
                expected='messages with a stamp, because allow_headerless is false',
                found='a message without a header, or with the stamp 0',
                advice='set the parameter allow_headerless to true: the time of receiving is used',
            )

    def _on_set(self, *stamped: Stamped) -> None:
        for name, message in zip(self.names, stamped, strict=True):
            counts = self.counts[name]
            counts.joined += 1
            counts.last_joined = max(counts.last_joined, message.ordinal)
        # message_filters calls this function with a lock. If the function raised an error, the lock
        # would never be released.
        try:
            self._on_joined(list(stamped))
        except Exception as error:
            self.problem = str(error) or repr(error)

    def _count_waiting(self) -> None:
        if self._synchronizer is not None:
            for name, queue in zip(self.names, self._synchronizer.queues, strict=True):
                counts = self.counts[name]
                counts.waiting = sum(
                    message.ordinal > counts.last_joined for message in queue.values()
                )


def stamp_of(message: Any) -> int:
    """Return the stamp in the header of a message [ns]; 0 if it has none."""
    stamp = getattr(getattr(message, 'header', None), 'stamp', None)
    return time_from_message(stamp) if isinstance(stamp, Time) else 0


def _message_filters() -> Any:
    try:
        import message_filters
    except ImportError as error:
        raise JoinError(
            where='joining topics',
            expected='the package message_filters, which comes with ROS 2',
            found=f'none ({error})',
            advice='install it (apt: ros-DISTRO-message-filters) and source the distribution; '
            'without apt, clone the branch DISTRO of https://github.com/ros2/message_filters and '
            'add its folder src to PYTHONPATH; or send the steps with a StepSender, which joins '
            'nothing',
        ) from error
    return message_filters
