# SPDX-License-Identifier: Apache-2.0
"""The verbs for running monitors."""

from __future__ import annotations

import argparse
import math

from safe_monitor_node.verbs.passing import take_all_words


class Watch:
    """Show all robots in the terminal."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Take the options of ``ros2 run safe_monitor_node watch``."""
        take_all_words(parser)

    def main(self, *, args: argparse.Namespace) -> int:
        """Run the view and return the exit status."""
        from safe_monitor_node.nodes.watch import main

        return main(args.words)


class Status:
    """Print one line for each robot; the exit status shows the worst state."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Add the options."""
        _add_robot(parser, 'show only this robot')
        _add_wait(parser, 3.0, 'time to find the robots')
        parser.add_argument('--json', action='store_true', help='print one JSON object per line')
        parser.epilog = (
            'The exit status shows the worst state of all robots: 0 NOMINAL, 3 UNKNOWN, 4 '
            'WARNING, 5 STALE, '
            '6 INVALID, 7 GONE (no monitor runs), 8 ALARM. It is 1 if no robot was found, and 2 '
            'if an option is wrong.'
        )

    def main(self, *, args: argparse.Namespace) -> int:
        """Print the lines and return the exit status."""
        from safe_monitor_node.nodes.status import print_status

        return print_status(args.robot, args.wait, as_json=args.json)


class Label:
    """Set the outcome of the running or the last episode."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Add the options."""
        parser.add_argument(
            'outcome',
            choices=('success', 'failure', 'unknown'),
            help='unknown withdraws an earlier label',
        )
        parser.add_argument(
            '--episode',
            default='',
            help='id of the episode (default: the running or the last episode)',
        )
        _add_robot(parser, 'needed if several monitors run')
        _add_wait(parser, 5.0, 'time to find the monitor, and to get its answer')

    def main(self, *, args: argparse.Namespace) -> int:
        """Call ``~/label_episode``, print the answer and return the exit status."""
        from safe_monitor_node.nodes.monitor_calls import label_episode

        return label_episode(args.robot, args.wait, args.outcome, args.episode)


class Reset:
    """Clear a latched alarm."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Add the options."""
        _add_robot(parser, 'needed if several monitors run')
        _add_wait(parser, 5.0, 'time to find the monitor, and to get its answer')

    def main(self, *, args: argparse.Namespace) -> int:
        """Call ``~/reset``, print the answer and return the exit status."""
        from safe_monitor_node.nodes.monitor_calls import reset_alarm

        return reset_alarm(args.robot, args.wait)


class Load:
    """Replace the detector of a running monitor."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Add the options."""
        parser.add_argument(
            'folder',
            help='detector folder on the computer of the monitor, or the name of a shipped '
            'detector; NAME=FOLDER replaces one of several detectors',
        )
        _add_robot(parser, 'needed if several monitors run')
        _add_wait(parser, 30.0, 'time to find the monitor, and to get its answer')

    def main(self, *, args: argparse.Namespace) -> int:
        """Call ``~/load_detector``, print the answer and return the exit status."""
        from safe_monitor_node.nodes.monitor_calls import load_folder

        return load_folder(args.robot, args.wait, args.folder)


class Doctor:
    """Find problems of monitors, topics and clocks, and say what to do."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Add the options."""
        _add_robot(parser, 'look only at this robot')
        _add_wait(parser, 4.0, 'time to look at nodes, topics and diagnostics')
        parser.add_argument(
            '--detector', default='', metavar='FOLDER', help='also check this detector folder'
        )
        parser.epilog = (
            'The doctor looks at nodes, topics and diagnostics, and asks each monitor for its '
            'lifecycle state. It subscribes to no policy and changes nothing. The exit status is '
            '0 if it finds no problem, and 1 if it finds one.'
        )

    def main(self, *, args: argparse.Namespace) -> int:
        """Print the findings and return the exit status."""
        from safe_monitor_node.nodes.doctor import print_findings

        return print_findings(args.robot, args.wait, args.detector)


VERBS = {
    'doctor': Doctor,
    'label': Label,
    'load': Load,
    'reset': Reset,
    'status': Status,
    'watch': Watch,
}
"""The verbs of this package; ``setup.py`` makes an entry point for each verb."""


def _add_robot(parser: argparse.ArgumentParser, why: str) -> None:
    parser.add_argument(
        '--robot',
        default='',
        metavar='NAME',
        help=f'namespace of the robot, such as /robot1, or / without one; {why}',
    )


def _add_wait(parser: argparse.ArgumentParser, default: float, what: str) -> None:
    parser.add_argument(
        '--wait', type=_seconds, default=default, help=f'{what} [s] (default: {default:g})'
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0.1 <= value <= 600.0):
        raise argparse.ArgumentTypeError(f'expected 0.1 to 600 seconds, found {text}')
    return value
