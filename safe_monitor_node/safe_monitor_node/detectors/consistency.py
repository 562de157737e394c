# SPDX-License-Identifier: Apache-2.0
"""Contradictions between consecutive action chunks: STAC and STAC-Single.

Source: Agia et al. ("Unpacking Failure Modes of Generative Policies", CoRL 2024). Gu et al. (arXiv
2506.09937, section 5) use these detectors as baselines. Computed in float64.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.base import StepError, checked_chunk
from safe_monitor_node.detectors.clustering import squared_distances
from safe_monitor_node.detectors.samples import checked_samples
from safe_monitor_node.detectors.stepwise import Before, Plan, StepwiseDetector
from vla_feature_bridge.step import PolicyStep


@dataclass(kw_only=True, eq=False)
class _ConsistencyDetector(StepwiseDetector):
    """A distance between the plans of two consecutive steps for the same time.

    Parameters
    ----------
    exec_horizon : int or None
        Number of actions executed between two steps; None uses the ``exec_horizon`` of each step.
    negate : bool
        Change the sign of the score; the published evaluation tests both signs.
    """

    exec_horizon: int | None = None
    negate: bool = False

    @abstractmethod
    def chunks(self, step: PolicyStep) -> np.ndarray:
        """Return the checked chunks that are compared, shape (samples, horizon, action_dim)."""

    @abstractmethod
    def contradiction(self, before: np.ndarray, now: np.ndarray) -> float:
        """Return the distance of the overlapping parts, shape (samples, overlap, action_dim)."""

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_flag('negate')
        if self.exec_horizon is not None:
            self._check_integer('exec_horizon')

    def plan(self, step: PolicyStep) -> Plan:
        """Return the action chunks of this step that the next step is compared with."""
        return Plan(self.chunks(step).copy(), self._executed(step))

    def _executed(self, step: PolicyStep) -> int:
        return step.exec_horizon if self.exec_horizon is None else self.exec_horizon

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the distance to the plan of the previous step; 0 at the first step."""
        now = self.chunks(step)
        horizon, executed = now.shape[1], self._executed(step)
        if executed >= horizon:
            raise StepError(
                where=f'step {step.step}',
                expected=f'fewer than {horizon} executed actions for each chunk of {horizon} '
                f'actions (detector {self.name} compares the parts of consecutive chunks that '
                'overlap)',
                found=f'{executed} executed actions',
                advice='execute fewer actions of each chunk, or choose another detector',
            )
        if before.plan is None:
            return 0.0
        left = before.plan.chunks[:, before.plan.executed :]
        overlap = min(left.shape[1], horizon)
        if left.shape[2] != now.shape[2]:
            raise StepError(
                where=f'step {step.step}',
                expected=f'an action_dim of {left.shape[2]} as in the previous action chunk',
                found=str(now.shape[2]),
            )
        value = self.contradiction(left[:, :overlap], now[:, :overlap])
        return -value if self.negate else value


@dataclass(kw_only=True, eq=False)
class Stac(_ConsistencyDetector):
    """STAC: maximum mean discrepancy between the plans sampled at consecutive steps.

    The score is the biased estimate of MMD^2 (V-statistic) with the kernel ``exp(-|x - y|^2 /
    beta)``. It compares the actions of the previous chunks that were not executed with the actions
    of the new chunks for the same time. The score is 0 at the first step. It is an error if the
    chunks do not overlap.

    Parameters
    ----------
    beta : float
        Bandwidth of the kernel, in squared action units.
    """

    name = 'stac'
    needs = frozenset({'sampled_actions'})

    beta: float = 1.0

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_number('beta', above=0)

    def chunks(self, step: PolicyStep) -> np.ndarray:
        """Return all sampled chunks."""
        return checked_samples(step, self.name)

    def contradiction(self, before: np.ndarray, now: np.ndarray) -> float:
        """Return the biased estimate of MMD^2 between two sets of samples."""
        x, y = before.reshape(len(before), -1), now.reshape(len(now), -1)
        kernel = np.exp(-squared_distances(*(np.concatenate([x, y]),) * 2) / self.beta)
        n = len(x)
        return float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2.0 * kernel[:n, n:].mean())


@dataclass(kw_only=True, eq=False)
class StacSingle(_ConsistencyDetector):
    """STAC-Single: mean Euclidean distance between the executed plans of consecutive steps.

    The mean is taken over the positions where the two chunks overlap. The score is 0 at the first
    step. It is an error if the chunks do not overlap.
    """

    name = 'stac_single'
    needs = frozenset({'actions'})

    def chunks(self, step: PolicyStep) -> np.ndarray:
        """Return the executed chunk as the only sample."""
        return checked_chunk(step, self.name)[None]

    def contradiction(self, before: np.ndarray, now: np.ndarray) -> float:
        """Return the mean distance between the actions of two chunks."""
        return float(np.linalg.norm(before[0] - now[0], axis=-1).mean())
