# SPDX-License-Identifier: Apache-2.0
"""Shows all robots in a terminal, also over ssh. ``watch`` is its executable."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.utilities import remove_ros_args

from safe_monitor_node.looking.board import RobotBoard
from safe_monitor_node.looking.terminal import style_of, table
from safe_monitor_node.nodes.robot_topics import AllRobots, call_every
from safe_monitor_node.nodes.tool_node import ToolNode
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node

_LOOK_PERIOD = 0.5
_HISTORY = 300
# DDS repeats a latched state that a new subscriber did not get about every 3 s.
_FIRST_STATE = 5.0
# Codes for the alternate screen without cursor and automatic line breaks, and codes to leave it.
_ENTER, _LEAVE = '\x1b[?1049h\x1b[?25l\x1b[?7l', '\x1b[?7h\x1b[?25h\x1b[?1049l'


class WatchNode(ToolNode):
    """Knows all robots. It publishes nothing and changes nothing."""

    def __init__(self) -> None:
        # A second view must not have the name of the first.
        super().__init__('watch')
        self.board = RobotBoard(_HISTORY)
        self._robots = AllRobots(self, self.board)
        call_every(self, _LOOK_PERIOD, self._robots.update)

    def spin_for(self, seconds: float) -> None:
        """Handle messages for some time [s]."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def look(self, seconds: float, robot: str = '') -> None:
        """Search robots for some time [s], and wait at most 5 s longer for their first states.

        Parameters
        ----------
        seconds : float
        robot : str
            Name of the only robot whose state is needed; empty for all.
        """
        self.spin_for(seconds)
        deadline = time.monotonic() + _FIRST_STATE
        while self.board.silent(robot) and (left := deadline - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)


@contextmanager
def _screen(live: bool) -> Iterator[None]:
    """Use the alternate screen of the terminal; the content is restored at the end."""
    if not live:
        yield
        return
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _show(board: RobotBoard, colour: bool, live: bool) -> None:
    style = style_of(sys.stdout, os.environ, colour)
    lines = table(board.views(time.monotonic()), style)
    if live:
        sys.stdout.write('\x1b[H' + ''.join(f'{line}\x1b[K\r\n' for line in lines) + '\x1b[J')
    else:
        sys.stdout.write('\n'.join(lines) + '\n')
    sys.stdout.flush()


def _watch(node: WatchNode, options: argparse.Namespace) -> int:
    if options.once:
        node.look(options.wait)
        _show(node.board, not options.no_colour, live=False)
        return 0 if node.board.names() else 1
    live = sys.stdout.isatty() and os.environ.get('TERM', 'dumb') != 'dumb'
    with _screen(live):
        while True:
            node.spin_for(options.period)
            _show(node.board, not options.no_colour, live)
            if not live:
                print()


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0.05 <= value <= 3600.0):
        raise argparse.ArgumentTypeError(f'expected 0.05 to 3600 seconds, found {text}')
    return value


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options of ``watch``."""
    parser = argparse.ArgumentParser(
        prog='watch',
        description='Shows all robots with a monitor: score against the band, state, episode, '
        'rate and age. Finds the robots in all namespaces. Ctrl-C ends it.',
    )
    parser.add_argument(
        '--once',
        action='store_true',
        help='print one table and end; the exit status is 1 if there is no robot',
    )
    parser.add_argument(
        '--wait', type=_seconds, default=3.0, help='with --once: time to find the robots [s]'
    )
    parser.add_argument('--period', type=_seconds, default=0.5, help='time between two tables [s]')
    parser.add_argument(
        '--no-colour', '--no-color', action='store_true', help='print without colours'
    )
    return parser


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Show all robots in the terminal; returns the exit status."""
    arguments = sys.argv if args is None else ['watch', *args]
    options = make_parser().parse_args(remove_ros_args(arguments)[1:])

    def work() -> int:
        node = WatchNode()
        try:
            return _watch(node, options)
        except BrokenPipeError:
            # The reader, such as `head`, has closed the pipe. Python must not write the rest at
            # exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        finally:
            node.destroy_node()

    return run_node('watch', work, args)
