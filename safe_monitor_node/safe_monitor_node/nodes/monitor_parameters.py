# SPDX-License-Identifier: Apache-2.0
"""The parameters of the monitor node: name, default, description and range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from safe_monitor_node.bands.good_run_records import KEPT_RUNS
from safe_monitor_node.bands.good_runs import DEFAULT_RUNS
from safe_monitor_node.monitor.alarm import AlarmConfig, Latch
from safe_monitor_node.monitor.alarm_policy import Advice, AdviceTable
from safe_monitor_node.monitor.policy_rows import read_rows
from safe_monitor_node.monitor.rules import ANY
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.start_of_watch import LISTENING
from safe_monitor_node.monitor.step_period import LONGEST_SILENCE, PERIODS, SHORTEST_SILENCE
from vla_feature_bridge.ros.parameters import AT_ONCE, NEXT_EPISODE, Parameter

PARAMETERS = (
    Parameter(
        'detector_folder',
        '',
        'Folder of the fitted detector, or the name of a shipped detector: signal_probe.',
    ),
    Parameter(
        'more_detectors',
        [''],
        'Folders of further detectors that score the same steps; detector_rule combines the '
        'alarms.',
    ),
    Parameter(
        'detector_names',
        [''],
        'Name of each detector, beginning with detector_folder; empty: the kind of the detector. '
        'With several detectors, the scores of each detector are on safe/NAME/score.',
    ),
    Parameter(
        'detector_rule',
        ANY,
        'Rule that combines several detectors to one alarm: `any`, `all`, `2 of 3`, `all within 5 '
        'steps`, '
        '`NAME and NAME within 5 steps`.',
        changes=NEXT_EPISODE,
    ),
    Parameter(
        'alpha',
        0.0,
        'Promised false-alarm rate; 0 uses the rate stored in the detector folder.',
        0.0,
        0.99,
        changes=NEXT_EPISODE,
    ),
    Parameter(
        'warning_alpha',
        0.0,
        'False-alarm rate of the warnings; 0 uses twice alpha if the band contains this rate, '
        'otherwise there are no warnings.',
        0.0,
        0.99,
        changes=NEXT_EPISODE,
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
        'File that keeps the updates of the thresholds and the good runs; empty keeps them in '
        'memory only.',
    ),
    Parameter(
        'good_runs',
        DEFAULT_RUNS,
        'Number of labelled successes of a task that the detector does not know, after which the '
        'task has its own threshold; until then the monitor is learning, and its state is WARNING '
        'instead of NOMINAL; 0 disables this; it has no effect if the detector folder has no data '
        'for good runs.',
        0,
        KEPT_RUNS,
    ),
    Parameter(
        'learning_advice',
        'none',
        'Advice while the monitor is learning a task and the state is WARNING, unless a row of '
        'alarm_policy gives a stronger advice.',
        choices=tuple(one.name.lower() for one in Advice),
        changes=AT_ONCE,
    ),
    Parameter(
        'alarm_k',
        1,
        'Number of scores above the band, among the last alarm_n steps, that raises an alarm.',
        1,
        1000,
        changes=NEXT_EPISODE,
    ),
    Parameter(
        'alarm_n',
        1,
        'Number of the last steps among which alarm_k counts the scores above the band.',
        1,
        1000,
        changes=NEXT_EPISODE,
    ),
    Parameter(
        'warning_steps',
        1,
        'A WARNING ends after this number of steps in succession that are not above the warning '
        'threshold.',
        1,
        1000,
        changes=NEXT_EPISODE,
    ),
    Parameter(
        'stale_after',
        0.0,
        'If no step arrives for this time while an episode runs, the state is STALE [s]; 0 uses '
        f'{PERIODS} times the measured period of the steps, at least {SHORTEST_SILENCE:g} and at '
        f'most {LONGEST_SILENCE:g}.',
        0.0,
        3600.0,
        changes=AT_ONCE,
    ),
    Parameter(
        'stale_mode',
        'watch',
        '`watch`: without a step for stale_after, the state is STALE; `never`: the time without a '
        'step is ignored.',
        choices=('watch', 'never'),
        changes=AT_ONCE,
    ),
    Parameter(
        'max_age',
        5.0,
        'Largest age of a step when it arrives: ROS time minus its stamp [s]; the state is STALE '
        'after an older step; 0 only reports the age.',
        0.0,
        86400.0,
        changes=AT_ONCE,
    ),
    Parameter(
        'max_missing_steps',
        0,
        'Number of missing or unreadable steps that are allowed in an episode; with more, the '
        'rest of the episode is INVALID.',
        0,
        100000,
    ),
    Parameter(
        'max_identical_features',
        5,
        'Number of steps in succession that may have identical features; the next identical step '
        'is INVALID, because the camera or the policy seems to have stopped; 0 accepts any number.',
        0,
        100000,
        changes=NEXT_EPISODE,
    ),
    Parameter(
        'latch',
        Latch.EPISODE.value,
        '`episode`: an alarm lasts until its episode ends or ~/reset is called; `reset`: an alarm '
        'lasts until ~/reset is called, also during later episodes.',
        choices=tuple(latch.value for latch in Latch),
        changes=AT_ONCE,
    ),
    Parameter(
        'alarm_advice',
        'stop',
        'Advice published with an alarm, unless a row of alarm_policy gives another advice.',
        choices=tuple(advice.name.lower() for advice in Advice),
        changes=AT_ONCE,
    ),
    Parameter(
        'alarm_policy',
        [''],
        'Rows `STATE: ADVICE`, each in quotes; the last row that matches gives the advice. '
        'Examples: '
        "'WARNING: SLOW', 'ALARM after 10 steps: ASK', 'STALE after 5 s: ASK', 'ALARM margin > "
        "2.0: BACKTRACK', 'ALARM: SLOW for task NAME'. Advice: NONE, SLOW, STOP, BACKTRACK, ASK; "
        'with the last three, safe/stop is true.',
        changes=AT_ONCE,
    ),
    Parameter(
        'stop_when_blind',
        True,
        'If true, safe/stop is also true while the state is STALE or INVALID, and for up to '
        f'{LISTENING:g} s after activation until it is known whether an episode is running.',
        changes=AT_ONCE,
    ),
    Parameter(
        'stop_when_unknown',
        False,
        'If true, safe/stop is also true while the state is UNKNOWN: between episodes and before '
        'the first scored step of an episode.',
        changes=AT_ONCE,
    ),
    Parameter('stop_period', 0.1, 'Period of safe/stop [s].', 0.005, 10.0),
    Parameter('diagnostics_period', 1.0, 'Period of /diagnostics [s].', 0.05, 60.0),
    Parameter(
        'end_grace',
        0.1,
        'Time in which steps may arrive after the END of their episode, or after the START of the '
        'next episode [s].',
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
    SafeError
        ``alarm_k`` is larger than ``alarm_n``, or ``alarm_policy`` is wrong.
    """
    return MonitorSettings(
        alpha=values.alpha,
        warning_alpha=values.warning_alpha,
        adaptation_step=values.adaptation_step,
        adaptation_file=values.adaptation_file,
        alarm=AlarmConfig(
            k=values.alarm_k,
            n=values.alarm_n,
            stale_after=math.inf if values.stale_mode == 'never' else values.stale_after,
            max_missing_steps=values.max_missing_steps,
            max_identical_features=values.max_identical_features,
            latch=Latch(values.latch),
            warning_steps=values.warning_steps,
        ),
        max_age=values.max_age,
        good_runs=values.good_runs,
        learning_advice=Advice[values.learning_advice.upper()],
        advice=AdviceTable(
            read_rows(values.alarm_policy),
            Advice[values.alarm_advice.upper()],
            values.stop_when_blind,
            values.stop_when_unknown,
        ),
        more_folders=_texts(values.more_detectors),
        names=_texts(values.detector_names),
        rule=values.detector_rule,
    )


def _texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that are not empty."""
    return tuple(text.strip() for text in texts if text.strip())


def demands(values: Any) -> dict[str, object]:
    """Return the parameters of advice and stop, for ``/diagnostics``."""
    return {
        'alarm_advice': values.alarm_advice,
        'learning_advice': values.learning_advice,
        'alarm_policy': '; '.join(_texts(values.alarm_policy)) or 'no rows',
        'stop_when_blind': str(values.stop_when_blind).lower(),
        'stop_when_unknown': str(values.stop_when_unknown).lower(),
    }
