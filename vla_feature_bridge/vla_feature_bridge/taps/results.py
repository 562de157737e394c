# SPDX-License-Identifier: Apache-2.0
"""Reads instruction, actions and tokens from the arguments and the result of an inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vla_feature_bridge.taps.capture import on_host
from vla_feature_bridge.taps.paths import find_value
from vla_feature_bridge.taps.preset import Preset

_PROMPTS = ('input_ids', 'inputs')


class ResultError(Exception):
    """A result does not match the preset. The text contains what was expected and found."""


def instruction_of(preset: Preset, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the instruction in the first argument of an inference; empty if there is none."""
    if not preset.instruction:
        return ''
    first = args[0] if args else next(iter(kwargs.values()), None)
    value = first.get(preset.instruction) if isinstance(first, Mapping) else None
    while isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1:
        value = value[0]
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, str) else ''


def actions_of(preset: Preset, result: Any) -> np.ndarray | None:
    """Return the action chunk that an inference returned, shape (1, horizon, action_dim).

    Raises
    ------
    ResultError
        The result does not have the form that the preset describes.
    """
    if not preset.actions:
        return None
    parts = preset.actions_from.split('.') if preset.actions_from else []
    joined = bool(parts) and parts[-1] == '*'
    value = _entry(result, parts[:-1] if joined else parts)
    if not joined:
        return _chunk(preset, value)
    if not isinstance(value, Mapping) or not value:
        raise ResultError(f'expected a mapping of actions, found {type(value).__name__}')
    return np.concatenate([_chunk(preset, entry) for entry in value.values()], axis=-1)


def _entry(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        try:
            value = value[int(part)] if part.isdecimal() else value[part]
        except (KeyError, IndexError, TypeError):
            raise ResultError(
                f'expected an entry {part!r} in the result, found {type(value).__name__}'
                + (f' with {", ".join(map(str, value))}' if isinstance(value, Mapping) else '')
            ) from None
    return value


def _chunk(preset: Preset, value: Any) -> np.ndarray:
    array = on_host(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != len(preset.actions) or array.dtype.kind not in 'fiu' or array.size == 0:
        raise ResultError(
            f'expected actions with the axes {", ".join(preset.actions)}, found shape '
            f'{array.shape} of {array.dtype}'
        )
    if 'batch' in preset.actions and len(array) != 1:
        raise ResultError(f'expected actions of a batch of 1, found shape {array.shape}')
    # The policy may change its own array later.
    return np.array(array.reshape((1,) * (3 - array.ndim) + array.shape))


def prompt_length(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the number of prompt tokens that ``generate`` returns again; None if unknown."""
    prompt = next((kwargs[name] for name in _PROMPTS if kwargs.get(name) is not None), None)
    if prompt is None and args:
        prompt = args[0]
    if isinstance(prompt, torch.Tensor) and prompt.ndim == 2:
        return int(prompt.shape[1])
    return 0 if kwargs.get('inputs_embeds') is not None else None


def token_ids_of(result: Any, prompt: int | None) -> np.ndarray:
    """Return the generated tokens, shape (tokens,).

    Parameters
    ----------
    result : object
        Tokens ``(1, tokens)``, or an output of ``generate`` that has ``sequences``.
    prompt : int or None
        Number of prompt tokens at the beginning of the result.

    Raises
    ------
    ResultError
        The result has no tokens of this shape, or the length of the prompt is unknown.
    """
    sequences = getattr(result, 'sequences', result)
    if not isinstance(sequences, torch.Tensor) or sequences.ndim != 2:
        raise ResultError(f'expected tokens of shape (1, tokens), found {type(sequences).__name__}')
    if len(sequences) != 1:
        raise ResultError(f'expected the tokens of one sequence, found {len(sequences)}')
    if prompt is None:
        raise ResultError('expected a prompt of tokens (input_ids), found none')
    ids: np.ndarray = sequences[0, prompt:].detach().cpu().numpy()
    return ids


def tokens_until_end(policy: Any, preset: Preset, ids: np.ndarray) -> int:
    """Return the number of tokens up to the end token, including it; of all if it is missing."""
    if not preset.end_token:
        return len(ids)
    tokenizer = find_value(policy, preset.tokenizer)
    convert = getattr(tokenizer, 'convert_tokens_to_ids', None)
    if not callable(convert):
        raise ResultError(f'expected a tokenizer at {preset.tokenizer}, found none')
    (found,) = np.nonzero(ids == convert(preset.end_token))
    return int(found[0]) + 1 if len(found) else len(ids)


def kept_vocabulary(policy: Any, preset: Preset) -> slice:
    """Return the part of the vocabulary over which token statistics are computed.

    ``fast``: the tokens of actions in PaliGemma's vocabulary, as pi0-FAST of LeRobot numbers them:
    the highest is ``vocab_size - 1 - fast_skip_tokens``.

    Raises
    ------
    ResultError
        The policy does not have what is needed.
    """
    if preset.vocabulary == 'all':
        return slice(None)
    size = find_value(policy, '_paligemma_tokenizer.vocab_size')
    skipped = find_value(policy, 'config.fast_skip_tokens')
    count = find_value(policy, 'action_tokenizer.vocab_size')
    if not all(isinstance(value, int) for value in (size, skipped, count)):
        raise ResultError(
            'expected _paligemma_tokenizer.vocab_size, config.fast_skip_tokens and '
            f'action_tokenizer.vocab_size, found {size}, {skipped}, {count}'
        )
    stop = size - skipped
    return slice(stop - count, stop)
