# SPDX-License-Identifier: Apache-2.0
"""Splits rollouts into training, calibration and test; fits, calibrates and evaluates detectors.

splits            task splits
protocol          how rollouts are split and bands calibrated
saved_splits      splits on disk
fit_and_calibrate one detector on one split
left_out          leave-one-task-out scores
judge             evaluates a calibrated detector on any rollouts
live_parity       scores of a live session compared with those offline
split_workers     the work of each split in several processes
evaluate          many detectors on many splits
summary           numbers over splits and over tasks, and differences of detectors
onset             how well the beginning of failures is found
good_runs         thresholds of new tasks from a few successes
good_runs_rates   false alarms of new tasks with and without good runs
band_comparison   promised and realised false-alarm rates of the kinds of bands
compared_bands    the bands that are compared
provenance        the origin of a detector

This subpackage imports ``recordings``, ``fitting``, ``calibration`` and ``metrics``.
"""
