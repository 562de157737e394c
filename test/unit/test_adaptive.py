# SPDX-License-Identifier: Apache-2.0
"""The adaptive threshold keeps its long-run promise where a fixed one breaks it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from safe_monitor_node.adaptive import AdaptationError, AdaptiveThreshold


def drifting(generator: np.random.Generator, steps: int) -> np.ndarray:
    """Return scores that rise slowly, jump, and fall back."""
    level = np.concatenate([np.linspace(0, 3, steps // 2), np.full(steps - steps // 2, 1.0)])
    return level + generator.normal(size=steps)


@pytest.mark.parametrize('alpha', [0.05, 0.1, 0.3])
@pytest.mark.parametrize('gamma', [0.005, 0.05])
@pytest.mark.parametrize('n', [5, 50])
def test_false_alarms_stay_within_the_bound_under_drift(alpha, gamma, n):
    generator = np.random.default_rng(n)
    adaptive = AdaptiveThreshold(generator.normal(size=n), alpha, gamma)
    fixed = adaptive.threshold
    scores = drifting(generator, 4000)
    for count, score in enumerate(scores, start=1):
        adaptive.observe(score)
        bound = (max(alpha, 1 - alpha) + gamma) / (count * gamma)
        assert abs(adaptive.false_alarms / count - alpha) <= bound + 1e-9
    if n == 50:
        kept = abs(adaptive.false_alarms / len(scores) - alpha)
        assert kept < 0.25 * abs(np.mean(scores > fixed) - alpha), 'a fixed threshold does as well'


def test_a_false_alarm_raises_the_threshold_and_quiet_lowers_it():
    adaptive = AdaptiveThreshold(np.arange(100.0), 0.1, 0.05)
    before = adaptive.threshold
    assert before == 90.0
    assert adaptive.observe(1000.0)
    assert adaptive.threshold > before
    raised = adaptive.threshold
    assert not adaptive.observe(0.0)
    assert adaptive.threshold < raised
    for _ in range(5):
        adaptive.observe(math.inf)
    assert adaptive.threshold == math.inf


def test_wrong_values_are_refused():
    for values, alpha, gamma in (
        ([], 0.1, 0.1),
        ([math.nan], 0.1, 0.1),
        ([1.0], 0, 0.1),
        ([1.0], 0.1, 0),
    ):
        with pytest.raises(AdaptationError, match='adaptive threshold'):
            AdaptiveThreshold(values, alpha, gamma)
    with pytest.raises(AdaptationError, match='NaN'):
        AdaptiveThreshold([1.0], 0.1).observe(math.nan)
