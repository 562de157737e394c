# SPDX-License-Identifier: Apache-2.0
"""Which rollouts train, calibrate and test; fit, calibrate and measure.

splits            task splits
protocol          how rollouts are split and alarms calibrated
saved_splits      splits on disk
fit_and_calibrate one detector on one split
left_out          leave-one-task-out scores
evaluate          many detectors on many splits
judge             a finished detector on any rollouts
band_comparison   what kinds of bands promise and keep
provenance        where a detector comes from

This room imports ``fitting``, ``calibration`` and ``metrics``.
"""
