# SPDX-License-Identifier: Apache-2.0
"""Rollouts for tests: of noise unless a test gives its features, numbered, every second a failure.

Needs ``vla_feature_bridge`` and nothing else of the repository, as a robot has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vla_feature_bridge.rollout import Rollout


def make_rollout(
    index: int = 0,
    *,
    steps: int = 3,
    dim: int = 4,
    dtype: DTypeLike = np.float32,
    rng: np.random.Generator | None = None,
    **fields: Any,
) -> Rollout:
    """Return the rollout of a number: a success of 'task 0' or, odd, a failure of 'task 1'.

    Parameters
    ----------
    index : int
        Its ``episode_index``.
    steps, dim, dtype
        Shape (steps, dim) and type of the features.
    rng : numpy.random.Generator, optional
        Draws the features from a normal distribution; by default one that the number seeds.
    **fields
        Fields of :class:`Rollout` to set. ``features`` are taken as they are.
    """
    if 'features' not in fields:
        generator = np.random.default_rng(index) if rng is None else rng
        fields['features'] = generator.normal(size=(steps, dim)).astype(dtype)
    default = {'task': f'task {index % 2}', 'success': index % 2 == 0, 'episode_index': index}
    return Rollout(**{**default, **fields})


def make_rollouts(
    count: int,
    *,
    steps: int | tuple[int, int] = (5, 9),
    dim: int = 4,
    dtype: DTypeLike = np.float32,
    rng: np.random.Generator | int = 0,
    looks: Callable[[np.ndarray, bool], np.ndarray] = lambda noise, failed: noise,
    **fields: Any,
) -> list[Rollout]:
    """Return rollouts of the numbers 0 to count - 1, whose failures may look otherwise.

    Parameters
    ----------
    count : int
    steps : int or (int, int)
        Number of steps, or the first number that is drawn and the first that is not.
    dim, dtype
        Width and type of the features.
    rng : numpy.random.Generator or int
        Draws, rollout by rollout, the number of steps and the noise; an int is its seed.
    looks : function of ((T, dim) noise, failed), optional
        Returns the features of a rollout.
    **fields
        Fields of each rollout; a function is called with its number.
    """
    generator = np.random.default_rng(rng)
    made = []
    for index in range(count):
        mine = _of(index, fields)
        length = steps if isinstance(steps, int) else int(generator.integers(*steps))
        failed = mine.get('success', index % 2 == 0) is False
        features = looks(generator.normal(size=(length, dim)), failed)
        made.append(make_rollout(index, features=features.astype(dtype), **mine))
    return made


def make_full_rollout(index: int = 0, *, steps: int = 5, **fields: Any) -> Rollout:
    """Return a failed rollout with a value in every field; NaN where a step emitted no token."""
    rng = np.random.default_rng(100 + index)
    tokens = rng.random((steps, 7)).astype(np.float32)
    tokens[-1, 5:] = np.nan
    full = {
        'task': 'pick up',
        'success': False,
        'episode_id': f'odd/name {index}',
        'task_id': 7,
        'instruction': 'pick up the “red” cube',
        'policy': 'pi0',
        'actions': rng.normal(size=(steps, 2, 8, 4)).astype(np.float16),
        'exec_horizon': 4,
        'token_probability': tokens,
        'token_entropy': tokens * 2,
        'signals': {
            'chunk_mse': np.arange(steps, dtype=np.float32),
            'entropy_linkage.01': np.ones(steps, np.float32),
        },
        'stamps': np.arange(steps, dtype=np.int64) * 10**17,
        'inference_time': np.full(steps, 0.125, np.float32),
        'failure_step': 3,
        'video': 'task7.mp4',
        'action_space': 'robot',
    }
    return make_rollout(index, steps=steps, **{**full, **fields})


def _of(index: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value(index) if callable(value) else value for name, value in fields.items()}
