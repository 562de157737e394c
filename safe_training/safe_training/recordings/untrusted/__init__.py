# SPDX-License-Identifier: Apache-2.0
"""Bytes to plain arrays. Nothing is executed, and no length is believed.

budget            what a file may cost
pickle_file       a pickle or a ``torch.save`` file to plain values
pickle_machine    the pickle opcodes
pickle_numpy      NumPy arrays inside a pickle
pickle_torch      PyTorch tensors inside a pickle
npz_file          NumPy archives
bag               rosbag2 recordings, whatever their storage
bag_budget        what unpacking a recording may cost
mcap_file         .mcap storage
sqlite_file       .db3 storage
cdr               the messages of a recording

This room imports ``recordings.errors`` and ``vla_feature_bridge`` only.
"""
