# SPDX-License-Identifier: Apache-2.0
"""A rollout set on disk: an index and memory-mapped arrays.

layout             names of files, format, error
index              one row a rollout
arrays             the arrays
reader             ``RolloutSet``
writer             ``RolloutSetWriter``
"""
