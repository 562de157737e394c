# SPDX-License-Identifier: Apache-2.0
"""Functions of the Python API that need two rooms: what ``safe_training`` offers by name."""

from __future__ import annotations

import io

from rich.console import Console

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.evaluation import judge as judging
from safe_training.evaluation.evaluate import Row
from safe_training.metrics.part_report import flatten_report, per_task
from safe_training.recordings.rollouts import Rollouts
from safe_training.reporting.numbers import percent
from safe_training.reporting.tables.evaluation import report_table
from safe_training.reporting.tables.terminal import print_table


class JudgedSet(judging.JudgedSet):
    """Rollouts that a calibrated detector has scored and judged, with their table as text."""

    def table(self) -> str:
        """Return what the detector achieves on each part, in percent, as the verb ``judge`` does.

        Raises
        ------
        MetricError
            A rollout has no label; take :func:`safe_training.labelled` rollouts.
        """
        name = self.detector.detector.name
        rows = [
            Row(name, 0, part, flatten_report(report), per_task(report))
            for part, report in self.report().items()
        ]
        text = io.StringIO()
        console = Console(file=text, highlight=False, width=140)
        title = f'{name}, promised false-alarm rate {percent(self.alpha)} %'
        print_table(console, report_table(rows, title))
        lines = (line.rstrip() for line in text.getvalue().splitlines())
        return '\n'.join(line for line in lines if line)


def judge(
    detector: CalibratedDetector, rollouts: Rollouts, alpha: float | None = None
) -> JudgedSet:
    """Return the rollouts with their scores, thresholds and alarms.

    Parameters
    ----------
    detector : CalibratedDetector
        From :func:`safe_training.fit` or ``CalibratedDetector.load(folder)``.
    rollouts : Rollouts
        With or without labels; tables need labels.
    alpha : float, optional
        Promised false-alarm rate; that of the detector if not given.

    Raises
    ------
    EvaluationError
        The features are not what the detector was fitted on, or the band is not for this rate or
        ends before a rollout does.
    """
    judged = judging.judge(detector, rollouts, alpha)
    return JudgedSet(judged.detector, judged.alpha, judged.parts)
