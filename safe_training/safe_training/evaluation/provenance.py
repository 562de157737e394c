# SPDX-License-Identifier: Apache-2.0
"""What a detector folder keeps about its origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safe_monitor_node.bands.band import Band
from safe_training.evaluation.splits import Split
from safe_training.recordings.rollouts import Rollouts


def provenance_of(rollouts: Rollouts, split: Split) -> dict[str, Any]:
    """Return what a detector is made of: the source, and the episodes of each part of the split."""
    return {
        'source': rollouts.source,
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


def describe_task_bands(band: Band, tasks: Sequence[str], alpha: float) -> str:
    """Return which tasks have a band of their own, which share one and which have none."""
    own = [t for t in tasks if band.at(alpha, t).task]
    shared = [t for t in own if 'tasks' in band.tasks[t].provenance]
    text = f'{len(own) - len(shared)} of {len(tasks)} seen tasks have a band of their own'
    if shared:
        text += f'; one band for those of few successes: {", ".join(shared)}'
    if len(own) < len(tasks):
        without = ', '.join(t for t in tasks if t not in own)
        text += f'; nothing is promised within, for too few successes: {without}'
    return text
