# SPDX-License-Identifier: Apache-2.0
"""Copies the input of one submodule at each call, without any effect on the policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.methods import outside_graphs
from vla_feature_bridge.taps.preset import Preset
from vla_feature_bridge.taps.stack import HOST_DTYPES, Stacks, TensorStack

#: No policy makes more calls in one inference. With more calls, the tap is on a wrong submodule.
MAX_CALLS = 10_000
IN_A_GRAPH = (
    'expected an inference that is computed, found one that a CUDA graph records; a replay of the '
    'graph calls no tap: record the graph without this submodule, or infer without a graph'
)


@dataclass(eq=False)
class Running:
    """An inference that has begun and not ended, in one thread.

    Attributes
    ----------
    stacks : Stacks
        What was kept; ``states`` and ``logits`` are two of them.
    shape : torch.Size, or None
        Shape of the last input that fits the preset.
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
    inference : Inference, or None
        What was read of it, after its end.
    """

    stamp: int
    stacks: Stacks
    instruction: str = ''
    began: float = field(default_factory=time.perf_counter)
    thread: str = field(default_factory=lambda: threading.current_thread().name)
    shape: Any = None
    prompt: int | None = None
    token_ids: Any = None
    calls: int = 0
    depth: int = 1
    problems: dict[str, str] = field(default_factory=dict)
    inference: Inference | None = None

    @property
    def states(self) -> TensorStack:
        """What was kept of the inputs of the submodule."""
        return self.stacks.states

    @property
    def logits(self) -> TensorStack:
        """What was kept of the outputs of the submodule."""
        return self.stacks.logits

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
    shape = getattr(state, 'shape', None)
    # More is compared later, because each look at a tensor costs time here.
    if (shape is None or shape != running.shape) and not _fits(running, preset, horizon, state):
        return
    running.shape = shape
    if preset.keep == '[:, -1]':
        state = state[:, -1]
    elif horizon is not None:
        state = state[:, -horizon:]
    if not running.stacks.states.add(state):
        running.note('graph', f'{preset.module}: {IN_A_GRAPH}')


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
            f'{_advice_on_axes(preset, shape)}',
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
    if state.dtype not in HOST_DTYPES:
        running.note(
            'dtype', f'{where}: expected float32, bfloat16, float16 or float64, found {state.dtype}'
        )
        return False
    return True


def _advice_on_axes(preset: Preset, shape: tuple[int, ...]) -> str:
    """Return what to do about an input whose number of axes is wrong."""
    if not preset.is_by_hand:
        return 'the preset is for another version of the policy'
    if 0 in shape or len(shape) < 2:
        return 'tap another submodule'
    if preset.keep != 'all':
        return f"choose another submodule, or keep='all' instead of keep={preset.keep!r}"
    count = len(shape) - 2 + preset.stacked
    names = [*preset.axes, *(f'axis_{n}' for n in range(len(preset.axes), count))][:count]
    return f'set axes={names}, and pooling for these axes only'


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
    if running.calls <= MAX_CALLS:
        running.logits.add(output[0, -1, tokens])
