# SPDX-License-Identifier: Apache-2.0
"""A rollout set on disk: an index, and arrays that are read when used. Pickle is never used.

::

    SET/rollout_set.json           what the set is: format, version, feature, policy, source
    SET/rollouts.parquet           one row per rollout: scalars, length, file of its arrays
    SET/arrays/000000.safetensors  the arrays of the first rollout

The modules; each may import only modules above it:

layout             names and format of the files; ``RolloutSetError``
mapping            the bytes of a file, without an open file for each rollout
arrays             the arrays of one rollout: check, write, read
index              the index with one row per rollout, and the manifest
journal            the list of entries that an interrupted writer had finished
reader             ``RolloutSet``
writer             ``RolloutSetWriter``
"""

from vla_feature_bridge.rollout_set.layout import RolloutSetError
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

__all__ = ['RolloutSet', 'RolloutSetError', 'RolloutSetWriter']
