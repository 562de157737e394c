# SPDX-License-Identifier: Apache-2.0
"""Steps in, alarms out. No ROS in it.

alarm              the alarm state machine
episode_monitor    one episode after another, step by step
label_feedback     what labels of finished episodes change

This room imports ``detectors``, ``bands`` and ``storage``.
"""
