# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m safe_training info|convert|label|fit|evaluate``.

Exit status 0: done; 1: failed, the reason on standard error; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from safe_monitor_node.band import BandError
from safe_monitor_node.detectors import DetectorError
from safe_monitor_node.folder import DetectorFolderError
from safe_training import (
    calibration_command,
    conversion,
    evaluate_command,
    figures_command,
    fit_command,
    label_command,
    overlay,
    report_command,
    sweep_command,
    table_command,
)
from safe_training.calibration import CalibrationError
from safe_training.detector_options import UsageError
from safe_training.figures import FigureError
from safe_training.metrics import MetricError
from safe_training.protocol import EvaluationError
from safe_training.results import ResultsError
from safe_training.splits import SplitError
from safe_training.sweep_grid import SweepError
from safe_training.table_entries import TableError
from safe_training.unpickle import DumpError
from safe_training.video_frames import VideoError
from vla_feature_bridge.pooling import PoolingError
from vla_feature_bridge.rollout import RolloutError
from vla_feature_bridge.rollout_set import RolloutSetError

FAILURES = (
    BandError,
    CalibrationError,
    DetectorError,
    DetectorFolderError,
    DumpError,
    EvaluationError,
    FigureError,
    MetricError,
    OSError,
    PoolingError,
    RolloutError,
    RolloutSetError,
    SplitError,
    VideoError,
    ResultsError,
    SweepError,
    TableError,
)


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
    except FAILURES as error:
        print(f'safe_training {args.verb}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'safe_training {args.verb}: interrupted', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
