# SPDX-License-Identifier: Apache-2.0
"""Largest scores of successes by task, for thresholds of new tasks from good runs."""

from __future__ import annotations

import numpy as np

from safe_monitor_node.bands.good_runs import SeenScores
from safe_training.calibration.curves import Successes, checked_curves


def seen_scores(successes: Successes) -> SeenScores:
    """Return the largest scores of the successes of each seen task.

    Parameters
    ----------
    successes : Successes
        Training successes with their tasks. Each is scored by a detector that was fitted without
        its task. Successes without the name of a task are left out.

    Raises
    ------
    GoodRunsError
        Fewer than two tasks have successes.
    CalibrationError
        There is no success, or a score is not finite.
    """
    longest = max((np.size(scores) for scores in successes.scores), default=1)
    largest: dict[str, list[float]] = {}
    for task, curve in zip(
        successes.tasks, checked_curves(successes.scores, max(1, longest)), strict=True
    ):
        if task:
            largest.setdefault(task, []).append(float(curve.max()))
    return SeenScores({task: np.array(values) for task, values in largest.items()})
