# SPDX-License-Identifier: Apache-2.0
"""Quality of service of every topic, in one place. ``qos_overrides`` parameters can change it."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

# A detector that lacks one step cannot judge the rest of the episode. 100 steps bridge a pause of
# either process of 10 s at 10 Hz; 10 would lose steps whenever a fast replay meets a busy machine.
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
