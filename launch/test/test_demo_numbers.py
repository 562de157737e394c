# SPDX-License-Identifier: Apache-2.0
"""The numbers that the demo prints about the streamed rollouts."""

import numpy as np

from safe_bringup.demo import count_found_early
from safe_training.metrics.scored import ScoredRollout


def scored(length, failed, task='pour', alarm=None):
    return ScoredRollout(np.zeros(length), failed, task, alarm_step=alarm)


def test_only_alarms_before_the_median_success_of_the_task_are_early():
    successes = [scored(10, False, alarm=0), scored(20, False), scored(30, False)]
    failures = [scored(50, True, alarm=step) for step in (0, 19, 20, 49, None)]
    without_success = scored(50, True, 'fold', alarm=0)
    assert count_found_early([*successes, *failures, without_success]) == 2


def test_without_a_median_success_no_failure_is_early():
    assert count_found_early([scored(50, True, alarm=0)]) == 0
    assert count_found_early([scored(10, False)]) == 0
