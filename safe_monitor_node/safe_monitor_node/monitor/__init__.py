# SPDX-License-Identifier: Apache-2.0
"""Steps in, alarms out. No ROS in it.

alarm              the alarm state machine of one episode after another
thresholds         which thresholds an episode is held against: calibrated or adaptive
label_feedback     the updates that labels of episodes make to adaptive thresholds
episode_monitor    detector, thresholds and alarm state machine, step by step
session            the monitor in use, the next one, and the adaptation file

This room imports ``detectors``, ``bands`` and ``storage``.
"""
