# SPDX-License-Identifier: Apache-2.0
"""The columns of the metrics in several tables.

A mapping from the name of the metric to title and meaning.

Names are those of `safe_training.metrics.part_report.flatten_report`.
"""

from __future__ import annotations

from safe_training.reporting.tables.model import Column

HEADLINE = 'roc_auc_max_score_until_min_length'
MACRO = 'macro_roc_auc_max_score_until_min_length'
CLOCK = 'clock_roc_auc_max_score_until_min_length'
CLOCK_MACRO = 'clock_macro_roc_auc_max_score_until_min_length'

EARLY = 'found_early'
CLOCK_EARLY = 'clock_found_early'
SAVED = 'steps_saved'
SAVED_OVER_CLOCK = 'steps_saved_over_clock'
AT_MEDIAN = 'macro_roc_auc_running_100_percent'
STEPS = frozenset({SAVED, SAVED_OVER_CLOCK})
"""Numbers in policy steps; the others are shares."""
INTERVAL = Column('95 %', explanation='bootstrap interval over tasks of the number on the left')

_AUC = 'ROC-AUC of the largest score until the minimum length of the task'
_MACRO = 'mean over tasks that have both outcomes'

MEASURES: dict[str, Column] = {
    EARLY: Column(
        'found early',
        narrow='found\nearly',
        explanation='failures with an alarm before the median success of their task is over',
    ),
    CLOCK_EARLY: Column(
        'clock early',
        narrow='clock\nearly',
        explanation='failures that a step counter with the same false-alarm rate finds early',
    ),
    SAVED: Column(
        'steps saved',
        narrow='steps\nsaved',
        explanation='mean policy steps from the alarm to the end, per failure; 0 without alarm',
    ),
    SAVED_OVER_CLOCK: Column(
        'over clock',
        narrow='over\nclock',
        explanation='steps saved, minus the steps that a step counter with the same false-alarm '
        'rate saves',
    ),
    HEADLINE: Column('AUC', explanation=f'{_AUC}, pooled over tasks'),
    MACRO: Column('macro AUC', narrow='macro', explanation=f'{_AUC}: {_MACRO}'),
    AT_MEDIAN: Column(
        'macro at median',
        narrow='macro at\nmedian',
        explanation='macro AUC at the median success length, of the rollouts that still run',
    ),
    CLOCK: Column(
        'clock AUC', narrow='clock', explanation='AUC of a score that is only the step number'
    ),
    CLOCK_MACRO: Column(
        'clock macro',
        narrow='clock\nmacro',
        explanation='macro AUC of a score that is only the step number',
    ),
    'false_alarm_rate': Column(
        'false alarms',
        narrow='false\nalarms',
        explanation='successes with an alarm while they ran (FPR)',
    ),
    'alpha': Column('promised', explanation='false-alarm rate that the band promises'),
    'detection_rate': Column(
        'detected', narrow='de-\ntected', explanation='failures with an alarm (TPR)'
    ),
    'balanced_accuracy': Column(
        'bal. acc.',
        narrow='bal.\nacc.',
        explanation='mean of the detected failures and the quiet successes',
    ),
    'detection_time': Column(
        'T_det',
        explanation=(
            'step of the first alarm as a share of the length of the failure, 100 without alarm'
        ),
    ),
}
