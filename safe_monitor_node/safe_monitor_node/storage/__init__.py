# SPDX-License-Identifier: Apache-2.0
"""Files of the monitor: checked whole when read, written completely or not at all.

checksum          JSON files that hold their own checksum
detector_folder   a fitted detector with its band
adaptation_file   the updates that labels made to the thresholds

This room imports ``detectors`` and ``bands``, and no PyTorch.
"""
