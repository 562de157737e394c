# SPDX-License-Identifier: Apache-2.0
"""Bands: thresholds with a promised false-alarm rate.

threshold            the threshold of one promised rate
band                 thresholds of all promised rates, for all tasks and for single tasks
adaptive_threshold   a threshold that is updated by labels
adaptive_band        a band that is updated by labels
probability          the probability of failure, from score and time
good_runs            the threshold of a new task from a few successful rollouts of this task
good_run_records     the good runs that a monitor has counted

This subpackage imports only NumPy.
"""
