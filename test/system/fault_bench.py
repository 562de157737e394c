# SPDX-License-Identifier: Apache-2.0
"""One monitor process for many faults, the nodes that cause them, and the table of what came."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from probe import Probe
from rclpy.context import Context
from rclpy.node import Node

from safe_bringup.live import Process
from safe_msgs.msg import EpisodeEvent, FailureAlarm
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.step import PolicyStep

STATES = {
    getattr(FailureAlarm, name): name.removeprefix('STATE_')
    for name in dir(FailureAlarm)
    if name.startswith('STATE_')
}
HALTED = ('ALARM', 'STALE', 'INVALID')


@dataclass
class Outcome:
    """What came of one fault, for the table at the end of the run."""

    fault: str
    how: str
    expected: str
    limit: float
    found: str = 'nothing'
    after: float = float('nan')
    began: float = field(default_factory=time.monotonic)


class FaultBench:
    """A monitor in a process of its own, and a probe that plays the policy and the supervisor.

    Parameters
    ----------
    start_monitor, start_replay : callable
        ``start_monitor(**parameters)`` starts a process of the node.
    quiet : callable
        ``quiet(t, episode)`` returns a nominal step.
    loud : callable
        ``loud(t, episode)`` returns the steps of a rollout that alarms.
    """

    def __init__(
        self,
        start_monitor: Callable[..., Process],
        start_replay: Callable[..., Process],
        quiet: Callable[..., PolicyStep],
        loud: Callable[..., PolicyStep],
    ) -> None:
        self.quiet, self.loud = quiet, loud
        self.start_monitor, self._start_replay = start_monitor, start_replay
        self._policies: list[Process] = []
        self.process = start_monitor(diagnostics_period=0.2)
        self.probe = Probe()
        self.probe.wait_until_active()
        self._count = 0

    def close(self) -> None:
        """End the probe."""
        self.probe.close()

    # --- episodes

    def new_id(self) -> str:
        """Return an episode id that was not used before."""
        self._count += 1
        return f'episode {self._count}'

    def settle(self) -> str:
        """Begin an episode whose first step is nominal, end it, and return its id.

        Before a fault, this shows that the fault before it is over.
        """
        episode = self.new_id()
        self.probe.stops.clear()
        self.send(self.quiet(0, episode))
        scores = self.probe.scores
        self.probe.spin_until(
            lambda: scores and scores[-1].episode_id == episode, 'a good step is answered'
        )
        assert STATES[scores[-1].state] == 'NOMINAL', self.probe.alarms[-1].reason
        self.probe.event(episode, EpisodeEvent.KIND_END)
        self.probe.spin_until(
            lambda: self.probe.stops and not self.probe.stops[-1] and self.state == 'UNKNOWN',
            'the monitor has settled',
        )
        return episode

    @property
    def state(self) -> str:
        """The state on ``safe/alarm``."""
        return STATES[self.probe.alarms[-1].state] if self.probe.alarms else ''

    @property
    def text(self) -> str:
        """Message and facts of the latest diagnosis."""
        if self.probe.status is None:
            return ''
        facts = ', '.join(f'{pair.key}={pair.value}' for pair in self.probe.status.values)
        return f'{self.probe.status.message} | {facts}'

    @property
    def level(self) -> bytes:
        """The level of the latest diagnosis."""
        return DiagnosticStatus.STALE if self.probe.status is None else self.probe.status.level

    def play(self, episode: str, indices: Any, *, gap: float = 0.02, **changes: Any) -> None:
        """Publish quiet steps of an episode; fields can be other ones."""
        for index in indices:
            self.send(self.quiet(index, episode), gap=gap, **changes)

    def send(self, made: PolicyStep, /, *, gap: float = 0.02, **changes: Any) -> None:
        """Publish a step with some fields changed, and handle messages for a moment."""
        made.stamp = time.time_ns()
        for name, value in changes.items():
            setattr(made, name, value(made) if callable(value) else value)
        self.probe.publish(step_to_message(made))
        self.spin(gap)

    def message(self, index: int, episode: str) -> PolicyStepMessage:
        """Return the message of a quiet step."""
        step = self.quiet(index, episode)
        step.stamp = time.time_ns()
        return step_to_message(step)

    def spin(self, seconds: float) -> None:
        """Handle messages for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.probe.executor.spin_once(timeout_sec=left)

    # --- other nodes

    def start_policy(self, **parameters: Any) -> Process:
        """Start a process that plays a rollout."""
        self._policies.append(self._start_replay(**parameters))
        return self._policies[-1]

    def stop_policies(self) -> None:
        """End the processes that `start_policy` started."""
        while self._policies:
            self._policies.pop().stop()

    @contextmanager
    def node(self, name: str = 'other') -> Iterator[Node]:
        """Yield a node of another participant."""
        context = Context()
        rclpy.init(context=context)
        node = Node(name, context=context)
        try:
            yield node
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)

    def until_matched(self, publisher: Any) -> None:
        """Wait until a publisher has a subscription."""
        self.probe.spin_until(publisher.get_subscription_count, 'the publisher is matched')

    # --- what is expected

    def expect(self, outcome: Outcome, state: str, pattern: str, level: bytes | None) -> None:
        """Wait for a state, for ``safe/stop`` as it must be, and for a text in the diagnosis."""
        probe = self.probe

        def is_there() -> bool:
            outcome.found = self.state
            return (
                self.state == state
                and bool(probe.stops)
                and probe.stops[-1] == (state in HALTED)
                and re.search(pattern, self.text, re.DOTALL) is not None
                and (level is None or self.level == level)
            )

        what = f'{outcome.fault}: {state}, /{pattern}/; found {self.state}'
        try:
            probe.spin_until(is_there, what, timeout=outcome.limit)
        except AssertionError as error:
            reason = probe.alarms[-1].reason if probe.alarms else ''
            raise AssertionError(f'{error}\n{self.state}: {reason}\n{self.text}') from None
        outcome.after = time.monotonic() - outcome.began


def print_table(outcomes: list[Outcome], write: Callable[[str], None]) -> None:
    """Write one line for each fault."""
    write(
        f'{"fault":58} {"how it was injected":46} {"expected":10} {"found":10} {"after":>8} limit'
    )
    for one in outcomes:
        write(
            f'{one.fault[:58]:58} {one.how[:46]:46} {one.expected:10} {one.found:10} '
            f'{one.after:6.2f} s {one.limit:3.0f} s'
        )
