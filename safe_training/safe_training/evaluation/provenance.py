# SPDX-License-Identifier: Apache-2.0
"""What a detector folder keeps about its origin."""

from __future__ import annotations

from typing import Any

from safe_training.evaluation.fit_and_calibrate import Fitted
from vla_feature_bridge.rollout import Rollout


def provenance_of(source: str, rollouts: list[Rollout], fitted: Fitted) -> dict[str, Any]:
    """Say what a detector was made of: source, and episodes trained on, calibrated on and left."""
    split = fitted.split
    return {
        'source': source,
        'policy': rollouts[0].policy,
        'rollouts': len(rollouts),
        'split': split.number,
        'unseen_ratio': split.unseen_ratio,
        'seen_train_ratio': split.seen_train_ratio,
        'seen_tasks': list(split.seen_tasks),
        'unseen_tasks': list(split.unseen_tasks),
        'episodes': {
            part: [rollouts[i].episode_id for i in indices] for part, indices in split.parts.items()
        },
    }


def of_tasks(fitted: Fitted, alpha: float) -> str:
    """Say which tasks have a band of their own, share one, or have none."""
    tasks = [str(task) for task in fitted.split.seen_tasks]
    own = [t for t in tasks if fitted.band.at(alpha, t).task]
    shared = [t for t in own if 'tasks' in fitted.band.tasks[t].provenance]
    text = f'{len(own) - len(shared)} of {len(tasks)} seen tasks have a band of their own'
    if shared:
        text += f'; one band for those of few successes: {", ".join(shared)}'
    if len(own) < len(tasks):
        without = ', '.join(t for t in tasks if t not in own)
        text += f'; nothing is promised within, for too few successes: {without}'
    return text
