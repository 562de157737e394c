# SPDX-License-Identifier: Apache-2.0
"""Which rollouts train, calibrate and test; fit, calibrate and measure.

splits            task splits
protocol          how rollouts are split and bands calibrated
saved_splits      splits on disk
fit_and_calibrate one detector on one split
left_out          leave-one-task-out scores
judge             a calibrated detector on any rollouts; the only judge of a detector folder
evaluate          many detectors on many splits
band_comparison   what kinds of bands promise and realise
provenance        where a detector comes from

This room imports ``recordings``, ``fitting``, ``calibration`` and ``metrics``.
"""
