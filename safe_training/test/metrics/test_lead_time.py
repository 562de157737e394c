# SPDX-License-Identifier: Apache-2.0
"""Lead times before an annotated failure."""

import math

import numpy as np
import pytest

from safe_training.metrics.lead_time import lead_times
from safe_training.metrics.scored import (
    MetricError,
    ScoredRollout,
)


def test_lead_times_by_hand():
    scored = [
        ScoredRollout(np.zeros(10), failed, 'a') for failed in (True, True, True, True, True, False)
    ]
    found = lead_times(scored, [2, 9, None, 4, 5, 3], [6, 8, 3, None, 5, None])
    assert found.leads.tolist() == [4.0, -1.0, 0.0]
    assert (found.mean, found.median) == (1.0, 0.0)
    assert (found.annotated, found.alarmed, found.in_time) == (4, 3, 2)
    nothing = lead_times(scored, [None] * 6, [None] * 6)
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.median)
    assert nothing.annotated == 0


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        ([None], 'for each of 2 rollouts, found 1 entries'),
        ([None, 1], 'task .a.: .* for a success, found step 1'),
        ([3, None], 'annotated failure step from 0 to 2, found 3'),
        ([-1, None], 'annotated failure step from 0 to 2, found -1'),
    ],
)
def test_annotations_that_cannot_be_are_refused(steps, message):
    scored = [ScoredRollout(np.zeros(3), True, 'a'), ScoredRollout(np.zeros(3), False, 'a')]
    with pytest.raises(MetricError, match=message):
        lead_times(scored, [None, None], steps)
