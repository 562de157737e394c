# SPDX-License-Identifier: Apache-2.0
"""Calibrates a band on scores of successes.

curves       promised rates and score curves, checked
quantile     the conformal quantile
functional   a threshold for each step
constant     one threshold for all steps
good_runs    largest scores of successes, for thresholds of new tasks
kinds        one class for each kind of band: name, promise, ``calibrate``
probability  the map from score and time to the probability of failure

This subpackage does not depend on detectors: it imports only ``safe_monitor_node.bands``.
"""
