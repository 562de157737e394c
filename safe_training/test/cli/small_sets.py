# SPDX-License-Identifier: Apache-2.0
"""Small rollout sets on which the tests of the verbs fit detectors."""

import numpy as np
from rollout_factory import make_rollouts

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

SPEC = FeatureSpec('hidden_states', 4, ('token',), (('token', 'last'),))
TINY = ('--param', 'hidden=4', '--param', 'epochs=3')
"""Parameters with which a learned detector is fitted in no time."""


def make_set(path, tasks=4, per_task=10, outcome=lambda index: index % 2 == 0, length=8, **fields):
    """Write a rollout set; by default every second rollout of a task fails, and can be seen to."""
    rng = np.random.default_rng(0)
    fields = {'steps': (length - 3, length + 1), **fields}
    with RolloutSetWriter(path, feature=SPEC, policy='synthetic') as writer:
        for task in range(tasks):
            for rollout in make_rollouts(
                per_task,
                rng=rng,
                looks=lambda noise, failed: noise + failed,
                task=f'task_{task}',
                task_id=task,
                success=outcome,
                **fields,
            ):
                writer.add(rollout)
    return path


def contents(folder):
    """Return the bytes of each file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
