# SPDX-License-Identifier: Apache-2.0
"""A rollout set on disk: an index and memory-mapped arrays. Never pickle.

::

    SET/rollout_set.json           what the set is: format, version, feature, policy, source
    SET/rollouts.parquet           one row a rollout: every scalar, its length, its arrays' file
    SET/arrays/000000.safetensors  the arrays of the first rollout, read by memory map

The modules; each may import only modules above it:

layout             names and format of the files; ``RolloutSetError``
arrays             the arrays of one rollout: check, write, map
index              one row a rollout, and the manifest
journal            which entries an interrupted writer had finished
reader             ``RolloutSet``
writer             ``RolloutSetWriter``
"""

from vla_feature_bridge.rollout_set.layout import RolloutSetError
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

__all__ = ['RolloutSet', 'RolloutSetError', 'RolloutSetWriter']
