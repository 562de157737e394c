# SPDX-License-Identifier: Apache-2.0
"""Turns recorded rollouts into a calibrated detector: readers, splits, fitting, calibration and evaluation."""
