# SPDX-License-Identifier: Apache-2.0
"""Disagreement of sampled actions: variances, cluster entropy, and consistency over time (STAC).

Baselines of Gu et al. (arXiv 2506.09937, section 5): action variances; the entropy of clusters
after Kuhn et al. (semantic entropy, ICLR 2023); STAC and STAC-Single after Agia et al. ("Unpacking
Failure Modes of Generative Policies", CoRL 2024). All work in float64 on NumPy alone.
"""

from __future__ import annotations

import math

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError, StepError, checked_chunk, register
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep

_LARGEST_ACTION = 1e30


def checked_samples(step: PolicyStep, detector: str, instead: str = '') -> np.ndarray:
    """Return the sampled chunks as finite float64 ``(samples >= 2, horizon, action_dim)``.

    Raises :class:`StepError` for anything else; ``instead`` names a signal that would also do.
    """
    checked_chunk(step, detector)
    assert step.actions is not None
    samples = np.asarray(step.actions, dtype=np.float64)
    if len(samples) < 2:
        alternative = f', or the signal {instead!r}' if instead else ''
        raise StepError(
            f'step {step.step}: detector {detector} compares sampled action chunks and needs at '
            f'least 2 a step{alternative}, found 1; let the policy draw more'
        )
    # Written so that NaN fails it. Squares of larger actions overflow, and mean nothing on a robot.
    if not (np.abs(samples) < _LARGEST_ACTION).all():
        raise StepError(
            f'step {step.step}: a sampled action chunk holds NaN, infinity or a value beyond '
            f'{_LARGEST_ACTION:g}'
        )
    return samples


class _SpreadDetector(StepwiseDetector):
    """How far the sampled chunks of one step lie apart.

    OpenVLA's multi-sample recordings hold these quantities but not the samples: where a step has
    no samples, the recorded signal is taken as it is.
    """

    needs = frozenset({'sampled_actions'})

    def recorded_as(self) -> str:
        """Return the signal that holds the quantity in recordings without samples."""
        raise AssertionError('each spread names its signal')

    def spread(self, samples: np.ndarray) -> float:
        """Return the quantity of samples ``(samples, horizon, action_dim)``."""
        raise AssertionError('each spread is defined')

    def quantity(self, step: PolicyStep, before: Before | None) -> float:
        signal = self.recorded_as()
        if signal in step.signals and (step.actions is None or step.actions.shape[:1] == (1,)):
            value = step.signals[signal]
            if not math.isfinite(value):
                raise StepError(f'step {step.step}: the signal {signal!r} is {value}')
            return value
        samples = checked_samples(step, self.name, signal)
        try:
            return self.spread(samples)
        except DetectorError as error:
            raise StepError(f'step {step.step}: {error}') from error


@register
class ActionTotalVar(_SpreadDetector):
    """Total variance: the trace of the unbiased covariance of the flattened chunks.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    """

    name = 'action_total_var'

    def __init__(self, *, accumulate: Accumulate = 'none') -> None:
        self.accumulate = accumulate

    def recorded_as(self) -> str:
        return 'total_var'

    def spread(self, samples: np.ndarray) -> float:
        return float(samples.var(axis=0, ddof=1).sum())


@register
class ActionGeneralVar(_SpreadDetector):
    """Generalised variance: the volume that the samples spread over, in all directions at once.

    The published determinant of the covariance is 0 whenever there are no more samples than
    numbers in a chunk, which is always the case for chunks (methods.md D30). The default is
    ``log det(I + covariance / floor)``: 0 for equal samples, finite for any number of them, and
    for enough samples a monotone function of the determinant as the floor goes to 0.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    floor : float
        Variance below which a direction counts as not spread, in squared action units.
    reference_compatible : bool
        The published determinant.
    """

    name = 'action_general_var'

    def __init__(
        self,
        *,
        accumulate: Accumulate = 'none',
        floor: float = 1e-6,
        reference_compatible: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.floor = floor
        self.reference_compatible = reference_compatible

    def check_parameters(self) -> None:
        super().check_parameters()
        if not self.floor > 0:
            raise DetectorError(f'{self.name}: floor must be positive, found {self.floor!r}')

    def recorded_as(self) -> str:
        return 'general_var'

    def spread(self, samples: np.ndarray) -> float:
        flat = samples.reshape(len(samples), -1)
        centred = (flat - flat.mean(axis=0)) / math.sqrt(len(flat) - 1)
        if self.reference_compatible:
            if len(flat) - 1 < flat.shape[1]:
                return 0.0
            return float(np.linalg.det(centred.T @ centred))
        # det(I + X'X) = det(I + XX'): take the smaller one.
        few = len(flat) < flat.shape[1]
        product = centred @ centred.T if few else centred.T @ centred
        return float(np.linalg.slogdet(np.eye(len(product)) + product / self.floor)[1])


class _PartVariance(_SpreadDetector):
    """Variance of some dimensions of the action, summed over them and over the horizon."""

    signal: str
    published: slice
    """The published choice, in the flattened chunk."""

    def __init__(
        self,
        *,
        accumulate: Accumulate = 'none',
        dimensions: list[int] | None = None,
        reference_compatible: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.dimensions = dimensions
        self.reference_compatible = reference_compatible

    def check_parameters(self) -> None:
        super().check_parameters()
        chosen = self.dimensions
        if chosen is None:
            return
        if not isinstance(chosen, list) or not chosen or any(type(d) is not int for d in chosen):
            raise DetectorError(
                f'{self.name}: dimensions must be a list of action dimensions, found {chosen!r}'
            )
        if self.reference_compatible:
            raise DetectorError(
                f'{self.name}: the published quantity has fixed dimensions; leave out '
                'dimensions or reference_compatible'
            )

    def recorded_as(self) -> str:
        return self.signal

    def conventional(self, action_dim: int) -> list[int]:
        """Return the dimensions of an action (x, y, z, roll, pitch, yaw, ..., gripper)."""
        raise AssertionError('each part knows its place')

    def spread(self, samples: np.ndarray) -> float:
        variance = samples.var(axis=0, ddof=1)
        if self.reference_compatible:
            return float(variance.ravel()[self.published].sum())
        action_dim = samples.shape[2]
        chosen = self.dimensions or self.conventional(action_dim)
        if min(chosen) < 0 or max(chosen) >= action_dim:
            raise DetectorError(
                f'{self.name} takes the action dimensions {chosen}, but an action has '
                f'{action_dim}; give the right ones (dimensions=[...])'
            )
        return float(variance[:, chosen].sum())


@register
class ActionTranslationVar(_PartVariance):
    """Variance of the translation: action dimensions 0 to 2, summed over the horizon.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    dimensions : list of int or None
        Other action dimensions.
    reference_compatible : bool
        The published quantity, which of a chunk takes the first action only (methods.md D29).
    """

    name = 'action_translation_var'
    signal = 'pos_var'
    published = slice(0, 3)

    def conventional(self, action_dim: int) -> list[int]:
        return [0, 1, 2]


@register
class ActionRotationVar(_PartVariance):
    """Variance of the rotation: action dimensions 3 to 5, summed over the horizon.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    dimensions : list of int or None
        Other action dimensions.
    reference_compatible : bool
        The published quantity, which of a chunk takes the first action only (methods.md D29).
    """

    name = 'action_rotation_var'
    signal = 'rot_var'
    published = slice(3, 6)

    def conventional(self, action_dim: int) -> list[int]:
        return [3, 4, 5]


@register
class ActionGripperVar(_PartVariance):
    """Variance of the gripper: the last action dimension, summed over the horizon.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    dimensions : list of int or None
        Other action dimensions.
    reference_compatible : bool
        The published quantity, which of a chunk takes everything from number 6 on: all dimensions
        of all later actions (methods.md D29).
    """

    name = 'action_gripper_var'
    signal = 'gripper_var'
    published = slice(6, None)

    def conventional(self, action_dim: int) -> list[int]:
        return [action_dim - 1]


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances ``(n, m)`` between rows of (n, d) and (m, d)."""
    # Centred first: what |a|^2 + |b|^2 - 2ab loses to rounding grows with the distance from 0.
    center = a.mean(axis=0)
    a, b = a - center, b - center
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    return np.maximum(squares, 0.0)


def ward_cluster_sizes(points: np.ndarray, threshold: float) -> list[int]:
    """Return the sizes of the Ward clusters of ``points`` (n, d), cut at a linkage distance.

    Clusters are merged while the Ward distance of the two is below ``threshold``, as
    scikit-learn's ``AgglomerativeClustering(linkage='ward', distance_threshold=...)`` does. By the
    chain of nearest neighbours (Müllner, arXiv 1109.2378) with the Lance-Williams update; ties
    are resolved as SciPy resolves them.
    """
    n = len(points)
    distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
    np.fill_diagonal(distance, np.inf)
    size = np.ones(n)
    alive = np.ones(n, dtype=bool)
    members = [[i] for i in range(n)]
    group = list(range(n))
    chain: list[int] = []
    for _ in range(n - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            x = chain[-1]
            y = int(np.argmin(distance[x]))
            # Prefer the previous element among equals: the chain could go round in circles.
            if len(chain) > 1 and distance[x, chain[-2]] <= distance[x, y]:
                y = chain[-2]
                break
            chain.append(y)
        del chain[-2:]
        x, y = min(x, y), max(x, y)
        height = distance[x, y]
        rest = alive.copy()
        rest[[x, y]] = False
        to_x, to_y, others = distance[x, rest], distance[y, rest], size[rest]
        scale = 1.0 / (size[x] + size[y] + others)
        # In this order of operations, so that ties are ties here and there.
        squared = (
            (others + size[x]) * scale * to_x * to_x
            + (others + size[y]) * scale * to_y * to_y
            - others * scale * height * height
        )
        distance[y, rest] = distance[rest, y] = np.sqrt(np.maximum(squared, 0.0))
        distance[x] = distance[:, x] = np.inf
        alive[x] = False
        size[y] += size[x]
        members[y] = members[y] + members[x]
        if height < threshold:
            first = group[members[y][0]]
            joined = {group[i] for i in members[y]}
            group = [first if g in joined else g for g in group]
    return [group.count(g) for g in sorted(set(group))]


@register
class ActionClusterEntropy(_SpreadDetector):
    """Entropy [nats] of the sizes of the clusters that the sampled chunks fall into.

    Ward clustering of the flattened chunks, cut at ``threshold``: 0 when all samples agree,
    ``log(samples)`` when no two do.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    threshold : float
        Ward distance from which on clusters stay apart, in action units.
    """

    name = 'action_cluster_entropy'

    def __init__(self, *, accumulate: Accumulate = 'none', threshold: float = 0.05) -> None:
        self.accumulate = accumulate
        self.threshold = threshold

    def check_parameters(self) -> None:
        super().check_parameters()
        if not self.threshold >= 0:
            raise DetectorError(
                f'{self.name}: threshold must not be negative, found {self.threshold!r}'
            )

    def recorded_as(self) -> str:
        return 'entropy_linkage' + f'{self.threshold:g}'.removeprefix('0')

    def spread(self, samples: np.ndarray) -> float:
        sizes = np.array(ward_cluster_sizes(samples.reshape(len(samples), -1), self.threshold))
        share = sizes / sizes.sum()
        return float(np.maximum(-(share * np.log(share)).sum(), 0.0))


class _ConsistencyDetector(StepwiseDetector):
    """How far this step's plan contradicts the previous one where both speak of the same time."""

    exec_horizon: int | None
    negate: bool

    def chunks(self, step: PolicyStep) -> np.ndarray:
        """Return the checked chunks (samples, horizon, action_dim) that are compared."""
        raise AssertionError('each consistency detector chooses its chunks')

    def contradiction(self, before: np.ndarray, now: np.ndarray) -> float:
        """Compare overlapping parts ``(samples, overlap, action_dim)`` of two steps."""
        raise AssertionError('each consistency detector defines its distance')

    def check_parameters(self) -> None:
        super().check_parameters()
        if self.exec_horizon is not None and self.exec_horizon < 1:
            raise DetectorError(
                f'{self.name}: exec_horizon must be at least 1, or None for what the steps say; '
                f'found {self.exec_horizon}'
            )

    def keep(self, step: PolicyStep) -> Before:
        return Before(self.chunks(step).copy(), self._executed(step))

    def _executed(self, step: PolicyStep) -> int:
        return step.exec_horizon if self.exec_horizon is None else self.exec_horizon

    def quantity(self, step: PolicyStep, before: Before | None) -> float:
        now = self.chunks(step)
        horizon, executed = now.shape[1], self._executed(step)
        if executed >= horizon:
            raise StepError(
                f'step {step.step}: detector {self.name} compares consecutive chunks where they '
                f'overlap, but all {horizon} actions of a chunk are executed ({executed}) before '
                'the next one; execute fewer, or take another detector'
            )
        if before is None:
            return 0.0
        left = before.actions[:, before.executed :]
        overlap = min(left.shape[1], horizon)
        if left.shape[2] != now.shape[2]:
            raise StepError(
                f'step {step.step}: consecutive chunks have different action widths: '
                f'{left.shape[2]} and {now.shape[2]}'
            )
        value = self.contradiction(left[:, :overlap], now[:, :overlap])
        return -value if self.negate else value


@register
class Stac(_ConsistencyDetector):
    """STAC: maximum mean discrepancy between the plans sampled at consecutive steps.

    The biased estimate of MMD^2 (V-statistic) with the kernel ``exp(-|x - y|^2 / beta)``, between
    what the previous chunks planned beyond their executed part and what the new chunks plan for
    the same time. 0 at the first step. An error where nothing overlaps.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    beta : float
        Bandwidth of the kernel, in squared action units.
    exec_horizon : int or None
        Actions executed between steps; None takes what each step says.
    negate : bool
        Turn the score round (the published evaluation also considers that).
    """

    name = 'stac'
    needs = frozenset({'sampled_actions'})

    def __init__(
        self,
        *,
        accumulate: Accumulate = 'none',
        beta: float = 1.0,
        exec_horizon: int | None = None,
        negate: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.beta = beta
        self.exec_horizon = exec_horizon
        self.negate = negate

    def check_parameters(self) -> None:
        super().check_parameters()
        if not self.beta > 0:
            raise DetectorError(f'{self.name}: beta must be positive, found {self.beta!r}')

    def chunks(self, step: PolicyStep) -> np.ndarray:
        return checked_samples(step, self.name)

    def contradiction(self, before: np.ndarray, now: np.ndarray) -> float:
        x, y = before.reshape(len(before), -1), now.reshape(len(now), -1)
        kernel = np.exp(-squared_distances(*(np.concatenate([x, y]),) * 2) / self.beta)
        n = len(x)
        return float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2.0 * kernel[:n, n:].mean())


@register
class StacSingle(_ConsistencyDetector):
    """STAC-Single: mean Euclidean distance between the executed plans of consecutive steps.

    Over the positions where the two chunks overlap; 0 at the first step. An error where nothing
    overlaps.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    exec_horizon : int or None
        Actions executed between steps; None takes what each step says.
    negate : bool
        Turn the score round (the published evaluation also considers that).
    """

    name = 'stac_single'
    needs = frozenset({'actions'})

    def __init__(
        self,
        *,
        accumulate: Accumulate = 'none',
        exec_horizon: int | None = None,
        negate: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.exec_horizon = exec_horizon
        self.negate = negate

    def chunks(self, step: PolicyStep) -> np.ndarray:
        return checked_chunk(step, self.name)[None]

    def contradiction(self, before: np.ndarray, now: np.ndarray) -> float:
        return float(np.linalg.norm(before[0] - now[0], axis=-1).mean())
