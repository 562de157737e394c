# SPDX-License-Identifier: Apache-2.0
"""Detectors on disk.

detector_folder    a detector with its band
adaptation_file    what labels changed, kept over a restart
"""
