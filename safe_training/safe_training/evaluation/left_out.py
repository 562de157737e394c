# SPDX-License-Identifier: Apache-2.0
"""Leave-one-task-out scores: scores by a detector that was fitted without the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from safe_monitor_node.detectors import Detector, DetectorError, make_detector
from safe_monitor_node.detectors.probe import LinearProbe
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout


def leave_one_task_out_scores(
    detector: Detector,
    rollouts: Sequence[Rollout],
    *,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Score each rollout by the same detector fitted on the rollouts of all other tasks.

    Use these scores to calibrate a band for new tasks, because each score comes from a model that
    was fitted without the task. A fitted linear probe keeps its chosen parameters. Other detectors
    are fitted again with their parameters.

    Parameters
    ----------
    detector : Detector
        Fitted or not; it is not changed.
    rollouts : sequence of Rollout
        Labelled rollouts of at least two tasks.

    Returns
    -------
    list of ndarray of float32, shape (T_i,)
        In the order of the rollouts.

    Raises
    ------
    DetectorError
        There are fewer than two tasks, or the rollouts of the other tasks are not suitable for
        fitting.
    """
    tasks = list(dict.fromkeys(rollout.task for rollout in rollouts))
    if len(tasks) < 2:
        raise DetectorError(
            where='leave-one-task-out',
            expected='rollouts of at least 2 tasks',
            found=str(len(tasks)),
            advice='add rollouts of other tasks, or calibrate on held-out rollouts',
        )
    scores: dict[int, NDArray[np.float32]] = {}
    for done, (task, model) in enumerate(_without_each(detector, rollouts, tasks)):
        left_out = [i for i, r in enumerate(rollouts) if r.task == task]
        scores |= zip(left_out, model.score_all([rollouts[i] for i in left_out]), strict=True)
        if progress is not None:
            progress(done + 1, len(tasks), f'leave-one-task-out, {task}')
    return [scores[i] for i in range(len(rollouts))]


def _without_each(
    detector: Detector, rollouts: Sequence[Rollout], tasks: Sequence[str]
) -> Iterator[tuple[str, Detector]]:
    """Yield each task, and the same detector fitted on the other tasks."""
    if isinstance(detector, LinearProbe):
        # scikit-learn is loaded only for a fit.
        from safe_training.fitting.probe import fit_without_each_task

        params = detector.chosen() if detector.fitted else detector.get_params()
        yield from fit_without_each_task(LinearProbe(**params), rollouts)
        return
    for task in tasks:
        model = make_detector(detector.name, **detector.get_params())
        try:
            model.fit([r for r in rollouts if r.task != task])
        except DetectorError as error:
            raise DetectorError(f'leave-one-task-out, without task {task!r}: {error}') from error
        yield task, model
