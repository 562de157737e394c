# SPDX-License-Identifier: Apache-2.0
"""Reduces the raw hidden-state tensor of a policy to one feature vector for a detector.

A raw tensor has named axes in front of the feature axis, for example ``(token, D)`` for OpenVLA or
``(denoise, horizon, D)`` for pi0. Pooling reduces one axis after another, in the stated order. Each
reduction is a short command (Gu et al., SAFE, arXiv 2506.09937, section 4.1: first, last, mean,
first & last). All pooling in the suite uses this module. Therefore live features and recorded
features are pooled in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.tensors import as_float32

COMMANDS = (
    'first, last, mean, a relative index in [0, 1], first&last, concat, concat-K, concat-A:B[:C]'
)

_SLICE = re.compile(r'^concat-(-?\d*):(-?\d*)(?::(-?\d+))?$')
_COUNT = re.compile(r'^concat-(\d+)$')


class PoolingError(SafeError):
    """A pooling command, an axis or a tensor is not valid.

    The message contains what was expected.
    """


def _relative_index(n: int, q: float) -> int:
    # Python's round() is half-to-even, as in the published code.
    return round((n - 1) * q)


def _as_fraction(command: str) -> float | None:
    if command == 'first':
        return 0.0
    if command == 'last':
        return 1.0
    try:
        q = float(command)
    except ValueError:
        return None
    if not 0.0 <= q <= 1.0:
        raise PoolingError(
            where=f'pooling command {command!r}',
            expected='a relative index from 0 to 1',
            found=f'{q:g}',
        )
    return q


def _selection(command: str) -> slice | int | None:
    """Return the slice or the number of evenly spread indices that a concat command selects."""
    if command == 'concat':
        return slice(None)
    if command == 'first&last':
        return 2
    if match := _COUNT.match(command):
        k = int(match.group(1))
        if k < 2:
            raise PoolingError(
                where=f'pooling command {command!r}',
                expected='concat-K with K of at least 2',
                found=f'K = {k}',
            )
        return k
    if match := _SLICE.match(command):
        start, stop, stride = (int(g) if g not in (None, '') else None for g in match.groups())
        if stride == 0:
            raise PoolingError(
                where=f'pooling command {command!r}',
                expected='concat-A:B:C with a stride C that is not 0',
                found='the stride 0',
            )
        return slice(start, stop, stride)
    return None


def check_command(command: str) -> None:
    """Raise :class:`PoolingError` unless ``command`` is one of :data:`COMMANDS`."""
    if command != 'mean' and _as_fraction(command) is None and _selection(command) is None:
        raise PoolingError(
            where='pooling command', expected=f'one of: {COMMANDS}', found=repr(command)
        )


def pool(array: np.ndarray, command: str, axis: int = -2) -> np.ndarray:
    """Reduce ``axis`` of ``array`` by one command.

    Parameters
    ----------
    array : ndarray, shape (..., n, ..., D)
        The last axis is the feature axis.
    command : str
        ``first``, ``last``, a relative index ``q`` in [0, 1] (index ``round((n - 1) q)``), ``mean``
        (computed in float32 whatever the stored dtype), ``first&last`` (the same as ``concat-2``),
        ``concat`` (all), ``concat-K`` (K indices spread evenly) or ``concat-A:B[:C]`` (a slice).
    axis : int
        The axis to reduce: not the feature axis, and not empty.

    Returns
    -------
    ndarray
        Has one axis fewer. The concat commands concatenate the selected positions along the last
        axis.

    Raises
    ------
    PoolingError
        The command is unknown or selects nothing, or the axis is empty.
    """
    check_command(command)
    if array.ndim < 2:
        raise PoolingError(
            where='pooling',
            expected='an array with at least one axis in front of the feature axis',
            found=f'shape {array.shape}',
        )
    moved = np.moveaxis(array, axis, -2)
    n = moved.shape[-2]
    if n == 0:
        raise PoolingError(
            where='pooling',
            expected=f'at least one position on axis {axis}',
            found=f'shape {array.shape}',
        )
    if command == 'mean':
        return as_float32(moved).mean(axis=-2, dtype=np.float32)
    if (q := _as_fraction(command)) is not None:
        return moved[..., _relative_index(n, q), :]
    chosen = _selection(command)
    if isinstance(chosen, slice):
        picked = moved[..., chosen, :]
    else:
        assert chosen is not None
        picked = moved[..., np.round(np.linspace(0, n - 1, chosen)).astype(int), :]
    if picked.shape[-2] == 0:
        raise PoolingError(
            where=f'pooling command {command!r}',
            expected=f'at least one selected position on an axis of length {n}',
            found='none',
        )
    return picked.reshape(*picked.shape[:-2], -1)


@dataclass(frozen=True)
class FeatureSpec:
    """Specification of a feature vector: name of the tensor, raw axes, pooling and width.

    Attributes
    ----------
    name : str
        The policy's name of the tensor, such as ``hidden_states`` or ``pre_velocity``.
    axes : tuple of str
        Names of the raw axes in front of the feature axis, outermost first; empty if the source
        holds pooled vectors.
    pooling : tuple of (axis, command)
        The reductions in the order of their application. Every axis occurs once. Raw features have
        an empty pooling.
    dim : int
        Width D of the pooled vector; of raw features, the length of the last axis.
    """

    name: str
    dim: int
    axes: tuple[str, ...] = ()
    pooling: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, 'axes', tuple(self.axes))
        object.__setattr__(self, 'pooling', tuple((str(a), str(c)) for a, c in self.pooling))
        if len(set(self.axes)) != len(self.axes):
            raise PoolingError(
                where=f'feature {self.name!r}',
                expected='a different name for each axis',
                found=str(list(self.axes)),
            )
        named = [axis for axis, _ in self.pooling]
        if self.pooling and sorted(named) != sorted(self.axes):
            raise PoolingError(
                where=f'feature {self.name!r}',
                expected=f'a pooling that names each of the axes {list(self.axes)} once',
                found=f'a pooling of the axes {named}',
                advice='give one AXIS=COMMAND for each axis',
            )
        for _, command in self.pooling:
            check_command(command)
        if self.dim < 0:
            raise PoolingError(
                where=f'feature {self.name!r}',
                expected='a width dim of at least 0',
                found=str(self.dim),
            )

    @property
    def pooled(self) -> bool:
        """True if the feature of one step is one vector (D,)."""
        return len(self.pooling) == len(self.axes)

    def __str__(self) -> str:
        inner = ','.join(f'{axis}={command}' for axis, command in self.pooling)
        return f'{self.name}[{inner}]' if inner else self.name

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Return the pooled tensor, float32 ``(dim,)``, of a raw tensor ``(*axes, D_raw)``.

        Axes in front of these axes are kept: a whole rollout ``(T, *axes, D_raw)`` becomes ``(T,
        dim)``.

        Raises
        ------
        PoolingError
            The tensor has too few axes, or the result is not ``dim`` wide.
        """
        left = list(self.axes)
        if raw.ndim < len(left) + 1:
            raise PoolingError(
                where=f'feature {self.name!r}',
                expected=f'a tensor with the axes ({", ".join([*left, "feature"])})',
                found=f'shape {raw.shape}',
            )
        out = raw
        for axis, command in self.pooling:
            position = left.index(axis) - len(left) - 1
            out = pool(out, command, axis=position)
            left.remove(axis)
        if self.dim and out.shape[-1] != self.dim:
            raise PoolingError(
                where=f'feature {str(self)!r}',
                expected=f'a pooled width of {self.dim}',
                found=f'{out.shape[-1]} from a tensor of shape {raw.shape}',
                advice='use the same policy and the same pooling as in the recording',
            )
        return as_float32(out)

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain JSON values."""
        return {
            'name': self.name,
            'dim': self.dim,
            'axes': list(self.axes),
            'pooling': [list(pair) for pair in self.pooling],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSpec:
        """Return the specification that :meth:`to_dict` wrote.

        Raises
        ------
        PoolingError
            The data do not have the form of a feature specification.
        """
        try:
            return cls(
                name=str(data['name']),
                dim=int(data['dim']),
                axes=tuple(str(axis) for axis in data['axes']),
                pooling=tuple((str(axis), str(command)) for axis, command in data['pooling']),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PoolingError):
                raise
            raise PoolingError(
                expected='a feature specification with name, dim, axes and pooling',
                found=repr(data),
            ) from error


def parse_pooling(arguments: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of command-line pooling such as ``['horizon=mean', 'denoise=last']``.

    Raises
    ------
    PoolingError
        An argument is not AXIS=COMMAND, or the command is unknown.
    """
    pairs = []
    for argument in arguments:
        axis, equals, command = argument.partition('=')
        if not equals or not axis:
            raise PoolingError(
                where='pooling',
                expected='AXIS=COMMAND, for example token=last',
                found=repr(argument),
            )
        check_command(command)
        pairs.append((axis, command))
    return tuple(pairs)
