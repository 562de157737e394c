# SPDX-License-Identifier: Apache-2.0
"""Quality of service of every topic; ``qos_overrides`` parameters of a node change it."""

from __future__ import annotations

from copy import copy
from typing import Any

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

# If a detector misses one step, the detector cannot score the rest of the episode. At 10 Hz, 100
# stored steps are enough for a pause of 10 s in one of the two processes. With 10 stored steps, a
# fast replay loses steps on a busy machine.
STEP_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
# A monitor that is suspended for a while must miss no START (its task chooses the band) and no
# outcome. An event is small, so that as many of them as steps cost a late subscriber nothing.
EPISODE_QOS = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
SCORE_QOS = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
ALARM_QOS = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
STOP_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
DIAGNOSTICS_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
CHUNK_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
MARKER_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
OVERLAY_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
IMAGE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)

LEASE = 1.0
"""Lease of the liveliness: the monitor shows at least this often that its process runs [s]."""

_LEAST_DEADLINE = 0.5


def alive_qos(qos: QoSProfile, lease: float = LEASE, deadline: float = 0.0) -> QoSProfile:
    """Return a QoS with automatic liveliness and an optional deadline.

    A publisher offers both values. A subscription that requests them gets an event if the process
    of the publisher ends or hangs, and if the next message does not come in time. A subscription
    without these requests also matches.

    Parameters
    ----------
    qos : QoSProfile
    lease : float
        A subscription requests the same or a longer lease [s].
    deadline : float
        Longest time between two messages [s]; 0: no deadline. A subscription requests the same or
        a longer deadline.
    """
    made = QoSProfile(
        history=qos.history,
        depth=qos.depth,
        reliability=qos.reliability,
        durability=qos.durability,
        liveliness=LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(seconds=lease),
    )
    if deadline:
        made.deadline = Duration(seconds=deadline)
    return made


def overridable(qos: QoSProfile) -> dict[str, Any]:
    """Return the arguments of a publisher or subscription whose QoS parameters may change.

    rclpy writes the overrides of a node into the profile that it is given. So each publisher and
    subscription gets a copy: otherwise the next node of the process had these overrides too.
    """
    overriding = QoSOverridingOptions.with_default_policies()
    return {'qos_profile': copy(qos), 'qos_overriding_options': overriding}


def stop_deadline(stop_period: float) -> float:
    """Return the deadline of ``safe/stop`` for a period of its messages [s]."""
    return max(5.0 * stop_period, _LEAST_DEADLINE)
