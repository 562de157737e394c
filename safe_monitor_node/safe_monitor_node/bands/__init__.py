# SPDX-License-Identifier: Apache-2.0
"""Bands: thresholds with a promised false-alarm rate.

threshold            the threshold of one promised rate
band                 thresholds of all promised rates, for all tasks and for each
adaptive_threshold   a threshold that moves with labels
adaptive_band        a band that moves with labels

This room imports NumPy only.
"""
