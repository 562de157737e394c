# SPDX-License-Identifier: Apache-2.0
"""How a rollout set lies on disk: the names of its files, its format, its one error."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from vla_feature_bridge.errors import SafeError

FORMAT = 'safe_rollout_set'
VERSION = 1
MANIFEST = 'rollout_set.json'
INDEX = 'rollouts.parquet'
ARRAYS = 'arrays'
JOURNAL = 'journal.jsonl'
ARRAY_FILE = re.compile(r'\d{6,12}\.safetensors')


class RolloutSetError(SafeError):
    """A rollout set cannot be read or written; names the file, what was expected and found."""


def hidden(path: Path, what: str) -> Path:
    whole = Path(os.path.abspath(path))
    return whole.with_name(f'.{whole.name}.{uuid.uuid4().hex[:12]}.{what}')
