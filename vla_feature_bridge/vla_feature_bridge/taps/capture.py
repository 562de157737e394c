# SPDX-License-Identifier: Apache-2.0
"""Copies the input of one submodule at each call, without any effect on the policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from vla_feature_bridge.taps.methods import outside_graphs
from vla_feature_bridge.taps.preset import Preset

#: No policy makes more calls in one inference. With more calls, the tap is on a wrong submodule.
MAX_CALLS = 10_000

#: dtypes that NumPy has; bfloat16 becomes float32, which is exact.
_HOST_DTYPES = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float16,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


class TensorStack:
    """Copies of tensors of one shape, one after the other, on their device.

    A stack can be used again after :meth:`clear`. It then needs no new memory, because the first
    use of new memory costs more time than the copy.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._capacity, self._count = max(1, capacity), 0
        self._data: torch.Tensor | None = None
        self._kind: tuple[Any, ...] = ()
        self._slots: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Forget the tensors, and keep the memory for the next tensors."""
        self._count = 0

    def add(self, tensor: torch.Tensor) -> bool:
        """Copy a tensor. Return False if its shape, dtype or device differs from the first."""
        kind = (tensor.shape, tensor.dtype, tensor.device)
        if kind != self._kind:
            if self._count:
                return False
            self._kind = kind
            self._allocate(tensor, self._capacity)
        elif self._count == len(self._slots):
            self._allocate(tensor, 2 * self._count)
        self._slots[self._count].copy_(tensor.detach() if tensor.requires_grad else tensor)
        self._count += 1
        return True

    def _allocate(self, like: torch.Tensor, count: int) -> None:
        """Allocate memory for ``count`` tensors, and keep the existing tensors."""
        # A tensor made in inference mode could not be written outside it, in the next inference.
        with torch.inference_mode(False), torch.no_grad():
            data = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
            if self._count:
                assert self._data is not None
                data[: self._count] = self._data
            self._data, self._slots = data, data.unbind()

    def array(self, count: int) -> np.ndarray:
        """Return the first tensors on the host, shape (count, ...); bfloat16 as float32.

        One copy reaches the host. An array of a policy on the CPU is a view of this stack.
        """
        assert self._data is not None and 0 < count <= self._count
        return on_host(self._data[:count])

    @property
    def dtype(self) -> str:
        """Name of the dtype, as PyTorch calls it; empty if no tensor was added."""
        return (
            str(self._data.dtype).removeprefix('torch.')
            if self._count and self._data is not None
            else ''
        )


@dataclass(eq=False)
class Running:
    """An inference that has begun and not ended, in one thread.

    Attributes
    ----------
    states, logits : TensorStack
        The kept tensors of each call.
    fitting : tuple, or None
        Shape and dtype of an input that fits the preset.
    prompt : int or None
        Tokens of the prompt that the method returns again.
    token_ids : torch.Tensor, or None
        The tokens that a method returned.
    calls : int
        Number of calls of the submodule, including calls whose tensors were not kept.
    depth : int
        Number of nested calls of wrapped methods.
    problems : dict of str to str
        Kind of problem to its text.
    """

    stamp: int
    states: TensorStack
    logits: TensorStack
    instruction: str = ''
    began: float = field(default_factory=time.perf_counter)
    thread: str = field(default_factory=lambda: threading.current_thread().name)
    fitting: Any = None
    prompt: int | None = None
    token_ids: Any = None
    calls: int = 0
    depth: int = 1
    problems: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, text: str) -> None:
        """Keep the first problem of each kind."""
        self.problems.setdefault(kind, text)


class CallHook:
    """A hook of a submodule: calls a function, and changes nothing.

    A copy of the policy (``copy.deepcopy``, pickle) has a hook that does nothing.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = outside_graphs(function)

    def __call__(self, module: nn.Module, *call: Any) -> None:
        self._function(*call)

    def __reduce__(self) -> tuple[Any, ...]:
        return CallHook, (_do_nothing,)


def _do_nothing(*call: Any) -> None:
    return None


def keep_state(running: Running, preset: Preset, horizon: int | None, call: Any) -> None:
    """Add a copy of the kept part of one input to a running inference, or a problem.

    Parameters
    ----------
    running : Running
    preset : Preset
    horizon : int or None
        Number of positions for ``[:, -action_horizon:]``.
    call : tuple
        Positional arguments and keywords of the submodule.
    """
    running.calls += 1
    if running.calls > MAX_CALLS:
        running.states.clear()
        running.note(
            'wrong_calls', f'more than {MAX_CALLS} calls of {preset.module} in one inference'
        )
        return
    args, kwargs = call
    key = preset.argument
    try:
        state = kwargs[key] if isinstance(key, str) else args[key]
    except (IndexError, KeyError):
        running.note(
            'shape',
            f'{preset.module}: expected argument {key!r}, found {len(args)} positions and the '
            f'keywords {sorted(kwargs)}; set `argument` of the preset',
        )
        return
    kind = (getattr(state, 'shape', None), getattr(state, 'dtype', None))
    if kind != running.fitting and not _fits(running, preset, horizon, state):
        return
    running.fitting = kind
    if preset.keep == '[:, -1]':
        state = state[:, -1]
    elif horizon is not None:
        state = state[:, -horizon:]
    if not running.states.add(state):
        running.note(
            'shape',
            f'{preset.module}: expected inputs of one shape, dtype and device in an inference, '
            f'found another at call {running.calls - 1}: {tuple(state.shape)} of {state.dtype}',
        )


def _fits(running: Running, preset: Preset, horizon: int | None, state: Any) -> bool:
    """Return True if an input has the shape and dtype that the preset expects; notes a problem."""
    where = f'input {running.calls - 1} of {preset.module}'
    if not isinstance(state, torch.Tensor):
        running.note('shape', f'{where}: expected a tensor, found {type(state).__name__}')
        return False
    shape = tuple(state.shape)
    axes = 2 + preset.positions + (preset.keep == '[:, -1]')
    if len(shape) != axes or 0 in shape:
        layout = {
            'all': 'the batch, the axes of positions and the width',
            'channels_first': 'batch, width, positions',
        }.get(preset.keep, 'batch, positions, width')
        running.note(
            'shape',
            f'{where}: expected {axes} axes ({layout}), found shape {shape}; '
            'the preset is for another version of the policy',
        )
        return False
    if shape[0] != 1:
        running.note(
            'batch',
            f'{where}: expected a batch of 1, found {shape[0]}; a step is one observation of one '
            'robot: give the policy one observation, and do not use beam search (num_beams > 1)',
        )
        return False
    if horizon is not None and shape[1] < horizon:
        running.note(
            'shape',
            f'{where}: expected at least {horizon} positions (action_horizon), found shape {shape}',
        )
        return False
    if state.dtype not in _HOST_DTYPES:
        running.note(
            'dtype', f'{where}: expected float32, bfloat16, float16 or float64, found {state.dtype}'
        )
        return False
    return True


def keep_logits(running: Running, tokens: slice, output: Any) -> None:
    """Add a copy of the logits of one token to a running inference, or a problem.

    Parameters
    ----------
    running : Running
    tokens : slice
        The part of the vocabulary to keep.
    output : torch.Tensor, shape (1, positions, vocabulary)
        The last position is the token.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 3 or output.shape[0] != 1:
        shape = tuple(getattr(output, 'shape', ()))
        running.note('tokens', f'expected logits (1, positions, vocabulary), found shape {shape}')
        return
    if running.calls <= MAX_CALLS and not running.logits.add(output[0, -1, tokens]):
        running.note('tokens', f'expected logits of one shape, found {tuple(output.shape)}')


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, bfloat16 as float32; it may share the memory of the tensor."""
    host = tensor.detach().to('cpu')
    array: np.ndarray = host.to(_HOST_DTYPES.get(host.dtype, host.dtype)).numpy()
    return array
