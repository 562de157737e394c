# SPDX-License-Identifier: Apache-2.0
"""Scores and outcomes in, numbers out.

scored            scored rollouts, and the moments at which they are looked at
ranking           how well scores rank failures
alarms            how well alarms detect failures
lead_time         how long before the failure the alarm came
bootstrap         intervals
reliability       whether a score is a probability
operating_curves  detection against false alarms
part_report       all of them for one part of a split

This room knows no detector: it imports ``safe_monitor_node.bands`` only.
"""
