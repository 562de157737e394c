# SPDX-License-Identifier: Apache-2.0
"""The identity and the result of a step, and counts of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from safe_monitor_node.monitor.alarm import Verdict
from vla_feature_bridge.step import PolicyStep


@dataclass(frozen=True, slots=True)
class StepId:
    """Identity of a step: episode and index.

    Attributes
    ----------
    episode_id : str
    index : int
        Position in the episode, from 0.
    stamp : int
        Time of the step [ns].
    """

    episode_id: str
    index: int
    stamp: int

    @classmethod
    def of(cls, step: PolicyStep) -> StepId:
        """Return the identity of a policy step."""
        return cls(step.episode_id, step.step, step.stamp)


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes
    ----------
    score : float
        The detector's score; NaN if the step could not be scored.
    threshold : float
        Threshold at this step. NaN if there is no threshold; +inf if the adaptive threshold is not
        finite.
    verdict : Verdict
        State of the alarm after the step.
    problem : str
        Reason why the step could not be scored or compared; empty if there was no problem.
    probability : float
        Probability that the episode fails, in [0, 1]; NaN if the detector gives none.
    """

    score: float
    threshold: float
    verdict: Verdict
    problem: str = ''
    probability: float = math.nan


@dataclass
class Counts:
    """Steps and episodes since the monitor was configured."""

    scored: int = 0
    invalid: int = 0
    missing: int = 0
    out_of_order: int = 0
    episodes: int = 0
