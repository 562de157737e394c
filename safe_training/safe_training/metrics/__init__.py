# SPDX-License-Identifier: Apache-2.0
"""Scores and labels in, numbers out.

scored            a scored rollout, and the time steps at which its score is looked at
ranking           how well scores rank failures
alarms            how well alarms detect failures
lead_time         how many steps before the failure the alarm came
bootstrap         bootstrap intervals
binomial          Clopper-Pearson intervals, and counts of alarms by task
reliability       whether a score is a probability
operating_curves  detection against false alarms
part_report       all of these for one part of a split

This room knows no detector: it imports ``safe_monitor_node.bands`` only.
"""
