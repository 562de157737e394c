# SPDX-License-Identifier: Apache-2.0
"""The parameters of the monitor node: name, default, description and range."""

from __future__ import annotations

from typing import Any

from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState, Verdict
from safe_monitor_node.monitor.session import MonitorSettings
from safe_msgs.msg import FailureAlarm
from vla_feature_bridge.ros.parameters import Parameter

ADVICE = {
    'none': FailureAlarm.ADVICE_NONE,
    'slow': FailureAlarm.ADVICE_SLOW,
    'stop': FailureAlarm.ADVICE_STOP,
    'backtrack': FailureAlarm.ADVICE_BACKTRACK,
    'ask': FailureAlarm.ADVICE_ASK,
}
"""Values of the parameter ``alarm_advice``."""

PARAMETERS = (
    Parameter('detector_folder', '', 'Folder of the fitted detector.'),
    Parameter(
        'alpha',
        0.0,
        'Promised false-alarm rate; 0 uses the rate stored in the detector folder.',
        0.0,
        0.99,
    ),
    Parameter(
        'warning_alpha',
        0.0,
        'False-alarm rate of the warnings; 0 uses twice alpha if the band contains this rate, '
        'otherwise there are no warnings.',
        0.0,
        0.99,
    ),
    Parameter(
        'adaptation_step',
        0.0,
        'Step size of the threshold updates by labelled successes, for example alpha / 10; 0 '
        'disables the updates.',
        0.0,
        1.0,
        old_name='adaptation_rate',
    ),
    Parameter(
        'adaptation_file',
        '',
        'File that keeps the updates of the thresholds; empty keeps them in memory only.',
    ),
    Parameter(
        'alarm_k',
        1,
        'Number of scores above the band, among the last alarm_n steps, that raises an alarm.',
        1,
        1000,
    ),
    Parameter(
        'alarm_n',
        1,
        'Number of the last steps among which alarm_k counts the scores above the band.',
        1,
        1000,
    ),
    Parameter(
        'stale_after',
        2.0,
        'If no step arrives for this time while an episode runs, the state is STALE [s]; 0 '
        'disables STALE.',
        0.0,
        3600.0,
    ),
    Parameter(
        'max_missing_steps',
        0,
        'Number of missing or unreadable steps that are allowed in an episode; with more, the '
        'rest of the episode is INVALID.',
        0,
        100000,
    ),
    Parameter('alarm_advice', 'stop', 'Advice published with an alarm.', choices=tuple(ADVICE)),
    Parameter(
        'stop_when_blind',
        True,
        'If true, safe/stop is also true while the state is STALE or INVALID.',
    ),
    Parameter('stop_period', 0.1, 'Period of safe/stop [s].', 0.005, 10.0),
    Parameter('diagnostics_period', 1.0, 'Period of /diagnostics [s].', 0.05, 60.0),
    Parameter(
        'end_grace',
        0.1,
        'Time in which steps may arrive after the END of their episode [s].',
        0.0,
        10.0,
    ),
    Parameter(
        'threads',
        1,
        "CPU threads of the detector's matrix products: of NumPy, and of PyTorch if the detector "
        'needs it.',
        1,
        256,
    ),
    Parameter(
        'autostart', True, 'Configure and activate at start-up, without a lifecycle manager.'
    ),
)


def settings_of(values: Any) -> MonitorSettings:
    """Return the settings of a session.

    Parameters
    ----------
    values
        The parameters' values as attributes, as ``declare_parameters`` returns them.

    Raises
    ------
    AlarmError
        ``alarm_k`` is larger than ``alarm_n``.
    """
    return MonitorSettings(
        alpha=values.alpha,
        warning_alpha=values.warning_alpha,
        adaptation_step=values.adaptation_step,
        adaptation_file=values.adaptation_file,
        alarm=AlarmConfig(
            values.alarm_k, values.alarm_n, values.stale_after, values.max_missing_steps
        ),
    )


def advice_of(values: Any, verdict: Verdict) -> int:
    """Return the advice of a verdict, one of ``FailureAlarm.ADVICE_...``.

    Parameters
    ----------
    values
        As in :func:`settings_of`.
    verdict : Verdict
    """
    if verdict.state == AlarmState.ALARM:
        return ADVICE[values.alarm_advice]
    if verdict.state in (AlarmState.STALE, AlarmState.INVALID) and values.stop_when_blind:
        return FailureAlarm.ADVICE_STOP
    return FailureAlarm.ADVICE_NONE
