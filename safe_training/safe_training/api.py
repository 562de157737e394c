# SPDX-License-Identifier: Apache-2.0
"""Functions of the Python API that need two subpackages. ``safe_training`` exports them."""

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

# Width of the notes below a table. A wider table is not wrapped.
_WIDTH = 95


class JudgedSet(judging.JudgedSet):
    """Rollouts with scores and alarms of a calibrated detector.

    The results can be printed as a table.
    """

    def table(self) -> str:
        """Return the table of the verb ``judge``: the results on each part, in percent.

        Raises
        ------
        MetricError
            A rollout has no label. Use :func:`safe_training.labelled` first.
        """
        name = self.detector.detector.name
        rows = [
            Row(name, 0, part, flatten_report(report), per_task(report))
            for part, report in self.report().items()
        ]
        text = io.StringIO()
        console = Console(file=text, highlight=False, width=_WIDTH)
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
        Promised false-alarm rate; the default is the rate of the detector.

    Raises
    ------
    EvaluationError
        The features differ from the features that the detector was fitted on, the band was not
        calibrated for this rate, or a rollout is longer than the band.
    """
    judged = judging.judge(detector, rollouts, alpha)
    return JudgedSet(judged.detector, judged.alpha, judged.parts)
