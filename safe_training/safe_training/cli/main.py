# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m safe_training info|convert|label|fit|evaluate``.

Exit status 0: done; 1: failed, the reason on standard error; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from safe_training.cli import compare_bands as calibration_command
from safe_training.cli import convert as conversion
from safe_training.cli import evaluate as evaluate_command
from safe_training.cli import figures as figures_command
from safe_training.cli import fit as fit_command
from safe_training.cli import label as label_command
from safe_training.cli import overlay
from safe_training.cli import report as report_command
from safe_training.cli import sweep as sweep_command
from safe_training.cli import table as table_command
from safe_training.cli.options import UsageError
from vla_feature_bridge.errors import SafeError


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog='safe_training', description='Build and judge failure detectors for robot policies.'
    )
    verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
    conversion.add_commands(verbs)
    label_command.add_command(verbs)
    fit_command.add_command(verbs)
    evaluate_command.add_command(verbs)
    calibration_command.add_command(verbs)
    figures_command.add_command(verbs)
    overlay.add_command(verbs)
    report_command.add_command(verbs)
    sweep_command.add_command(verbs)
    table_command.add_command(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    args = make_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except UsageError as error:
        print(f'safe_training {args.verb}: {error}', file=sys.stderr)
        return 2
    except (SafeError, OSError) as error:
        print(f'safe_training {args.verb}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'safe_training {args.verb}: interrupted', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
