# SPDX-License-Identifier: Apache-2.0
"""The columns of the metrics in several tables.

Mapping from the name of the metric to title and meaning.

Names are those of `safe_training.metrics.part_report.flatten_report`.
"""

from __future__ import annotations

from safe_training.reporting.tables.model import Column

HEADLINE = 'roc_auc_max_score_until_min_length'
MACRO = 'macro_roc_auc_max_score_until_min_length'
CLOCK = 'clock_roc_auc_max_score_until_min_length'
CLOCK_MACRO = 'clock_macro_roc_auc_max_score_until_min_length'

_AUC = 'ROC-AUC of the largest score until the minimum length of the task'
_MACRO = 'mean over tasks that have both outcomes'

MEASURES: dict[str, Column] = {
    HEADLINE: Column('AUC', explanation=f'{_AUC}, pooled over tasks'),
    MACRO: Column('macro AUC', narrow='macro', explanation=f'{_AUC}: {_MACRO}'),
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
