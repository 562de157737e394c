# SPDX-License-Identifier: Apache-2.0
"""Converts steps to alarms, without ROS.

step_period        the usual time between steps, and how long a silence means that they stopped
alarm              the alarm state machine of one episode after another
step_history       whether the steps of an episode are complete, and the first cause if not
steps              the identity and the result of a step, and counts of steps
step_order         where a step belongs: in the running episode, in a new one, or in none
step_checks        whether features and actions can be what the detector was fitted on
detector_faults    unexpected exceptions of a detector
scoring            steps that wait for their scores, of one robot or of many
thresholds         thresholds that an episode is compared with: calibrated or adaptive
good_runs          thresholds of new tasks from their labelled successes
label_feedback     the updates that labels of episodes make to adaptive thresholds
episode_monitor    detector, thresholds and alarm state machine, step by step
rules              the rule that makes one state of the states of several detectors
alarm_policy       the table that gives the advice for a state
policy_rows        reads the rows of this table
situation          the state that this table judges, and how long it has lasted
settings           what a monitor is made with from a detector folder
freshness          the age of the last step, and the ROS clock
start_of_watch     what is known about episodes that began before the monitor was active
own_labels         labels of episodes, and those that the node itself has published
remarks            what is accepted but is probably a mistake, for a person
slot               one detector: the monitor in use, the next one, and the adaptation file
ensemble           one or several detectors, and the one alarm that they make
session            the detectors, their alarm, the advice, and labels

This subpackage imports ``detectors``, ``bands`` and ``storage``.
"""
