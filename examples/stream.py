# SPDX-License-Identifier: Apache-2.0
"""Stream recorded rollouts through a detector, step by step, as a robot does. This needs no ROS.

    python examples/stream.py my_set my_detector

The set is a rollout set; `fit_and_judge.py` writes such a detector. In your own control loop, make
a `PolicyStep` from each inference and give it to the monitor.
"""

import sys

from safe_monitor_node import AlarmConfig, AlarmState, EpisodeMonitor, load_detector
from vla_feature_bridge import RolloutSet

rollouts, folder = sys.argv[1:]
monitor = EpisodeMonitor(load_detector(folder), config=AlarmConfig(k=1, n=1))
for rollout in RolloutSet.open(rollouts):
    outcome = 'success' if rollout.success else 'failure'
    monitor.start(rollout.episode_id, now=0.0, task=rollout.task)
    for t in range(len(rollout)):
        result = monitor.step(rollout.step(t), now=0.1 * t)  # a step every 0.1 s
        if result and result.verdict.state is AlarmState.ALARM:
            print(f'{rollout.episode_id} ({outcome}): alarm at step {t} of {len(rollout)}')
            break
    monitor.end(rollout.episode_id)
