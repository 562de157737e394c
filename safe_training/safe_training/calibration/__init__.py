# SPDX-License-Identifier: Apache-2.0
"""Scores of successes in, a band out.

curves            checks of promised rates and score curves
functional        a threshold for each step
constant          one threshold for all steps
split_conformal   conformal quantiles, and thresholds for each outcome

This room knows no detector: it imports ``safe_monitor_node.bands`` only.
"""
