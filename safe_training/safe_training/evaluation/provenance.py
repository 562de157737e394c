# SPDX-License-Identifier: Apache-2.0
"""The provenance that a detector folder stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_training.calibration.probability import FEWEST
from safe_training.evaluation.splits import Split
from safe_training.recordings.rollouts import Rollouts


def provenance_of(rollouts: Rollouts, split: Split) -> dict[str, Any]:
    """Return the provenance of a detector: the source and the episodes of each part."""
    return {
        'source': rollouts.source,
        'policy': rollouts[0].policy,
        'rollouts': len(rollouts),
        'split': split.number,
        'unseen_ratio': split.unseen_ratio,
        'seen_train_ratio': split.seen_train_ratio,
        'seen_tasks': list(split.seen_tasks),
        # If a policy sends no task, the monitor recognises the task by the instruction.
        'seen_instructions': sorted(
            {rollouts[i].instruction for i in (*split.train, *split.seen)} - {''}
        ),
        'unseen_tasks': list(split.unseen_tasks),
        'episodes': {
            part: [rollouts[i].episode_id for i in indices] for part, indices in split.parts.items()
        },
    }


def probability_text(fitted: ProbabilityMap | None) -> str:
    """Return a text about the fit of the probability of failure."""
    if fitted is None:
        return (
            f'no probability of failure: it needs {FEWEST} failures and {FEWEST} successes that '
            'the detector was not fitted on'
        )
    return (
        f'probability of failure from {fitted.rollouts} {fitted.described} '
        f'({fitted.failures} failures)'
    )


def describe_task_bands(band: Band, tasks: Sequence[str], alpha: float) -> str:
    """Return a text about the bands of the tasks.

    It lists tasks with their own band, tasks that share a band, and tasks without a band.
    """
    own = [t for t in tasks if band.at(alpha, t).task]
    shared = [t for t in own if 'tasks' in band.tasks[t].provenance]
    text = f'{len(own) - len(shared)} of {len(tasks)} seen tasks have their own band'
    if shared:
        text += f'; tasks with few successes share one band: {", ".join(shared)}'
    if len(own) < len(tasks):
        without = ', '.join(t for t in tasks if t not in own)
        text += f'; tasks with too few successes have no own band: {without}'
    return text
