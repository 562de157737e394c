# SPDX-License-Identifier: Apache-2.0
"""How far consecutive action chunks contradict each other (STAC)."""

from __future__ import annotations

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError, StepError, checked_chunk
from safe_monitor_node.detectors.clustering import squared_distances
from safe_monitor_node.detectors.samples import checked_samples
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep


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
