# SPDX-License-Identifier: Apache-2.0
"""Copies of tensors on their device, which another thread may bring to the host."""

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

    A stack can be used again after :meth:`clear`. It then needs no new memory, because the first
    use of new memory costs more time than the copy.

    On CUDA, a copy is made by the stream of the caller, who never waits. An event marks the end of
    the copies in each stream. :meth:`array` waits for these events in a stream of its own. Only
    the thread that asks for the array waits.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._capacity, self._count = max(1, capacity), 0
        self._data: torch.Tensor | None = None
        self._host: torch.Tensor | None = None
        self._kind: tuple[Any, ...] = ()
        self._slots: tuple[torch.Tensor, ...] = ()
        self._events: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def idle(self) -> bool:
        """True if no stream of CUDA may still write to the memory."""
        return not self._events

    @property
    def may_wait(self) -> bool:
        """True if another thread may read the tensors later, while the policy goes on."""
        return self._data is None or self._data.device.type in ('cpu', 'cuda')

    @property
    def size(self) -> int:
        """Memory of the tensors [bytes]."""
        return 0 if self._data is None else self._count * self._slots[0].nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one tensor; empty if no tensor was added."""
        return tuple(self._slots[0].shape) if self._count else ()

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
        if tensor.is_cuda:
            self._mark()
        return True

    def _allocate(self, like: torch.Tensor, count: int) -> None:
        """Make memory for ``count`` tensors, and keep the ones that are there."""
        # A tensor made in inference mode could not be written outside it, in the next inference.
        with torch.inference_mode(False), torch.no_grad():
            data = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
            if self._count:
                assert self._data is not None
                if like.is_cuda:
                    stream = torch.cuda.current_stream(like.device)
                    for event in self._events.values():
                        stream.wait_event(event)
                    self._data.record_stream(stream)
                data[: self._count] = self._data
            self._data, self._slots, self._host = data, data.unbind(), None

    def _mark(self) -> None:
        """Note that the present stream of this thread writes to the memory."""
        assert self._data is not None
        stream = torch.cuda.current_stream(self._data.device)
        event = self._events.get(stream.cuda_stream)
        if event is None:
            event = self._events[stream.cuda_stream] = torch.cuda.Event()
            self._data.record_stream(stream)
        event.record(stream)

    def array(self, count: int) -> np.ndarray:
        """Return the first tensors on the host, shape (count, ...); bfloat16 as float32.

        One copy reaches the host. The array may be a view of the memory of this stack.
        """
        assert self._data is not None and 0 < count <= self._count
        data = self._data[:count]
        return on_host(self._from_cuda(data) if data.is_cuda else data)

    def _from_cuda(self, data: torch.Tensor) -> torch.Tensor:
        """Return a copy on the host, when all streams have written."""
        stream = _STREAMS.get(data.device.index)
        if stream is None:
            stream = _STREAMS[data.device.index] = torch.cuda.Stream(data.device)
        for event in self._events.values():
            stream.wait_event(event)
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.stream(stream):
            host = self._host_memory(data)[: len(data)]
            host.copy_(data, non_blocking=True)
            # A blocking event lets the processor work on something else while this thread waits.
            done = torch.cuda.Event(blocking=True)
            done.record(stream)
        done.synchronize()
        self._events.clear()
        return host

    def _host_memory(self, data: torch.Tensor) -> torch.Tensor:
        if self._host is None or len(self._host) < len(data):
            try:
                self._host = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
            except RuntimeError:  # The system locks no more memory: the copy takes longer.
                self._host = torch.empty(data.shape, dtype=data.dtype)
        return self._host

    @property
    def dtype(self) -> str:
        """Name of the dtype, as PyTorch calls it; empty if no tensor was added."""
        return (
            str(self._data.dtype).removeprefix('torch.')
            if self._count and self._data is not None
            else ''
        )


class Stacks:
    """The memory of one inference, which another inference may use later.

    Attributes
    ----------
    states, logits : TensorStack
        What was kept at each call of the submodule.
    """

    def __init__(self, capacity: int) -> None:
        self.states, self.logits = TensorStack(capacity), TensorStack(capacity)
        self._results: list[TensorStack] = []
        self._used = 0

    def keep(self, tensor: torch.Tensor) -> TensorStack:
        """Copy a result of the inference."""
        if self._used == len(self._results):
            self._results.append(TensorStack(1))
        stack = self._results[self._used]
        self._used += 1
        stack.add(tensor)
        return stack

    def _all(self) -> list[TensorStack]:
        return [self.states, self.logits, *self._results]

    @property
    def size(self) -> int:
        """Memory of what was kept [bytes]."""
        return sum(stack.size for stack in self._all())

    @property
    def idle(self) -> bool:
        """True if no stream of CUDA may still write to the memory."""
        return all(stack.idle for stack in self._all())

    @property
    def may_wait(self) -> bool:
        """True if another thread may read what was kept, while the policy goes on."""
        return all(stack.may_wait for stack in self._all())

    def clear(self) -> None:
        """Forget what was kept, and keep the memory."""
        self._used = 0
        for stack in self._all():
            stack.clear()


def is_captured(value: Any) -> bool:
    """Return True while a graph of CUDA is made of the work on a tensor.

    A replay of the graph calls no hook, and what is copied into the graph belongs to no inference.
    """
    return (
        isinstance(value, torch.Tensor)
        and value.is_cuda
        and bool(torch.cuda.is_current_stream_capturing())
    )


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, bfloat16 as float32; it may share the memory of the tensor."""
    host = tensor.detach().to('cpu')
    array: np.ndarray = host.to(HOST_DTYPES.get(host.dtype, host.dtype)).numpy()
    return array
