# SPDX-License-Identifier: Apache-2.0
"""Readers: each reader converts the dumps or recordings of one format to rollouts.

A reader is a module with the name of its format, such as ``openvla``, ``pi0`` or ``rosbag2``.
``recordings.sources.READERS`` lists the readers. All other modules are shared or are parts of a
reader:

base              the interface of a source
step_features     the features of one step, raw or pooled
listing           the files of a dump, in a fixed order
copies            finds episodes that occur twice
unseen_root       adds a second folder with unseen tasks
openpi            common code of pi0 and pi0-FAST
openpi_episodes   the episodes of an openpi dump
openvla_table     the csv of an OpenVLA episode
rosbag2_episodes  the episodes of a recording
rosbag2_arrays    the arrays of an episode

A reader imports ``base``, ``step_features``, ``listing`` and ``recordings.untrusted``, and only the
reader that it extends. CONTRIBUTING.md has the recipe for a new reader.
"""
