# SPDX-License-Identifier: Apache-2.0
"""The evaluations in ``test/golden``: scored rollouts of three parts, and what was published."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from shared_files import golden_json

from safe_monitor_node.bands.band import Band
from safe_training.metrics.scored import ScoredRollout, Task

TOLERANCE = 1e-5
SPLITS = ('train', 'val_seen', 'val_unseen')


@dataclass
class World:
    """One golden evaluation: scored rollouts of three splits and what was published on them."""

    number: int
    published: dict[str, Any]
    scored: dict[str, list[ScoredRollout]]
    stops: dict[Task, int]

    def task_of(self, split: str, name: str) -> Task:
        return next(r.task for r in self.scored[split] if str(r.task) == name)


def golden_rollouts(published: dict[str, Any], split: str) -> list[ScoredRollout]:
    """Return the scored rollouts of one part of a published evaluation."""
    return [
        ScoredRollout(np.array(scores), not rollout['success'], rollout['task_id'])
        for rollout, scores in zip(
            published['rollouts'][split], published['scores'][split], strict=True
        )
    ]


def read_world(number: int) -> World:
    """Return one of the three published evaluations."""
    published = golden_json(f'eval_world{number}')
    scored = {split: golden_rollouts(published, split) for split in published['rollouts']}
    stops = {
        rollout['task_id']: rollout['task_min_step']
        for rollouts in published['rollouts'].values()
        for rollout in rollouts
    }
    return World(number, published, scored, stops)


def alarm_steps(scored, threshold):
    return [threshold.first_crossing(rollout.scores) for rollout in scored]


def constant_threshold(value, length=64):
    return Band(np.array([0.5]), np.full((1, length), value), 'any', 10).at(0.5)
