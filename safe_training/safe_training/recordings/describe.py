# SPDX-License-Identifier: Apache-2.0
"""Summarises the content of a dump, a recording, an archive or a rollout set."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from safe_training.recordings.readers.base import EpisodeProgress
from safe_training.recordings.sources import no_rollouts, open_source, read_rollouts
from vla_feature_bridge.rollout import Rollout


def info(path: str | os.PathLike[str], progress: EpisodeProgress | None = None) -> dict[str, Any]:
    """Return the content of a dump, recording, archive or rollout set, as JSON values.

    Every episode is read. Messages of the episodes that cannot be read are under ``bad``.

    Raises
    ------
    DumpError, RolloutSetError
        The path has another format, is damaged as a whole, or has no readable episode.
    """
    source = open_source(path, skip_bad=True)
    summary = _Summary()
    for rollout in read_rollouts(source, progress):
        summary.add(rollout)
    if not summary.lengths:
        raise no_rollouts(source)
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


class _Summary:
    """Statistics of rollouts. The rollouts are not stored."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._tasks: dict[str, dict[str, Any]] = {}
        self._shapes: dict[str, set[str]] = {}
        self._action_space = ''

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
        self._action_space = rollout.action_space  # equal for all rollouts of a source
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
            'action_space': self._action_space,
            'exec_horizon': sorted(map(int, self._shapes['exec_horizon'])),
            'tokens': sorted(self._shapes['tokens']),
            'signals': sorted(
                {n for names in self._shapes['signals'] for n in names.split('\n') if n}
            ),
            'tasks': tasks,
        }


def _per_step(array: np.ndarray | None) -> str:
    return 'none' if array is None else 'x'.join(map(str, array.shape[1:]))
