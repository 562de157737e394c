# SPDX-License-Identifier: Apache-2.0
"""Scored rollouts: which are refused, and what their outcome is."""

import numpy as np
import pytest
from published_evaluation import alarm_steps, constant_threshold

from safe_monitor_node.bands.threshold import BandError
from safe_training.metrics.alarms import (
    alarm_report,
)
from safe_training.metrics.lead_time import lead_times
from safe_training.metrics.operating_curves import operating_curve
from safe_training.metrics.ranking import (
    rank,
    rank_by_task,
    rankings,
    rankings_at_quantiles,
    running_rankings,
)
from safe_training.metrics.scored import (
    OUTCOMES,
    MetricError,
    ScoredRollout,
    max_scores_until_min_length,
    min_lengths,
    scores_at_quantile,
)


@pytest.mark.parametrize(
    ('scores', 'failed', 'message'),
    [
        ([], True, r"task 'pour': expected scores of shape \(T,\) with T >= 1, found \(0,\)"),
        ([[0.1]], True, r'shape \(T,\)'),
        ([0.1, np.nan], True, "task 'pour', step 1: expected a finite score, found nan"),
        ([np.inf], True, 'step 0: expected a finite score, found inf'),
        ([0.1], 'yes', "failed=None .no label., found failed='yes'"),
    ],
)
def test_a_rollout_that_cannot_be_evaluated_is_refused(scores, failed, message):
    with pytest.raises(MetricError, match=message):
        ScoredRollout(scores, failed, 'pour')


@pytest.mark.parametrize(
    'measure',
    [
        lambda scored: rankings(scored, {'pour': 2}),
        lambda scored: rankings_at_quantiles(scored, {'pour': 2}),
        running_rankings,
        lambda scored: alarm_report(scored, [None, None]),
        lambda scored: lead_times(scored, [None, None], [None, None]),
        operating_curve,
    ],
)
def test_no_number_is_of_a_rollout_without_a_label(measure):
    scored = [ScoredRollout([0.1, 0.2], True, 'pour'), ScoredRollout([0.1, 0.2], None, 'pour')]
    with pytest.raises(MetricError, match=r"task 'pour': expected a label .*, found none; label"):
        measure(scored)


@pytest.mark.parametrize(
    ('failed', 'alarm', 'outcome'),
    [
        (True, None, 'miss'),
        (False, 1, 'false alarm'),
        (True, 1, 'detection'),
        (False, None, 'quiet'),
        (None, 1, 'unlabelled'),
        (None, None, 'unlabelled'),
    ],
)
def test_the_outcome_is_of_label_and_alarm(failed, alarm, outcome):
    scored = ScoredRollout([0.1, 0.2], failed, 'pour', alarm_step=alarm)
    assert scored.outcome == outcome
    assert outcome in (*OUTCOMES, 'unlabelled')


def test_what_was_not_judged_or_not_kept_is_refused_by_name():
    scored = ScoredRollout([0.1], True, 'pour', episode_id='pour/3')
    with pytest.raises(MetricError, match="episode 'pour/3': expected a threshold"):
        _ = scored.required_threshold
    with pytest.raises(MetricError, match="episode 'pour/3': expected the rollout"):
        _ = scored.required_rollout


def test_what_does_not_fit_together_is_refused():
    scored = [ScoredRollout([0.1, 0.2], True, 'a')]
    with pytest.raises(MetricError, match="task 'a': expected a minimum length, found none"):
        max_scores_until_min_length(scored, {'b': 1})
    with pytest.raises(
        MetricError,
        match=r"task 'a', 2 steps: expected a minimum length of its task from 1 to 2, found 3",
    ):
        max_scores_until_min_length(scored, {'a': 3})
    with pytest.raises(MetricError, match=r'quantile .* in \[0, 1\], found 1\.5'):
        scores_at_quantile(scored, {'a': 2}, 1.5)
    with pytest.raises(MetricError, match=r'lengths of shape \(1,\).*, found \(2,\)'):
        min_lengths(['a'], [1, 2])
    with pytest.raises(MetricError, match="task 'a': expected at least 1 step, found 0"):
        min_lengths(['a'], [0])
    with pytest.raises(MetricError, match='for each of 1 rollouts, found 2 entries'):
        alarm_report(scored, [None, 1])
    with pytest.raises(
        MetricError, match="rollout of task 'a': expected an alarm step from 0 to 1, found 2"
    ):
        alarm_report(scored, [2])
    with pytest.raises(MetricError, match='same shape'):
        rank([0.1, 0.2], [True])
    with pytest.raises(MetricError, match=r'outcomes \(failed\) as booleans, found float64'):
        rank([0.1, 0.2], [0.0, np.nan])
    with pytest.raises(MetricError, match='rollout 1: expected a finite value, found nan'):
        rank([0.1, np.nan], [True, False])
    with pytest.raises(MetricError, match='one task for each of 2 rollouts, found 1 tasks'):
        rank_by_task([0.1, 0.2], [True, False], ['a'])
    with pytest.raises(BandError, match=r'number of steps of the band: 1\), found step 1'):
        alarm_steps(scored, constant_threshold(0.5, length=1))
