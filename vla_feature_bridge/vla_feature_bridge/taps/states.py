# SPDX-License-Identifier: Apache-2.0
"""What a tap keeps of the hidden states of one inference: pooled vectors, or copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.taps.preset import Preset
from vla_feature_bridge.taps.tensor_stack import TensorStack, on_host


class States:
    """The hidden states of the calls of one inference.

    A state on the CPU is pooled over its positions in the call. This reads memory that the policy
    has just written, and needs less time than a copy that is pooled at the end. A state on another
    device is copied there, and pooled on the host at the end. Both give the same features.

    It can be used again after :meth:`clear`.

    Parameters
    ----------
    preset : Preset
    capacity : int
        Usual number of calls.
    """

    def __init__(self, preset: Preset, capacity: int = 8) -> None:
        self._preset, self._spec = preset, preset.spec
        self._parts = _parts_of(preset)
        self._copies = TensorStack(capacity)
        self._vectors: list[np.ndarray] = []
        # Shape, dtype and device of the states that were pooled.
        self._kind: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self._vectors) or len(self._copies)

    def clear(self) -> None:
        """Forget the states, and keep the memory for the next ones."""
        self._vectors = []
        self._copies.clear()

    @property
    def dtype(self) -> str:
        """Name of the dtype of the states, as PyTorch calls it; empty if there is none."""
        if self._vectors:
            return str(self._kind[1]).removeprefix('torch.')
        return self._copies.dtype

    def add(self, state: torch.Tensor) -> bool:
        """Keep a state, shape (1, ..., D); False if its kind differs from that of the first one."""
        # A subclass can be a tensor whose memory is somewhere else.
        if self._parts is None or type(state) is not torch.Tensor or not state.is_cpu:
            return not self._vectors and self._copies.add(state)
        kind = (state.shape, state.dtype, state.device)
        if len(self) and (kind != self._kind or not self._vectors):
            return False
        self._kind = kind
        # The pooled array may be a view of the memory of the policy.
        self._vectors.append(np.array(self._parts[0].apply(self._arranged(on_host(state)[0]))))
        return True

    def features(self, count: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return the features of the first calls, and the shape of their raw tensor.

        Parameters
        ----------
        count : int
            Number of calls, at least 1.

        Returns
        -------
        features : ndarray
            Pooled, float32 (D,); or the raw tensor, which may be a view of this object.
        shape : tuple of int
            One for each axis, and the width.

        Raises
        ------
        ValueError
            Fewer calls were kept.
        """
        if not 0 < count <= len(self):
            raise ValueError(f'expected {count} states, found {len(self)}')
        stacked = self._preset.stacked
        if self._parts is not None and self._vectors:
            shape = self._arranged(np.empty(self._kind[0][1:], np.bool_)).shape
            if not stacked:
                return self._vectors[0], shape
            return self._parts[1].apply(np.stack(self._vectors[:count])), (count, *shape)
        raw = self._copies.array(count)[:, 0]
        raw = self._arranged(raw if stacked else raw[0])
        # A pooled array must not stay a view of the memory that the next inference will use.
        return (np.array(self._spec.apply(raw)) if self._spec.pooled else raw), raw.shape

    def _arranged(self, raw: np.ndarray) -> np.ndarray:
        """Return a state with its width behind."""
        return np.swapaxes(raw, -1, -2) if self._preset.keep == 'channels_first' else raw


def _parts_of(preset: Preset) -> tuple[FeatureSpec, FeatureSpec] | None:
    """Return the pooling of one state, and the pooling of the calls after it.

    None if the features are raw, if there is nothing to pool in a state, or if the axis of the
    calls is not the last one that is pooled.
    """
    spec, calls = preset.spec, int(preset.stacked)
    inside, after = spec.axes[calls:], spec.axes[:calls]
    pooling = spec.pooling[: len(inside)]
    if not spec.pooled or not inside or sorted(axis for axis, _ in pooling) != sorted(inside):
        return None
    return (
        FeatureSpec(spec.name, 0, inside, pooling),
        FeatureSpec(spec.name, 0, after, spec.pooling[len(inside) :]),
    )
