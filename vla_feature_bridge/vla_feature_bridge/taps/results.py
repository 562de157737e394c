# SPDX-License-Identifier: Apache-2.0
"""Reads instruction, actions and tokens from the arguments and the result of an inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vla_feature_bridge.taps.capture import IN_A_GRAPH
from vla_feature_bridge.taps.paths import find_value
from vla_feature_bridge.taps.preset import Preset
from vla_feature_bridge.taps.stack import HOST_DTYPES, TensorStack, is_captured

#: Copies a tensor of a result on its device.
Keep = Callable[[torch.Tensor], TensorStack]
_PROMPTS = ('input_ids', 'inputs')


class ResultError(Exception):
    """A result does not match the preset. The text contains what was expected and found."""


def plain_instruction(prompt: str) -> str:
    """Return the instruction of a prompt: the processors of LeRobot's policies change ``task``.

    Those of pi0.5 and pi0-FAST write ``Task: INSTRUCTION, State: NUMBERS;`` and ``Action:``, other
    numbers at each inference. Those of pi0 and SmolVLA add a new line.
    """
    text = prompt.strip()
    task, _, state = text.rpartition(', State: ')
    numbers, _, rest = state.partition(';')
    is_prompt = (
        task.startswith('Task: ')
        and rest.strip() in ('', 'Action:')
        and all(word.removeprefix('-').isdecimal() for word in numbers.split())
    )
    return task.removeprefix('Task: ') if is_prompt else text


def instruction_of(preset: Preset, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the instruction in the first argument of an inference; empty if there is none."""
    if not preset.instruction:
        return ''
    first = args[0] if args else next(iter(kwargs.values()), None)
    value = first.get(preset.instruction) if isinstance(first, Mapping) else None
    while isinstance(value, (list, tuple, np.ndarray, Mapping)):
        if isinstance(value, np.ndarray):
            value = value.tolist()
        elif len(value) == 1:
            (value,) = value.values() if isinstance(value, Mapping) else value
        else:
            return ''
    return plain_instruction(value) if isinstance(value, str) else ''


@dataclass(frozen=True, eq=False)
class KeptActions:
    """Copies of the action chunk that an inference returned.

    Attributes
    ----------
    parts : list of ndarray or TensorStack
        Arrays or tensors that :meth:`array` joins along the last axis.
    """

    parts: list[np.ndarray | TensorStack]

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return sum(part.shape[-1] for part in self.parts)

    def array(self) -> np.ndarray:
        """Return the chunk, shape (1, horizon, action_dim)."""
        arrays = [
            part.array(1)[0] if isinstance(part, TensorStack) else part for part in self.parts
        ]
        chunks = [a.reshape((1,) * (3 - a.ndim) + a.shape) for a in arrays]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks, axis=-1)


def actions_of(preset: Preset, result: Any, keep: Keep) -> KeptActions | None:
    """Return a copy of the action chunk that an inference returned; None if it returns none.

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
        return KeptActions([_chunk(preset, value, keep)])
    if not isinstance(value, Mapping) or not value:
        raise ResultError(f'expected a mapping of actions, found {type(value).__name__}')
    return KeptActions([_chunk(preset, entry, keep) for entry in value.values()])


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


def _chunk(preset: Preset, value: Any, keep: Keep) -> np.ndarray | TensorStack:
    """Return a copy of actions, because the policy may change its own later."""
    value = value if isinstance(value, torch.Tensor) else np.asarray(value)
    shape = tuple(value.shape)
    if len(shape) != len(preset.actions) or not _is_real(value.dtype) or 0 in shape:
        raise ResultError(
            f'expected actions with the axes {", ".join(preset.actions)}, found shape '
            f'{shape} of {str(value.dtype).removeprefix("torch.")}'
        )
    if 'batch' in preset.actions and shape[0] != 1:
        raise ResultError(f'expected actions of a batch of 1, found shape {shape}')
    if is_captured(value):
        raise ResultError(IN_A_GRAPH)
    return keep(value) if isinstance(value, torch.Tensor) else np.array(value)


def _is_real(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return dtype in HOST_DTYPES or not (
            dtype.is_floating_point or dtype.is_complex or dtype == torch.bool
        )
    return bool(dtype.kind in 'fiu')


def prompt_length(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the number of prompt tokens that ``generate`` returns again; None if unknown."""
    prompt = next((kwargs[name] for name in _PROMPTS if kwargs.get(name) is not None), None)
    if prompt is None and args:
        prompt = args[0]
    if isinstance(prompt, torch.Tensor) and prompt.ndim == 2:
        return int(prompt.shape[1])
    return 0 if kwargs.get('inputs_embeds') is not None else None


def token_ids_of(result: Any, prompt: int | None, keep: Keep) -> TensorStack:
    """Return a copy of the generated tokens, shape (tokens,).

    Parameters
    ----------
    result : object
        Tokens ``(1, tokens)``, or an output of ``generate`` that has ``sequences``.
    prompt : int or None
        How many tokens of the prompt come first.
    keep : callable
        Copies a tensor on its device.

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
    if is_captured(sequences):
        raise ResultError(IN_A_GRAPH)
    return keep(sequences[0, prompt:])


def end_token_of(policy: Any, preset: Preset) -> Any:
    """Return the id of the end token; None if the preset names none.

    Raises
    ------
    ResultError
        The policy has no tokenizer where the preset says.
    """
    if not preset.end_token:
        return None
    tokenizer = find_value(policy, preset.tokenizer)
    convert = getattr(tokenizer, 'convert_tokens_to_ids', None)
    if not callable(convert):
        raise ResultError(f'expected a tokenizer at {preset.tokenizer}, found none')
    return convert(preset.end_token)


def tokens_until_end(ids: np.ndarray, end_token: Any) -> int:
    """Return the number of tokens up to the end token, including it; of all if it is missing."""
    if end_token is None:
        return len(ids)
    (found,) = np.nonzero(ids == end_token)
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
