# SPDX-License-Identifier: Apache-2.0
"""Converts steps to alarms, without ROS.

step_period        the usual time between steps, and the time after which steps count as stopped
alarm              the alarm state machine of one episode after another
step_history       missing steps of an episode, and their first cause
steps              the identity and the result of a step, and counts of steps
step_order         the place of a step: in the running episode, in a new episode, or in no episode
step_checks        checks features and actions against the detector
detector_faults    unexpected exceptions of a detector
scoring            steps that wait for their scores, of one robot or of many
thresholds         thresholds that an episode is compared with: calibrated or adaptive
good_runs          thresholds of new tasks from labelled successes
label_feedback     updates of adaptive thresholds by labels of episodes
episode_monitor    detector, thresholds and alarm state machine, step by step
rules              the rule that combines the states of several detectors
alarm_policy       the table that gives the advice for a state
policy_rows        reads the rows of this table
situation          the state that the table is applied to, and how long it has lasted
settings           the settings of a monitor and its detectors
freshness          the age of the last step, and the ROS clock
start_of_watch     episodes that began before the monitor was active
own_labels         labels of episodes, and labels that the node itself has published
remarks            warnings about accepted events and steps that are probably mistakes
slot               one detector: the monitor in use, the next one, and the adaptation file
ensemble           one or several detectors, and their combined alarm
session            the detectors, their alarm, the advice, and labels

This subpackage imports ``detectors``, ``bands`` and ``storage``.
"""
