# SPDX-License-Identifier: Apache-2.0
"""How familiar a step is to networks trained on one outcome: RND and LogpZO.

Both are out-of-distribution detectors of FAIL-Detect (Xu et al., arXiv 2503.08558) as used for a
baseline by Gu et al. (arXiv 2506.09937): familiarity to successes minus familiarity to failures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import (
    Accumulate,
    Accumulator,
    accumulated,
    check_accumulate,
)
from safe_monitor_node.detectors.base import Detector, DetectorError, Stream, checked_vector
from safe_monitor_node.detectors.unet import UNet
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

PUBLISHED_DOWN_DIMS = (256, 512, 1024)
# Of the last normalisation, whatever that of the others is.
FINAL_GROUPS = 8
# Steps in one pass of the networks when whole rollouts are scored. Always as many, filled up with
# zeros: which kernel a convolution takes, and so its rounding, depends on the size of the batch.
_SCORED_TOGETHER = 16
# As torch.nn.PairwiseDistance.
EPS = 1e-6


def sequence_rows(entries: int, width: int, multiple: int) -> int:
    """Return the rows of ``width`` that hold ``entries`` numbers, rounded up to a multiple."""
    return math.ceil(math.ceil(entries / width) / multiple) * multiple


def as_sequence(vectors: torch.Tensor, width: int, multiple: int) -> torch.Tensor:
    """Reshape vectors ``(B, entries)`` to ``(B, rows, width)``, padded with zeros at the end."""
    rows = sequence_rows(vectors.shape[1], width, multiple)
    padded = nn.functional.pad(vectors, (0, rows * width - vectors.shape[1]))
    return padded.reshape(len(vectors), rows, width)


def real_entries(entries: int, width: int, multiple: int) -> torch.Tensor:
    """Return which entries ``(rows, width)`` of such a sequence are no padding."""
    rows = sequence_rows(entries, width, multiple)
    return (torch.arange(rows * width) < entries).reshape(rows, width)


class _Sizes(NamedTuple):
    """What all U-Nets of a detector have in common."""

    widths: tuple[int, ...]
    time_width: int
    kernel: int
    groups: int


def _unet(channels: int, condition: int, sizes: _Sizes) -> UNet:
    return UNet(channels, condition, **sizes._asdict(), final_groups=FINAL_GROUPS)


@functools.lru_cache(maxsize=16)
def _shapes(channels: int, condition: int, sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, without memory and without random numbers."""
    with torch.device('meta'):
        network = _unet(channels, condition, sizes)
    return {name: tuple(p.shape) for name, p in network.state_dict().items()}


class DensityDetector(Detector):
    """What RND and LogpZO share: U-Nets by name, and the difference of two familiarities."""

    outcomes: ClassVar[tuple[str, ...]] = ('success', 'failure')
    down_dims: Sequence[int] | None
    kernel_size: int
    groups: int
    time_dim: int
    success_only: bool
    accumulate: Accumulate
    epochs: int
    batch_size: int
    learning_rate: float
    lambda_reg: float
    reference_compatible: bool
    seed: int
    networks_: nn.ModuleDict

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter is impossible."""
        check_accumulate(self.name, self.accumulate)
        counts: dict[str, Any] = {
            name: getattr(self, name)
            for name in ('kernel_size', 'groups', 'time_dim', 'epochs', 'batch_size')
        }
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DetectorError(
                    f'{self.name}: {name} must be an integer of at least 1, found {value!r}'
                )
        if self.kernel_size % 2 == 0:
            raise DetectorError(f'{self.name}: kernel_size must be odd, found {self.kernel_size}')
        if self.time_dim % 2 or self.time_dim < 4:
            raise DetectorError(
                f'{self.name}: time_dim must be even and at least 4, found {self.time_dim}'
            )
        widths = self.widths()
        fits = len(widths) >= 2 and all(
            isinstance(width, int) and width > 0 and width % self.groups == 0 for width in widths
        )
        if not fits or widths[0] % FINAL_GROUPS:
            raise DetectorError(
                f'{self.name}: down_dims must be at least two multiples of groups ({self.groups}), '
                f'the first also one of {FINAL_GROUPS}, found {self.down_dims!r}'
            )

    def widths(self) -> list[int]:
        """Return the channels of the U-Net's levels."""
        if self.down_dims is None:
            return list(PUBLISHED_DOWN_DIMS)
        if not isinstance(self.down_dims, (list, tuple)):
            raise DetectorError(
                f'{self.name}: down_dims must be a list of integers, found {self.down_dims!r}'
            )
        return list(self.down_dims)

    @property
    def multiple(self) -> int:
        """Rows of a sequence come in multiples of this."""
        return int(2 ** (len(self.widths()) - 1))

    def trained_outcomes(self) -> tuple[str, ...]:
        """Return the outcomes that have a trained network."""
        return self.outcomes[:1] if self.success_only else self.outcomes

    def set_networks(self, networks: nn.ModuleDict, dim: int) -> None:
        """Adopt trained networks."""
        self.networks_ = networks.eval().requires_grad_(False)
        self.dim_ = dim

    def strangeness(self, outcome: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return how strange steps ``(n,)`` are to an outcome's network; float64."""
        raise AssertionError('each density detector defines its strangeness')

    def rollout_inputs(self, rollout: Rollout) -> tuple[torch.Tensor, ...]:
        """Return what the networks read of a rollout, checked; the first axis is time."""
        return (torch.from_numpy(self._checked_features(rollout)),)

    def step_inputs(self, step: PolicyStep) -> tuple[torch.Tensor, ...]:
        """Return what the networks read of a step, checked; the first axis has length 1."""
        return (torch.from_numpy(checked_vector(step, self.dim_, self.name))[None],)

    @torch.inference_mode()
    def values(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the scores of single steps ``(n,)`` as float64."""
        values = self.strangeness('success', inputs)
        if self.success_only:
            return values
        return values - self.strangeness('failure', inputs)

    def score(self, rollout: Rollout) -> np.ndarray:
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        self._require_fitted()
        scores: list[np.ndarray] = []
        for rollout in rollouts:
            steps = len(rollout)
            missing = -steps % _SCORED_TOGETHER
            batches = [
                torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]).split(
                    _SCORED_TOGETHER
                )
                for tensor in self.rollout_inputs(rollout)
            ]
            values = torch.cat([self.values(batch) for batch in zip(*batches, strict=True)])
            scores.append(accumulated(values[:steps].numpy(), self.accumulate))
        return scores

    def stream(self) -> Stream:
        self._require_fitted()
        return _DensityStream(self)

    def state(self) -> dict[str, np.ndarray]:
        self._require_fitted()
        return {
            name: p.detach().cpu().numpy().copy() for name, p in self.networks_.state_dict().items()
        }

    def layout(self, dim: int) -> tuple[tuple[str, ...], int, int]:
        """Return the networks' names, their channels and the width of their condition."""
        raise AssertionError('each density detector lays out its networks')

    def _sizes(self) -> _Sizes:
        return _Sizes(tuple(self.widths()), self.time_dim, self.kernel_size, self.groups)

    def build(self, dim: int) -> nn.ModuleDict:
        """Make the untrained networks for ``dim`` features with PyTorch's current random state."""
        names, channels, condition = self.layout(dim)
        return nn.ModuleDict({name: _unet(channels, condition, self._sizes()) for name in names})

    def load_networks(self, state: dict[str, np.ndarray], dim: int) -> None:
        """Check and adopt the networks' parameters."""
        self.check_params()
        names, channels, condition = self.layout(dim)
        shapes = _shapes(channels, condition, self._sizes())
        expected = {f'{name}.{key}': shape for name in names for key, shape in shapes.items()}
        found = {name: tuple(a.shape) for name, a in state.items()}
        wrong = sorted(k for k in expected.keys() | found if expected.get(k) != found.get(k))
        if wrong:
            raise DetectorError(
                f'{self.name}: array {wrong[0]!r} should have shape '
                f'{expected.get(wrong[0], "(absent)")}, found {found.get(wrong[0], "(absent)")}'
            )
        for name, array in state.items():
            if array.dtype != np.float32:
                raise DetectorError(
                    f'{self.name}: array {name!r} should be float32, found {array.dtype}'
                )
            if not np.isfinite(array).all():
                raise DetectorError(f'{self.name}: array {name!r} holds NaN or infinity; fit again')
        with torch.device('meta'):
            networks = self.build(dim)
        networks.to_empty(device='cpu')
        networks.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        self.set_networks(networks, dim)

    def load_state(self, state: dict[str, np.ndarray], dim: int) -> None:
        self.load_networks(state, dim)


class _DensityStream(Stream):
    """Each step passes through the networks on its own; only the running sum is remembered."""

    def __init__(self, detector: DensityDetector) -> None:
        self._detector = detector
        self._accumulator = Accumulator(detector.accumulate)

    def step(self, step: PolicyStep) -> float:
        value = self._detector.values(self._detector.step_inputs(step))
        return self._accumulator.add(value.item())
