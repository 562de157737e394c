# SPDX-License-Identifier: Apache-2.0
"""Detectors that learn nothing: what a quantity knows of the steps before, live and offline."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from live_scores import streamed
from rollout_factory import make_rollout

from safe_monitor_node.detectors import StepError
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep

SPEEDS = [3.0, 1.0, 4.0, 1.0, 5.0]


@dataclass(kw_only=True, eq=False)
class LargestSpeed(StepwiseDetector):
    name = 'largest_speed'
    needs = frozenset({'signals'})

    def quantity(self, step: PolicyStep, before: Before) -> float:
        speed = step.signals['speed']
        if not np.isfinite(speed):
            raise StepError(where=f'step {step.step}', expected='a speed', found=str(speed))
        return speed if before.quantity is None else max(before.quantity, speed)


def rollout_of(speeds):
    return make_rollout(steps=len(speeds), signals={'speed': np.array(speeds, np.float32)})


@pytest.mark.parametrize(
    ('accumulate', 'expected'),
    [
        ('none', [3, 3, 4, 4, 5]),
        ('sum', [3, 6, 10, 14, 19]),
        ('mean', [3, 3, 10 / 3, 3.5, 3.8]),
    ],
)
def test_a_quantity_can_use_the_quantity_of_the_step_before(accumulate, expected):
    rollout = rollout_of(SPEEDS)
    detector = LargestSpeed(accumulate=accumulate).fit([rollout])
    np.testing.assert_allclose(detector.score(rollout), expected, rtol=1e-6)
    np.testing.assert_array_equal(streamed(detector, rollout), detector.score(rollout))


def test_each_episode_starts_without_a_quantity():
    first, second = rollout_of([9.0, 9.0]), rollout_of(SPEEDS)
    detector = LargestSpeed().fit([first, second])
    scores = detector.score_all([first, second])
    np.testing.assert_array_equal(scores[1], [3, 3, 4, 4, 5])


def test_a_refused_step_does_not_change_what_is_known_of_the_steps_before():
    rollout = rollout_of(SPEEDS)
    stream = LargestSpeed().fit([rollout]).stream()
    assert stream.step(rollout.step(0)) == 3
    with pytest.raises(StepError, match='step 1: expected a speed, found nan'):
        stream.step(replace(rollout.step(1), signals={'speed': np.nan}))
    assert stream.step(rollout.step(1)) == 3
