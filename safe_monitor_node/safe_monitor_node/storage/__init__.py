# SPDX-License-Identifier: Apache-2.0
"""Files of the monitor.

A file is checked completely when it is read. A file is written completely or not at all.

checksum          JSON files that contain their own checksum
shipped           detector folders that come with this package
detector_folder   a fitted detector with its band
shared_detectors  detectors that are shared by several monitors of a process
adaptation_file   the updates of thresholds by labels

This subpackage imports ``detectors`` and ``bands``. It does not import PyTorch.
"""
