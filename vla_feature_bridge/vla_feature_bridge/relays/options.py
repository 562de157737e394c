# SPDX-License-Identifier: Apache-2.0
"""The command line of the relays."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import FeatureSpec, parse_pooling
from vla_feature_bridge.relays.addresses import Address, parse_address
from vla_feature_bridge.relays.episodes import WORDS, parse_episode
from vla_feature_bridge.relays.readings import FEATURE_AXES, Keys
from vla_feature_bridge.relays.reporter import Settings
from vla_feature_bridge.step_checks import check_seconds
from vla_feature_bridge.wire.address import default_address
from vla_feature_bridge.wire.address import parse_address as parse_bridge
from vla_feature_bridge.wire.messages import check_source

_TITLES = {
    'openpi': 'an openpi server (WebSocket)',
    'groot': 'a GR00T server (ZeroMQ)',
    'openvla': 'an OpenVLA server (HTTP)',
}
#: Ports on which the servers listen by default.
_PORTS = {'openpi': 8000, 'groot': 5555, 'openvla': 8000}
_EPISODE_HELP = {
    'instruction': 'another language instruction',
    'gap': 'SECONDS without a request',
    'connection': 'the client disconnects',
    'reset': 'the client calls reset (the default)',
    'none': 'no rule: the bridge or the robot begins and ends the episodes',
}
_DESCRIPTION = """\
Forwards all bytes between a policy server and its client unchanged, and sends a policy step to the
bridge for each inference. The client connects to the address of --listen instead of the address of
the server. Server and client do not change.
"""


class OptionError(SafeError):
    """Options of the command line do not fit together."""


@dataclass(frozen=True)
class Options:
    """The command line, checked.

    Attributes
    ----------
    policy : str
        ``'openpi'``, ``'groot'`` or ``'openvla'``.
    listen, server : Address
    bridge : str
        Address of the bridge, as ``StepSender`` takes it.
    settings : Settings
        How the messages are read and sent.
    exec_horizon : int
        Number of actions of a chunk that are executed before the next inference.
    name, source : str
        Name of the policy, and of this source at the bridge.
    wait_for_monitor : float
        How long the first step waits until a monitor listens [s]; the client does not wait.
    statistics : float
        Time between two lines of statistics [s]; 0 prints none.
    allow_kill : bool
        Whether GR00T's request ``kill`` reaches the server.
    """

    policy: str
    listen: Address
    server: Address
    bridge: str
    settings: Settings
    exec_horizon: int
    name: str
    source: str
    wait_for_monitor: float
    statistics: float
    allow_kill: bool = False


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='relay', description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest='policy', metavar='POLICY', required=True)
    for policy, title in _TITLES.items():
        kind = kinds.add_parser(policy, help=title, description=_DESCRIPTION)
        _add_addresses(kind, policy)
        _add_steps(kind, policy)
    return parser


def _add_addresses(parser: argparse.ArgumentParser, policy: str) -> None:
    port = _PORTS[policy]
    parser.add_argument(
        '--listen',
        metavar='HOST:PORT',
        default=f'127.0.0.1:{port + 1}',
        help='where clients connect (default %(default)s); everyone who can reach this address '
        'can use the server',
    )
    parser.add_argument(
        '--server',
        metavar='HOST:PORT',
        default=f'127.0.0.1:{port}',
        help='where the policy server listens (default %(default)s)',
    )
    parser.add_argument(
        '--bridge',
        metavar='ADDRESS',
        default=default_address(),
        help='where the bridge listens: unix:/path or tcp://host:port (default %(default)s)',
    )
    parser.add_argument(
        '--source',
        metavar='NAME',
        default='',
        help='name of this source at the bridge, and namespace of its topics (default: none)',
    )
    parser.add_argument(
        '--wait-for-monitor',
        metavar='SECONDS',
        type=float,
        default=5.0,
        help='how long the first step waits until a monitor listens; the client does not wait '
        '(default %(default)g)',
    )
    parser.add_argument(
        '--statistics',
        metavar='SECONDS',
        type=float,
        default=30.0,
        help='time between two lines of statistics; 0 prints none (default %(default)g)',
    )
    if policy == 'groot':
        parser.add_argument(
            '--allow-kill',
            action='store_true',
            help='let clients end the server (endpoint kill)',
        )


def _add_steps(parser: argparse.ArgumentParser, policy: str) -> None:
    words = WORDS[policy]
    parser.add_argument(
        '--episode',
        metavar='WORD',
        nargs='+',
        default=['reset'] if policy == 'groot' else None,
        required=policy != 'groot',
        help='what ends an episode, one or several: '
        + '; '.join(f'{w}{" SECONDS" if w == "gap" else ""}: {_EPISODE_HELP[w]}' for w in words),
    )
    one = policy == 'openvla'
    parser.add_argument(
        '--exec-horizon',
        metavar='N',
        type=int,
        default=1 if one else None,
        required=not one,
        help='how many actions of a chunk the client executes before the next inference'
        + (' (default 1)' if one else ''),
    )
    parser.add_argument('--policy', metavar='NAME', dest='name', default=policy, help='its name')
    parser.add_argument(
        '--feature-key',
        metavar='KEY',
        default='',
        help='key of the hidden states in the replies (default: the first key that a reply has of '
        f'{", ".join(FEATURE_AXES)}); without features, steps carry only actions',
    )
    parser.add_argument(
        '--axes', metavar='A,B', default='', help='axes in front of the feature axis'
    )
    parser.add_argument(
        '--pooling',
        metavar='AXIS=COMMAND',
        action='append',
        default=[],
        help='pool the features; once for each axis (default: they are sent as they come)',
    )
    parser.add_argument(
        '--feature-name', metavar='NAME', default='', help='name of the features in the steps'
    )
    parser.add_argument(
        '--action-keys', metavar='A,B', default='', help='keys of the actions in the replies'
    )
    parser.add_argument(
        '--instruction-key', metavar='KEY', default='', help='key of the instruction in requests'
    )
    parser.add_argument(
        '--images',
        metavar='KEY',
        nargs='*',
        default=None,
        help='also send the images of the requests; without a KEY: all images',
    )


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the checked command line; arguments of ROS 2 (``--ros-args``) are ignored.

    Raises
    ------
    SafeError
        An option is not valid, or options do not fit together.
    SystemExit
        The usage is wrong, or help was asked for.
    """
    words = list(arguments)
    if '--ros-args' in words:
        del words[words.index('--ros-args') :]
    args = make_parser().parse_args(words)
    listen = parse_address(args.listen, '--listen')
    if args.exec_horizon < 1:
        raise OptionError(
            where='--exec-horizon', expected='at least 1', found=str(args.exec_horizon)
        )
    return Options(
        policy=args.policy,
        listen=listen,
        server=parse_address(args.server, '--server'),
        bridge=str(parse_bridge(args.bridge)),
        settings=_settings(args),
        exec_horizon=args.exec_horizon,
        name=args.name,
        source=check_source(args.source),
        wait_for_monitor=check_seconds(args.wait_for_monitor, '--wait-for-monitor'),
        statistics=check_seconds(args.statistics, '--statistics'),
        allow_kill=getattr(args, 'allow_kill', False),
    )


def _settings(args: argparse.Namespace) -> Settings:
    feature = None
    key = args.feature_key
    if key:
        axes = _words(args.axes) if args.axes else FEATURE_AXES.get(key, ())
        feature = FeatureSpec(key, 0, axes, parse_pooling(args.pooling))
    for option, value in (('--pooling', args.pooling), ('--axes', args.axes)):
        if value and not key:
            raise OptionError(
                where=option,
                expected='--feature-key KEY with it',
                found='none',
                advice=f'name the key of the features, for example --feature-key '
                f'{next(iter(FEATURE_AXES))}',
            )
    return Settings(
        policy=args.policy,
        rules=parse_episode(args.episode, args.policy),
        keys=Keys(
            actions=_words(args.action_keys),
            instruction=args.instruction_key,
            features=(key,) if key else tuple(FEATURE_AXES),
            with_images=args.images is not None,
            images=tuple(args.images or ()),
        ),
        feature=feature,
        feature_name=args.feature_name,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(',') if word.strip())
