# SPDX-License-Identifier: Apache-2.0
"""Says what is in a dump, a recording, a rollout set or a detector folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import EpisodeProgress
from safe_training.recordings.sources import no_rollouts, open_source
from vla_feature_bridge.rollout import Rollout


def info(path: str | os.PathLike[str], progress: EpisodeProgress | None = None) -> dict[str, Any]:
    """Say what is in a dump, archive, rollout set or detector folder, as JSON values.

    Reads every episode, so that bad ones are found; they are listed under ``bad``.

    Raises
    ------
    DumpError, RolloutSetError
        It is none of these, it is broken as a whole, or not one episode is readable.
    """
    if (Path(path) / 'detector.json').is_file():
        return {'path': str(path), **_describe_detector(path)}
    source = open_source(path, skip_bad=True)
    summary = _Summary()
    for rollout in source.rollouts(progress):
        summary.add(rollout)
    if not summary.lengths:
        raise DumpError(no_rollouts(source))
    return {
        'path': str(path),
        'kind': source.kind,
        'why': source.why,
        'notes': list(source.notes),
        'policy': source.policy,
        **summary.to_dict(),
        'feature': {'text': str(source.feature), **source.feature.to_dict()},
        'raw_axes': list(source.raw_axes),
        'bad': list(source.skipped),
    }


def _describe_detector(path: str | os.PathLike[str]) -> dict[str, Any]:
    # Imported here because it brings torch, which looking into a dump does not need.
    from safe_monitor_node.storage.detector_folder import DetectorFolderError, describe

    try:
        return describe(path)
    except DetectorFolderError as error:
        raise DumpError(str(error)) from error


class _Summary:
    """Counts over rollouts, kept without keeping the rollouts."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._tasks: dict[str, dict[str, Any]] = {}
        self._shapes: dict[str, set[str]] = {}

    def add(self, rollout: Rollout) -> None:
        self.lengths.append(len(rollout))
        row = self._tasks.setdefault(
            rollout.task,
            {
                'task': rollout.task,
                'task_id': rollout.task_id,
                'episodes': 0,
                'successes': 0,
                'failures': 0,
                'unlabelled': 0,
                'unseen': rollout.unseen,
                'shortest': len(rollout),
                'longest': len(rollout),
            },
        )
        outcome = {True: 'successes', False: 'failures', None: 'unlabelled'}[rollout.success]
        row['episodes'] += 1
        row[outcome] += 1
        row['shortest'] = min(row['shortest'], len(rollout))
        row['longest'] = max(row['longest'], len(rollout))
        self._note('dtype', rollout.features.dtype.name)
        self._note('actions', _per_step(rollout.actions))
        self._note('tokens', _per_step(rollout.token_probability))
        self._note('exec_horizon', str(rollout.exec_horizon))
        self._note('signals', '\n'.join(rollout.signals))

    def _note(self, what: str, value: str) -> None:
        self._shapes.setdefault(what, set()).add(value)

    def to_dict(self) -> dict[str, Any]:
        tasks = sorted(self._tasks.values(), key=lambda row: (row['task_id'], row['task']))
        totals = {
            key: sum(row[key] for row in tasks)
            for key in ('episodes', 'successes', 'failures', 'unlabelled')
        }
        return {
            **totals,
            'steps': sum(self.lengths),
            'length': {
                'shortest': min(self.lengths),
                'median': float(np.median(self.lengths)),
                'longest': max(self.lengths),
            },
            'dtype': sorted(self._shapes['dtype']),
            'actions': sorted(self._shapes['actions']),
            'exec_horizon': sorted(map(int, self._shapes['exec_horizon'])),
            'tokens': sorted(self._shapes['tokens']),
            'signals': sorted(
                {n for names in self._shapes['signals'] for n in names.split('\n') if n}
            ),
            'tasks': tasks,
        }


def _per_step(array: np.ndarray | None) -> str:
    return 'none' if array is None else 'x'.join(map(str, array.shape[1:]))
