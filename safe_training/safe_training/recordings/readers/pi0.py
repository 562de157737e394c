# SPDX-License-Identifier: Apache-2.0
"""Reads recordings of pi0 by openpi, for example on LIBERO: one root of env and policy records.

The feature is ``pre_velocity`` ``(denoising steps, horizon, width)``: the state of the action
expert before its projection to a velocity, averaged over the horizon, then over the denoising
steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from safe_training.recordings.readers.base import Pooling
from safe_training.recordings.readers.openpi import OpenpiSource, find_policy
from safe_training.recordings.readers.openpi_episodes import is_root


class Pi0Source(OpenpiSource):
    """A root with ``env_records`` and ``policy_records`` of pi0."""

    kind = 'pi0'
    looks_for = 'env_records/*.pkl and policy_records/*meta.pkl (openpi)'
    policy = 'pi0'
    default_pooling: ClassVar[dict[str, Pooling]] = {
        'pre_velocity': (('horizon', 'mean'), ('denoise', 'mean'))
    }
    features: ClassVar[dict[str, tuple[str, ...]]] = {'pre_velocity': ('denoise', 'horizon')}

    @staticmethod
    def detect(path: Path) -> str | None:
        if not is_root(path) or find_policy(path) != 'pi0':
            return None
        return 'contains env_records and policy_records without tokens'
