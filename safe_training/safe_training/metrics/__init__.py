# SPDX-License-Identifier: Apache-2.0
"""Computes numbers from scores and labels.

scored            a scored rollout, and the steps at which its score is evaluated
ranking           how well scores rank failures
alarms            how well alarms detect failures
early             failures found early and steps saved, compared with the clock
lead_time         number of steps between the alarm and the failure
onset             where a failure began, estimated from all scores of the rollout
bootstrap         bootstrap interval over rollouts
task_bootstrap    bootstrap intervals over tasks, also of differences
binomial          Clopper-Pearson intervals, and counts of alarms by task
reliability       agreement of probabilities with outcomes
operating_curves  detection against false alarms
part_report       all of these for one part of a split

This subpackage does not depend on detectors: it imports only ``safe_monitor_node.bands``.
"""
