# SPDX-License-Identifier: Apache-2.0
"""Copies of tensors on their device, and their way to the host."""

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
        """Make memory for ``count`` tensors, and keep the ones that are there."""
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


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, bfloat16 as float32; it may share the memory of the tensor."""
    host = tensor.detach().to('cpu')
    array: np.ndarray = host.to(HOST_DTYPES.get(host.dtype, host.dtype)).numpy()
    return array
