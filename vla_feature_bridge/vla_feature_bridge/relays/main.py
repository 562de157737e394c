# SPDX-License-Identifier: Apache-2.0
"""Runs a relay: ``ros2 run vla_feature_bridge relay``."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.relays.exchanges import (
    HttpWatching,
    Watching,
    WebsocketWatching,
    ZmtpWatching,
)
from vla_feature_bridge.relays.kill_gate import KillGate
from vla_feature_bridge.relays.options import Options, parse_options
from vla_feature_bridge.relays.reporter import Reporter
from vla_feature_bridge.relays.tcp_relay import TcpRelay
from vla_feature_bridge.relays.work_queue import Worker
from vla_feature_bridge.wire.sender import StepSender

#: Switch interval of Python [s]: a thread that forwards waits at most this time for the worker. The
#: default of 5 ms would delay each answer.
_SWITCH = 0.0005
_HEALTH = b'GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n'


class Relay:
    """A relay with its worker and its connection to the bridge.

    Parameters
    ----------
    options : Options
    say : callable
        Takes a line for people.

    Raises
    ------
    SafeError
        The address is in use, or an option of the steps is not valid.
    """

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._senders: list[StepSender] = []
        self._reporter = Reporter(options.settings, self._make_sender, say)
        self._worker = Worker(self._reporter.handle, self._reporter.tick)
        self._numbers = itertools.count()
        self._tcp = TcpRelay(
            options.listen,
            options.server,
            self._open_watch,
            say,
            probe=_HEALTH if options.policy == 'openpi' else b'',
        )
        self._ended = threading.Event()

    def run(self) -> None:
        """Forward until :meth:`stop` is called, from a signal handler for example."""
        threading.Thread(target=self._print_statistics, daemon=True).start()
        self._worker.start()
        try:
            self._tcp.run()
        finally:
            self._ended.set()
            self._tcp.close()
            self._worker.close()
            # The running episode gets no END, because an END would clear the alarm.
            for sender in self._senders:
                sender.close()
            self._say(self.statistics())

    def stop(self) -> None:
        """End :meth:`run`."""
        self._tcp.close()

    def statistics(self) -> str:
        """Return one line of statistics."""
        counts = self._reporter.counts
        parts = [f'{counts.inferences} inferences', f'{counts.steps} steps']
        for number, text in (
            (counts.images, 'images'),
            (counts.errors, 'error replies'),
            (counts.unreadable, 'inferences unreadable'),
            (counts.lost, 'inferences lost in the relay'),
            (counts.of_others, 'inferences of other clients'),
            (counts.blocked, 'requests for kill stopped'),
            (counts.unwatched, 'connections not watched'),
            (sum(sender.dropped for sender in self._senders), 'steps dropped before the bridge'),
        ):
            if number:
                parts.append(f'{number} {text}')
        bridge = self._senders[-1].state if self._senders else 'not used yet'
        return (
            f'{", ".join(parts)}; last inference {self._reporter.last_seconds:.3f} s; '
            f'{self._tcp.connections} clients; bridge {bridge}'
        )

    def _make_sender(self, feature_name: str) -> StepSender:
        options = self._options
        sender = StepSender(
            options.bridge,
            source=options.source,
            feature_name=feature_name,
            exec_horizon=options.exec_horizon,
            policy=options.name,
            action_space='robot',
            wait_for_monitor=options.wait_for_monitor,
        )
        self._senders.append(sender)
        return sender

    def _open_watch(self, peer: str) -> Watching:
        watch: Callable[..., Watching] = {
            'openpi': WebsocketWatching,
            'groot': ZmtpWatching if self._options.allow_kill else KillGate,
            'openvla': HttpWatching,
        }[self._options.policy]
        return watch(peer, next(self._numbers), self._worker.put, self._worker.wake)

    def _print_statistics(self) -> None:
        told = ''
        while self._options.statistics and not self._ended.wait(self._options.statistics):
            text = self.statistics()
            if text != told:
                self._say(text)
                told = text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a relay. Return 0 after an interrupt, and 1 if the relay cannot start."""
    name = 'relay'
    lock = threading.Lock()

    def say(text: str) -> None:
        # If standard output is closed, the relay continues.
        with lock, contextlib.suppress(OSError, ValueError):
            print(f'{name}: {text}', flush=True)

    logging.basicConfig(format=f'{name}: %(message)s', stream=sys.stdout)
    sys.setswitchinterval(_SWITCH)
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        name = f'relay {options.policy}'
        relay = Relay(options, say)

        def end(number: int, frame: FrameType | None) -> None:
            relay.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        say(f'{options.listen} -> {options.server}; bridge {options.bridge}')
        if not options.listen.is_loopback:
            say(
                f'other machines can reach the server through {options.listen}: the relay checks '
                'no passwords, as the server does not'
            )
        relay.run()
    except SafeError as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    return 0
