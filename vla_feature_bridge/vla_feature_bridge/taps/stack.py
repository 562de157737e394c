# SPDX-License-Identifier: Apache-2.0
"""Copies of tensors on their device. Another thread can copy them to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

#: dtypes that NumPy has; bfloat16 becomes float32, which is exact.
HOST_DTYPES = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float16,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
#: Streams on which copies reach the host, by the number of the CUDA device.
_STREAMS: dict[int | None, Any] = {}


class TensorStack:
    """Copies of tensors of one shape, one after the other, on their device.

    :meth:`add` runs in the thread of the policy, at each call of a submodule. It only copies.
    Another thread checks whether the tensors have one shape and dtype, and joins them.

    On CUDA, the stream of the caller makes the copy, and the caller never waits. An event marks the
    end of the copies in each stream. :meth:`array` waits for these events in a stream of its own.
    Only the thread that asks for the array waits.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._on_cuda = False
        self._events: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def may_wait(self) -> bool:
        """True if another thread may read the tensors later, while the policy continues."""
        return not self._tensors or self._tensors[0].device.type in ('cpu', 'cuda')

    @property
    def size(self) -> int:
        """Memory of the tensors, if all are as large as the first [bytes]."""
        return len(self._tensors) * self._tensors[0].nbytes if self._tensors else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor; empty if no tensor was added."""
        return tuple(self._tensors[0].shape) if self._tensors else ()

    @property
    def dtype(self) -> str:
        """Name of the dtype, as PyTorch calls it; empty if no tensor was added."""
        return str(self._tensors[0].dtype).removeprefix('torch.') if self._tensors else ''

    def clear(self) -> None:
        """Forget the tensors."""
        self._tensors = []

    def add(self, tensor: torch.Tensor) -> bool:
        """Copy a tensor. Return False, and copy nothing, while CUDA records a graph."""
        if not self._tensors:
            self._on_cuda = tensor.is_cuda
        if self._on_cuda and torch.cuda.is_current_stream_capturing():
            return False
        self._tensors.append(tensor.detach().clone() if tensor.requires_grad else tensor.clone())
        if self._on_cuda:
            stream = torch.cuda.current_stream(tensor.device)
            event = self._events.get(stream.cuda_stream)
            if event is None:
                event = self._events[stream.cuda_stream] = torch.cuda.Event()
            event.record(stream)
        return True

    def odd(self) -> tuple[int, str] | None:
        """Return number and kind of the first tensor that differs from the first of all, or None.

        The kind is shape and dtype; the device counts too.
        """
        kinds = [(tuple(t.shape), t.dtype, t.device) for t in self._tensors]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                return number, f'{kind[0]} of {kind[1]}'
        return None

    def array(self, count: int) -> np.ndarray:
        """Return the first tensors on the host, shape (count, ...); bfloat16 as float32.

        The array has memory of its own. All tensors must be alike, see :meth:`odd`.
        """
        assert 0 < count <= len(self._tensors)
        tensors = self._tensors[:count]
        with torch.inference_mode(False), torch.no_grad():
            host = self._from_cuda(tensors) if self._on_cuda else _joined(tensors).to('cpu')
            # From CUDA, also the same dtype is copied: an array must not keep pinned memory.
            dtype = HOST_DTYPES.get(host.dtype, host.dtype)
            array: np.ndarray = host.to(dtype, copy=self._on_cuda).numpy()
        return array

    def _from_cuda(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Return the tensors on the host, when all streams have written them."""
        device = tensors[0].device
        stream = _STREAMS.get(device.index)
        if stream is None:
            stream = _STREAMS[device.index] = torch.cuda.Stream(device)
        for event in self._events.values():
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            data = _joined(tensors)
            host = _pinned(data)
            host.copy_(data, non_blocking=True)
            # A blocking event lets the processor work on something else while this thread waits.
            done = torch.cuda.Event(blocking=True)
            done.record(stream)
        done.synchronize()
        return host


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


def _pinned(data: torch.Tensor) -> torch.Tensor:
    """Return memory of the host for a tensor, to which CUDA copies without a detour."""
    try:
        return torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
    except RuntimeError:  # The system locks no more memory: the copy takes longer.
        return torch.empty(data.shape, dtype=data.dtype)


class Stacks:
    """What is kept of one inference.

    Attributes
    ----------
    states, logits : TensorStack
        What was kept at each call of the submodule.
    results : list of TensorStack
        What was kept of what methods returned, one tensor each.
    """

    def __init__(self) -> None:
        self.states, self.logits = TensorStack(), TensorStack()
        self.results: list[TensorStack] = []

    def keep(self, tensor: torch.Tensor) -> TensorStack:
        """Copy a result of the inference."""
        stack = TensorStack()
        stack.add(tensor)
        self.results.append(stack)
        return stack

    @property
    def size(self) -> int:
        """Memory of what was kept [bytes]."""
        return sum(stack.size for stack in (self.states, self.logits, *self.results))

    @property
    def may_wait(self) -> bool:
        """True if another thread may read what was kept, while the policy continues."""
        return all(stack.may_wait for stack in (self.states, self.logits, *self.results))


def is_captured(value: Any) -> bool:
    """Return True while a graph of CUDA is made of the work on a tensor.

    A replay of the graph calls no hook, and what is copied into the graph belongs to no inference.
    """
    return (
        isinstance(value, torch.Tensor)
        and value.is_cuda
        and bool(torch.cuda.is_current_stream_capturing())
    )
