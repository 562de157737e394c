# SPDX-License-Identifier: Apache-2.0
"""Quality of service of every topic; ``qos_overrides`` parameters of a node change it."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

# If a detector misses one step, the detector cannot score the rest of the episode. At 10 Hz, 100
# stored steps are enough for a pause of 10 s in one of the two processes. With 10 stored steps, a
# fast replay loses steps on a busy machine.
STEP_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
EPISODE_QOS = QoSProfile(
    depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
SCORE_QOS = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
ALARM_QOS = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
STOP_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
DIAGNOSTICS_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
CHUNK_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
IMAGE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
