# SPDX-License-Identifier: Apache-2.0
"""One module a format; each turns a dump or a recording into rollouts.

base              what a source is
step_features     the features of one step, raw or pooled
unseen_root       a second folder whose tasks no detector may train on
openvla           OpenVLA
openpi            what pi0 and pi0-FAST share
openpi_episodes   the episodes of an openpi dump
pi0               pi0 (openpi)
pi0_fast          pi0-FAST (openpi)
pi0_fast_droid    pi0-FAST on DROID
open_pi_zero      open-pi-zero on SimplerEnv
pooled_npz        pooled features in one .npz archive
rollout_set       our own rollout sets
rosbag2           rosbag2 recordings

A reader imports ``base``, ``step_features`` and ``recordings.untrusted``, and no other reader but
those that it extends.
"""
