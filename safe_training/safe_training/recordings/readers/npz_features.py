# SPDX-License-Identifier: Apache-2.0
"""Chooses the feature of an npz archive by the headers of its arrays, and lists unread arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.recordings.errors import DumpError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import NO_FEATURE
from vla_feature_bridge.tensors import FLOATS
from vla_feature_bridge.tokens import TokenError, pad_tokens, token_statistics

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

_DEFAULTS = ('features', 'feat_mean')
#: Names of the same quantity; the first name that the archive has is read.
TOKEN_NAMES = {
    'token_probability': ('token_prob', 'token_probability', 'token_probs'),
    'token_entropy': ('token_entropy', 'token_entropies'),
}
LOGITS = 'logits'
_EPISODE_ARRAYS = {
    *('offsets', 'success', 'task', 'instruction', 'episode_index', 'episode_idx'),
    *('task_id', 'task_names', 'task_instructions', 'meta_json'),
}
_STEP_ARRAYS = {
    *('sampled_actions', 'action', 'action_signal_names', LOGITS),
    *(name for names in TOKEN_NAMES.values() for name in names),
}
_SIGNALS = 'action_signals'
_CHOOSE = f'choose one with --feature NAME, or read without features with --feature {NO_FEATURE}'


def choose_feature(path: Path, shapes: Shapes, steps: int, asked: str | None) -> FeatureSpec:
    """Return the feature of an archive: the array that was asked for, or the default.

    Parameters
    ----------
    path : Path
        The archive, for messages.
    shapes : mapping of str to (shape, dtype)
        All arrays of the archive.
    steps : int
        Number of steps of all episodes.
    asked : str or None
        The name that a person chose.

    Raises
    ------
    DumpError
        The array is missing or does not fit, or a person must choose. A possible feature is never
        ignored without a message.
    """
    possible = [name for name in shapes if name not in _EPISODE_ARRAYS | _STEP_ARRAYS]
    fitting = [name for name in possible if not _misfit(*shapes[name], steps)]
    if asked is None:
        asked = _default(path, shapes, steps, possible)
    if asked == NO_FEATURE:
        return FeatureSpec(NO_FEATURE, 0)
    if asked not in possible:
        raise DumpError(
            where=str(path),
            expected=f'one of the features {", ".join([*fitting, NO_FEATURE])}',
            found=repr(asked),
            advice='give one of these names as --feature',
        )
    shape, dtype = shapes[asked]
    if advice := _misfit(shape, dtype, steps):
        raise DumpError(
            where=str(path),
            expected=f'{asked} with float values and the shape ({steps}, width), one row for each '
            'step',
            found=f'the dtype {dtype} and the shape {shape}',
            advice=advice,
        )
    return FeatureSpec(asked, dim=shape[1])


def _default(path: Path, shapes: Shapes, steps: int, possible: list[str]) -> str:
    for name in _DEFAULTS:
        if name in shapes:
            return name
    named = [name for name in possible if name.startswith('feat')]
    if len(named) == 1:
        return named[0]
    # Any array with a row for each step is a possible feature, also with another name.
    others = [
        name
        for name in possible
        if name != _SIGNALS and shapes[name][0][:1] == (steps,) and len(shapes[name][0]) > 1
    ]
    if not named and not others:
        return NO_FEATURE
    listed = ', '.join(f'{name} {_text(*shapes[name])}' for name in (named or others)[:8])
    raise DumpError(
        where=str(path),
        expected=f'a feature with the name {" or ".join(_DEFAULTS)}',
        found=f'the arrays {listed}',
        advice=_CHOOSE,
    )


def _misfit(shape: tuple[int, ...], dtype: np.dtype[Any], steps: int) -> str:
    """Return what to do with an array that cannot be the feature; empty if it can be."""
    if shape[:1] != (steps,):
        return (
            'write one row for each step, as stated by offsets, or choose another array with '
            '--feature NAME'
        )
    if len(shape) != 2:
        axes = tuple(range(1, len(shape) - 1))
        if len(shape) < 2:
            return 'write one vector for each step, for example array[:, None]'
        return (
            'pool each step to one vector and write the archive again, for example with '
            f'array.mean(axis={axes[0] if len(axes) == 1 else axes})'
        )
    if dtype.name not in FLOATS:
        return 'write the array as float, for example with array.astype("float32")'
    return '' if shape[1] else 'write an array with at least one column'


def not_read(shapes: Shapes, feature: str, used: set[str]) -> list[str]:
    """Return a note that lists the arrays that are not read; no note if all are read.

    Parameters
    ----------
    shapes : mapping of str to (shape, dtype)
    feature : str
        The array that is read as the feature.
    used : set of str
        Names of the other arrays that are read.
    """
    left = [name for name in shapes if name not in {feature, *used}]
    if not left:
        return []
    listed = ', '.join(f'{name} {_text(*shapes[name])}' for name in left[:16])
    more = f' and {len(left) - 16} more' if len(left) > 16 else ''
    return [f'these arrays are not read: {listed}{more}']


def statistics_of_logits(where: str, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probability and entropy of every token, float32 (steps, tokens).

    Parameters
    ----------
    where : str
        Archive and episode, for messages.
    logits : ndarray, shape (steps, tokens, vocabulary)
    """
    try:
        pairs = [token_statistics(step) for step in logits]
    except TokenError as error:
        raise DumpError(f'{where}: {LOGITS}: {error}') from error
    return pad_tokens([p for p, _ in pairs]), pad_tokens([e for _, e in pairs])


def _text(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f'{dtype} {shape}'
