# SPDX-License-Identifier: Apache-2.0
"""Reads files of other projects and writes rollout sets.

errors            the error class of this subpackage
foreign_folders   describes a path that no reader recognises
sources           recognises a source and opens it; ``load_rollouts``
describe          summarises the content of a source
convert           any source to a rollout set or a recording
convert_workers   the episodes of a source on several cores
labels            outcomes set by people, in a rollout set or in the csv file of a recording
label_files       finds the label files of a recording, for every path to the recording
labelled          the episodes of a rollout set or a recording, with their labels
write_bag         rollouts to a rosbag2 recording
live_scores       scores that a monitor published during a recorded session
rollouts          the rollouts of one source, with their feature
readers/          one module for each format
untrusted/        bytes to plain arrays: executes nothing, checks every length

This subpackage imports only ``vla_feature_bridge``. It does not import PyTorch, scikit-learn, SciPy
or matplotlib. It imports pyarrow only when a rollout set is read or written.
"""
