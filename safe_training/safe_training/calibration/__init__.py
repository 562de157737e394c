# SPDX-License-Identifier: Apache-2.0
"""Scores of successes in, a band out.

curves       promised rates and score curves, checked
quantile     the conformal quantile
functional   a threshold for each step
constant     one threshold for all steps
kinds        one class for each kind of band: name, promise, ``calibrate``

This room knows no detector: it imports ``safe_monitor_node.bands`` only.
"""
