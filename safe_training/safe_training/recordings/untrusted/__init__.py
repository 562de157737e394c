# SPDX-License-Identifier: Apache-2.0
"""Converts bytes to plain arrays. Nothing is executed, and every length is checked.

budget            limits on the cost of a pickle
pickle_file       a pickle or a ``torch.save`` file to plain values
pickle_machine    the pickle opcodes
pickle_numpy      NumPy arrays inside a pickle
pickle_torch      PyTorch tensors inside a pickle
npz_file          NumPy archives
text_file         text in UTF-8, with or without a BOM
csv_file          csv files
bag               rosbag2 recordings in any storage
bag_budget        limits on the cost of unpacking a recording
mcap_file         .mcap storage
sqlite_file       .db3 storage
cdr               the messages of a recording

This subpackage imports only ``recordings.errors`` and ``vla_feature_bridge``.
"""
