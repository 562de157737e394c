# SPDX-License-Identifier: Apache-2.0
"""Base class of RND and LogpZO.

The nonconformity of both detectors measures how much a step differs from the training steps of one
outcome. The score is the nonconformity with successes minus the nonconformity with failures.

Both are out-of-distribution detectors of FAIL-Detect (Xu et al., arXiv 2503.08558). Gu et al.
(arXiv 2506.09937) use them as baselines.
"""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import (
    AccumulatingDetector,
    Accumulator,
    accumulated,
)
from safe_monitor_node.detectors.base import ArraySpec, DetectorError, Stream, checked_vector
from safe_monitor_node.detectors.unet import UNet, smallest_group
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

PUBLISHED_DOWN_DIMS = (256, 512, 1024)
# Number of groups of the last normalisation. It does not depend on the parameter ``groups``.
FINAL_GROUPS = 8
# Steps in one pass of the networks when whole rollouts are scored. The batch is always padded to
# this size, because the convolution algorithm, and therefore the rounding, depends on the batch
# size.
_STEPS_PER_PASS = 16
# Same value as in torch.nn.PairwiseDistance.
EPS = 1e-6
# If a normalisation has few values that are nearly equal, it increases rounding errors up to 300
# times (1 / sqrt(eps) of torch.nn.GroupNorm). A U-Net has several normalisations in series. In
# float32, live and offline scores then differ by up to 1e-2. In float64 they differ by less than
# 1e-10.
_FEWEST_VALUES_IN_FLOAT32 = 8

Inputs = tuple[torch.Tensor, ...]
"""Input of the networks: features (n, D), for RND also executed chunks."""


def sequence_rows(entries: int, width: int, multiple: int) -> int:
    """Return the number of rows of ``width`` for ``entries`` numbers, rounded up to a multiple."""
    return math.ceil(math.ceil(entries / width) / multiple) * multiple


def as_sequence(vectors: torch.Tensor, width: int, multiple: int) -> torch.Tensor:
    """Return vectors (B, entries) as sequences (B, rows, width), padded with zeros at the end."""
    rows = sequence_rows(vectors.shape[1], width, multiple)
    padded = nn.functional.pad(vectors, (0, rows * width - vectors.shape[1]))
    return padded.reshape(len(vectors), rows, width)


def real_entries(entries: int, width: int, multiple: int) -> torch.Tensor:
    """Return the mask (rows, width): True for entries of the sequence that are not padding."""
    rows = sequence_rows(entries, width, multiple)
    return (torch.arange(rows * width) < entries).reshape(rows, width)


class _Sizes(NamedTuple):
    """The sizes that all U-Nets of a detector share."""

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


class _InFloat64(nn.Module):
    """A copy of a network that takes float32 tensors and computes and returns float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = copy.deepcopy(network).double()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the output of the network."""
        return self._network(*(tensor.double() for tensor in inputs))


@dataclass(kw_only=True, eq=False)
class DensityDetector(AccumulatingDetector):
    """A difference of two nonconformities, each computed by a U-Net trained on one outcome.

    The parameters ``epochs``, ``batch_size``, ``learning_rate`` and ``lambda_reg`` control the
    training (:mod:`safe_training.fitting.density`); they have no effect on the scores of a trained
    detector.

    Parameters
    ----------
    down_dims : list of int or None
        Channels of the U-Net's levels; None for the published 256, 512, 1024 (about 60 million
        parameters per network: fit on a GPU).
    kernel_size : int
        Width of the convolutions; odd.
    groups : int
        Groups of the normalisation. Each group must have at least 2 values: the channels of a level
        divided by ``groups``, times the rows of the sequence at this level.
    time_dim : int
        Width of the embedded time; even.
    success_only : bool
        Leave out the network of failures.
    epochs : int
        Passes over the training rollouts.
    batch_size : int
        Rollouts in a batch.
    learning_rate : float
        Step size of Adam.
    lambda_reg : float
        Weight of the squared parameters in the loss.
    reference_compatible : bool
        Include the zero padding of the input in loss and score, as in the published code.
    seed : int
        Seed of initial weights and batches.
    """

    needs = frozenset({'features'})

    down_dims: Sequence[int] | None = None
    kernel_size: int = 5
    groups: int = 8
    time_dim: int = 128
    success_only: bool = False
    epochs: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-4
    lambda_reg: float = 0.0
    reference_compatible: bool = False
    seed: int = 0

    networks_: nn.ModuleDict = field(init=False, repr=False)
    """The trained networks, float32."""
    scoring_: nn.ModuleDict = field(init=False, repr=False)
    """The networks that compute the score: the trained networks, or float64 copies of them."""

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_integer('kernel_size', 'groups', 'time_dim', 'epochs', 'batch_size')
        self._check_integer('seed', least=0)
        self._check_number('learning_rate', 'lambda_reg', least=0)
        self._check_flag('success_only', 'reference_compatible')
        if self.kernel_size % 2 == 0:
            raise self._refused('kernel_size', 'an odd integer')
        if self.time_dim % 2 or self.time_dim < 4:
            raise self._refused('time_dim', 'an even integer of at least 4')
        widths = self.widths()
        fits = len(widths) >= 2 and all(
            isinstance(width, int) and width > 0 and width % self.groups == 0 for width in widths
        )
        if not fits or widths[0] % FINAL_GROUPS:
            raise self._refused(
                'down_dims',
                f'two or more integers that are multiples of groups ({self.groups}), and a first '
                f'integer that is also a multiple of {FINAL_GROUPS}',
            )

    def widths(self) -> list[int]:
        """Return the channels of the U-Net's levels."""
        if self.down_dims is None:
            return list(PUBLISHED_DOWN_DIMS)
        if not isinstance(self.down_dims, (list, tuple)):
            raise self._refused('down_dims', 'None or a list of integers')
        return list(self.down_dims)

    @property
    def multiple(self) -> int:
        """The number of rows of a sequence is a multiple of this."""
        return int(2 ** (len(self.widths()) - 1))

    def trained_outcomes(self) -> tuple[str, ...]:
        """Return the outcomes that have a trained network."""
        return ('success',) if self.success_only else ('success', 'failure')

    def set_networks(self, networks: nn.ModuleDict, dim: int) -> None:
        """Take over trained networks."""
        self.networks_ = networks.eval().requires_grad_(False)
        self.scoring_ = self.networks_
        if self._smallest_group(dim) < _FEWEST_VALUES_IN_FLOAT32:
            precise = {name: _InFloat64(network) for name, network in networks.items()}
            self.scoring_ = nn.ModuleDict(precise)
        self.dim_ = dim

    @abstractmethod
    def nonconformity(self, outcome: str, inputs: Inputs) -> torch.Tensor:
        """Return the nonconformity of steps with one outcome as float64 (n,); higher is worse."""

    def rollout_inputs(self, rollout: Rollout) -> Inputs:
        """Return the checked inputs of the networks from a rollout; the first axis is time."""
        return (torch.from_numpy(self._checked_features(rollout)),)

    def step_inputs(self, step: PolicyStep) -> Inputs:
        """Return the checked inputs of the networks from a step; the first axis has length 1."""
        return (torch.from_numpy(checked_vector(step, self.dim_, self.name))[None],)

    @torch.inference_mode()
    def values(self, inputs: Inputs) -> torch.Tensor:
        """Return the values of single steps as float64 (n,), before any accumulation."""
        values = self.nonconformity('success', inputs)
        if self.success_only:
            return values
        return values - self.nonconformity('failure', inputs)

    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout, float32 of shape (T,)."""
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of many rollouts."""
        self._require_fitted()
        scores: list[np.ndarray] = []
        for rollout in rollouts:
            steps = len(rollout)
            missing = -steps % _STEPS_PER_PASS
            batches = [
                torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]).split(
                    _STEPS_PER_PASS
                )
                for tensor in self.rollout_inputs(rollout)
            ]
            values = torch.cat([self.values(batch) for batch in zip(*batches, strict=True)])
            scores.append(accumulated(values[:steps].numpy(), self.accumulate))
        return scores

    def stream(self) -> Stream:
        """Return a stream that scores a new episode step by step."""
        self._require_fitted()
        return _DensityStream(self)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters of all networks."""
        self._require_fitted()
        return {
            name: p.detach().cpu().numpy().copy() for name, p in self.networks_.state_dict().items()
        }

    @abstractmethod
    def layout(self, dim: int) -> tuple[tuple[str, ...], int, int]:
        """Return the names of the networks, their channels and the width of their condition."""

    @abstractmethod
    def rows(self, dim: int) -> int:
        """Return the length of the sequence that the networks read."""

    def _smallest_group(self, dim: int) -> int:
        return smallest_group(self.rows(dim), self.widths(), self.groups, FINAL_GROUPS)

    def _sizes(self) -> _Sizes:
        return _Sizes(tuple(self.widths()), self.time_dim, self.kernel_size, self.groups)

    def build(self, dim: int) -> nn.ModuleDict:
        """Return the untrained networks for ``dim`` features.

        Initial weights come from PyTorch's global random generator.

        Raises
        ------
        DetectorError
            A group of the normalisation has one value only. Its normalised value is always 0.
        """
        if self._smallest_group(dim) < 2:
            raise DetectorError(
                where=f'detector {self.name}: parameters down_dims and groups',
                expected='at least 2 values in each group of the normalisation',
                found=f'a group of 1 value, for down_dims {self.widths()}, groups {self.groups} '
                f'and sequences of {self.rows(dim)} rows',
                advice='choose fewer groups, or larger down_dims',
            )
        names, channels, condition = self.layout(dim)
        return nn.ModuleDict({name: _unet(channels, condition, self._sizes()) for name in names})

    def network_specs(self, dim: int) -> dict[str, ArraySpec]:
        """Return shape and type of the parameters of all networks."""
        names, channels, condition = self.layout(dim)
        shapes = _shapes(channels, condition, self._sizes())
        return {
            f'{name}.{key}': ArraySpec(shape, np.float32)
            for name in names
            for key, shape in shapes.items()
        }

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`."""
        self.check_params()
        self._load_networks(self.checked_state(state, self.network_specs(dim)), dim)

    def _load_networks(self, arrays: Mapping[str, np.ndarray], dim: int) -> None:
        with torch.device('meta'):
            networks = self.build(dim)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        networks.load_state_dict(tensors, assign=True)  # `to_empty` would import SymPy
        self.set_networks(networks, dim)


class _DensityStream(Stream):
    """Each step is scored independently. The only state is the running sum."""

    def __init__(self, detector: DensityDetector) -> None:
        self._detector = detector
        self._accumulator = Accumulator(detector.accumulate)

    def step(self, step: PolicyStep) -> float:
        value = self._detector.values(self._detector.step_inputs(step))
        return self._accumulator.add(value.item())
