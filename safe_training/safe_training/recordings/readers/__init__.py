# SPDX-License-Identifier: Apache-2.0
"""One module for each format; each turns a dump or a recording into rollouts.

base              the interface of a source
step_features     the features of one step, raw or pooled
listing           the files of a dump, in a fixed order
copies            finds episodes that are there twice
unseen_root       adds a second folder with unseen tasks
openvla           OpenVLA
openvla_table     the csv of an OpenVLA episode
openpi            common code of pi0 and pi0-FAST
openpi_episodes   the episodes of an openpi dump
pi0               pi0 (openpi)
pi0_fast          pi0-FAST (openpi)
pi0_fast_droid    pi0-FAST on DROID
open_pi_zero      open-pi-zero on SimplerEnv
pooled_npz        pooled features in one .npz archive
rollout_set       our own rollout sets
rosbag2           rosbag2 recordings
rosbag2_episodes  the episodes of a recording
rosbag2_arrays    the arrays of an episode

A reader imports ``base``, ``step_features``, ``listing`` and ``recordings.untrusted``, and only the
reader that it extends. CONTRIBUTING.md has the recipe for a new reader.
"""
