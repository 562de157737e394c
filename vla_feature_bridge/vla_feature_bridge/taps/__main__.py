# SPDX-License-Identifier: Apache-2.0
"""``python -m vla_feature_bridge.taps``: lists, shows and checks presets."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.preset import Preset
from vla_feature_bridge.taps.presets import load_preset, preset_names

_EPILOG = """\
examples:
  python -m vla_feature_bridge.taps list
  python -m vla_feature_bridge.taps show lerobot_pi0
  python -m vla_feature_bridge.taps check lerobot_pi0 --policy my_robot:load_policy \\
      --inference my_robot:infer_once
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 if it succeeded, 1 if it failed, 2 for wrong usage."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except TapError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m vla_feature_bridge.taps',
        description='Presets say where the hidden state of a policy is.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar='VERB')
    verb = verbs.add_parser('list', help='list the presets of this package')
    verb.set_defaults(run=_list)
    verb = verbs.add_parser('show', help='print every field of a preset')
    verb.add_argument('preset', help='name, or path of a .yaml file')
    verb.set_defaults(run=_show)
    verb = verbs.add_parser(
        'check', help='run one inference of a policy and compare it with a preset'
    )
    verb.add_argument(
        'preset', help='name, path of a .yaml file, or auto (by the class of the policy)'
    )
    verb.add_argument(
        '--policy',
        required=True,
        metavar='MODULE:NAME',
        help='a function without arguments that returns the policy, or the policy itself',
    )
    verb.add_argument(
        '--inference',
        metavar='MODULE:FUNCTION',
        help='a function that takes the policy and makes one inference; default, for a policy of '
        'LeRobot: an inference with a random observation',
    )
    verb.set_defaults(run=_check)
    return parser


def _list(args: argparse.Namespace) -> int:
    presets = [load_preset(name) for name in preset_names()]
    widths = [max(len(row[column]) for row in map(_row, presets)) for column in range(3)]
    for preset in presets:
        cells = [cell.ljust(width) for cell, width in zip(_row(preset), widths, strict=True)]
        print('  '.join(cells).rstrip())
    return 0


def _row(preset: Preset) -> tuple[str, str, str]:
    checked = 'checked by running' if preset.verified == 'run' else 'read in the source'
    versions = f' ({", ".join(preset.versions)})' if preset.versions else ''
    return preset.name, preset.title, f'{checked}{versions}'


def _show(args: argparse.Namespace) -> int:
    preset = load_preset(args.preset)
    width = max(len(entry.name) for entry in fields(preset))
    for entry in fields(preset):
        value = getattr(preset, entry.name)
        if entry.name == 'pooling':
            value = [f'{axis}={command}' for axis, command in value]
        if isinstance(value, (list, tuple)):
            value = ', '.join(map(str, value))
        print(f'{entry.name.ljust(width)}  {value}'.rstrip())
    return 0


def _check(args: argparse.Namespace) -> int:
    from vla_feature_bridge.taps.checking import check

    policy = _named(args.policy, '--policy')
    # A policy may be callable itself (torch.nn.Module).
    if isinstance(policy, type) or (callable(policy) and not hasattr(policy, 'named_modules')):
        policy = policy()
    run: Callable[[Any], Any]
    if args.inference:
        run = _named(args.inference, '--inference')
    else:
        from vla_feature_bridge.taps.lerobot import infer_once as run
    report = check(policy, args.preset, run)
    print(report)
    return 0 if report.passed else 1


def _named(name: str, option: str) -> Any:
    """Return the object that MODULE:NAME means."""
    if ':' not in name:
        raise TapError(where=option, expected='MODULE:NAME such as my_robot:load', found=repr(name))
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TapError(
            where=option,
            expected='a module that can be imported, and a name in it',
            found=f'{type(error).__name__}: {error}',
            advice='run the command in the folder of the module, or set PYTHONPATH',
        ) from error


if __name__ == '__main__':
    sys.exit(main())
