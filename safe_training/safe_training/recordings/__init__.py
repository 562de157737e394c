# SPDX-License-Identifier: Apache-2.0
"""Other people's files in, rollout sets out.

errors            the one error of this room
sources           recognises a source and opens it; ``load_rollouts``
describe          what is in a source
convert           any source to a rollout set or a recording
convert_workers   the episodes of a source on several cores
labels            outcomes that people gave, beside a recording or a set
labelled          the episodes of a recording or a set with their labels
write_bag         rollouts to a rosbag2 recording
readers/          one module a format
untrusted/        bytes to plain arrays: executes nothing, believes no length

This room imports ``vla_feature_bridge`` only, and neither torch nor scikit-learn.
"""
