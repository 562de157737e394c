# SPDX-License-Identifier: Apache-2.0
"""Names and format of the files of a rollout set, and the error class of this subpackage."""

from __future__ import annotations

import re

from vla_feature_bridge.errors import SafeError

FORMAT = 'safe_rollout_set'
VERSION = 1
MANIFEST = 'rollout_set.json'
INDEX = 'rollouts.parquet'
ARRAYS = 'arrays'
JOURNAL = 'journal.jsonl'
ARRAY_FILE = re.compile(r'\d{6,12}\.safetensors')
COPY_AGAIN = 'copy the rollout set again, or convert its source again'


class RolloutSetError(SafeError):
    """A rollout set cannot be read or written. The message contains the name of the file."""
