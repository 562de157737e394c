# SPDX-License-Identifier: Apache-2.0
"""Reads the files of others and writes rollout sets.

errors            the one error of this room
sources           recognises a source and opens it; ``load_rollouts``
describe          what a source holds
convert           any source to a rollout set or a recording
convert_workers   the episodes of a source on several cores
labels            outcomes that people gave: of a rollout set in its index, of a recording in a csv
labelled          the episodes of a rollout set or a recording, with their labels
write_bag         rollouts to a rosbag2 recording
rollouts          the rollouts of one source, with their feature
readers/          one module for each format
untrusted/        bytes to plain arrays: executes nothing, trusts no length

This room imports only ``vla_feature_bridge``, and neither PyTorch, scikit-learn, SciPy nor
matplotlib. It imports pyarrow only when a rollout set is read or written.
"""
