# SPDX-License-Identifier: Apache-2.0
"""Reads recordings of pi0-FAST by openpi, for example on LIBERO.

A recording is one root of env and policy records.

The feature is ``pre_logits`` ``(tokens, width)``, the last state that emitted each token, or
``encoded``. Both are averaged over the tokens, whose number differs from step to step. Probability
and entropy of the tokens come from ``logits``, which cover only the action vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from safe_training.recordings.readers.base import Pooling
from safe_training.recordings.readers.openpi import OpenpiSource, find_policy
from safe_training.recordings.readers.openpi_episodes import has_env_names_of_droid, is_root


class Pi0FastSource(OpenpiSource):
    """A root with ``env_records`` and ``policy_records`` of pi0-FAST."""

    kind = 'pi0_fast'
    looks_for = 'env_records/*.pkl and policy_records/*meta.pkl (openpi)'
    policy = 'pi0_fast'
    default_pooling: ClassVar[dict[str, Pooling]] = {
        'pre_logits': (('token', 'mean'),),
        'encoded': (('token', 'mean'),),
    }
    features: ClassVar[dict[str, tuple[str, ...]]] = {
        'pre_logits': ('token',),
        'encoded': ('token',),
    }

    @staticmethod
    def detect(path: Path) -> str | None:
        if not is_root(path) or has_env_names_of_droid(path) or find_policy(path) != 'pi0_fast':
            return None
        return 'contains env_records and policy_records with tokens'
