# SPDX-License-Identifier: Apache-2.0
"""Files of the monitor.

A file is checked completely when it is read. A file is written completely or not at all.

checksum          JSON files that hold their own checksum
shipped           detector folders that come with this package
detector_folder   a fitted detector with its band
shared_detectors  detectors that several monitors of a process share
adaptation_file   the updates that labels made to the thresholds

This subpackage imports ``detectors`` and ``bands``. It does not import PyTorch.
"""
