# SPDX-License-Identifier: Apache-2.0
"""The parameters of the black box node: name, default, description and range."""

from __future__ import annotations

from safe_monitor_node.black_box.folder import DELETE_OLDEST, REFUSE
from vla_feature_bridge.ros.parameters import Parameter

ALARM, ALARM_OR_BLIND = 'alarm', 'alarm_or_blind'

PARAMETERS = (
    Parameter('folder', '', 'Folder of the recordings; it is made if it does not exist.'),
    Parameter(
        'record_on',
        ALARM,
        '`alarm`: make a recording at the state ALARM; `alarm_or_blind`: also at STALE and '
        'INVALID. ~/save always makes a recording.',
        choices=(ALARM, ALARM_OR_BLIND),
    ),
    Parameter('seconds_before', 30.0, 'Time before the alarm that is recorded [s].', 0.1, 3600.0),
    Parameter('seconds_after', 5.0, 'Time after the alarm that is recorded [s].', 0.0, 600.0),
    Parameter(
        'whole_episodes',
        True,
        'If true, a recording begins with the episode that was running seconds_before before the '
        'alarm, even if the episode began earlier, so that the episode can be converted.',
    ),
    Parameter(
        'memory_mb',
        200.0,
        'Largest memory for messages [MB]; when it is full, the oldest messages are dropped.',
        1.0,
        100000.0,
    ),
    Parameter('max_files', 50, 'Largest number of recordings in the folder.', 1, 100000),
    Parameter(
        'max_folder_mb',
        2000.0,
        'Largest disk space of all recordings in the folder [MB].',
        1.0,
        10000000.0,
    ),
    Parameter(
        'when_full',
        DELETE_OLDEST,
        '`delete_oldest`: the oldest recordings without a label file are deleted for a new one; '
        '`refuse`: the new recording is lost, and `/diagnostics` reports it.',
        choices=(DELETE_OLDEST, REFUSE),
    ),
    Parameter('diagnostics_period', 1.0, 'Period of /diagnostics [s].', 0.05, 60.0),
    Parameter(
        'autostart', True, 'Configure and activate at start-up, without a lifecycle manager.'
    ),
)
