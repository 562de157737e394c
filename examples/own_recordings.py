# SPDX-License-Identifier: Apache-2.0
"""Write your own recordings as a rollout set.

    python examples/own_recordings.py my_set

Here the arrays are random numbers. Replace them with the arrays of your policy: one feature vector
for each inference, and the task and the outcome of each episode.
"""

import sys

import numpy as np

from vla_feature_bridge import FeatureSpec, Rollout, RolloutSetWriter

(folder,) = sys.argv[1:]
random = np.random.default_rng(0)
feature = FeatureSpec('hidden_states', dim=8)
with RolloutSetWriter(folder, feature, policy='my_policy') as writer:
    for task in ('open the drawer', 'close the drawer', 'pick the cup', 'press the button'):
        for episode in range(40):
            success = bool(episode % 2)
            steps = random.integers(15, 25) if success else 25  # a failure runs to the time limit
            features = random.normal(size=(steps, feature.dim)).astype(np.float32)
            if not success:
                features[:, 0] += np.linspace(0, 4, steps)  # a failure becomes visible slowly
            writer.add(Rollout(features, task, success, episode_index=episode))
print(f'{folder}: {len(writer.steps)} rollouts')
