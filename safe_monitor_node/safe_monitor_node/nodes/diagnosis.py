# SPDX-License-Identifier: Apache-2.0
"""Severity and facts of a monitor session for ``/diagnostics``, without ROS."""

from __future__ import annotations

import numpy as np

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.session import MonitorSession, name_of_detector
from vla_feature_bridge.nodes.levels import Level

_LEVELS = {
    AlarmState.NOMINAL: Level.OK,
    AlarmState.WARNING: Level.WARN,
    AlarmState.ALARM: Level.ERROR,
    AlarmState.INVALID: Level.ERROR,
    AlarmState.UNKNOWN: Level.STALE,
    AlarmState.STALE: Level.STALE,
}


def diagnose(session: MonitorSession | None, active: bool, failure: str) -> tuple[Level, str]:
    """Return the level and one sentence for a person.

    Parameters
    ----------
    session : MonitorSession or None
        None while the node is not configured.
    active : bool
        Whether the node is active.
    failure : str
        Reason why the last configure failed; empty if it succeeded.
    """
    if session is None:
        return (Level.ERROR, failure) if failure else (Level.STALE, 'not configured')
    if not active:
        return Level.STALE, 'not active'
    verdict = session.verdict
    level = _LEVELS[verdict.state]
    if session.file_problem and level == Level.OK:
        return Level.WARN, f'{verdict.state.name}, but {session.file_problem}'
    return level, f'{verdict.state.name}: {verdict.reason}'


def introduce(session: MonitorSession) -> list[str]:
    """Return what a new session uses, one sentence for each line of the log."""
    monitor = session.monitor
    sentences = [
        f'detector {name_of_detector(monitor)} (width {monitor.calibrated.feature.dim}), '
        f'alpha {monitor.threshold.alpha:g}, from {session.folder}'
    ]
    if (adaptation := monitor.adaptation) is not None:
        moving, kept_in = adaptation.of(''), session.adaptation_kept_in
        sentences.append(
            'labelled episodes update the thresholds with adaptation_step '
            f'{adaptation.adaptation_step:g}: level {moving.level:.4g} after {moving.successes} '
            'successes' + (f', stored in {kept_in}' if kept_in else '')
        )
    return sentences


def facts_of(session: MonitorSession) -> dict[str, object]:
    """Return facts about a session for users, as a mapping from name to text.

    The name of a time contains its unit.
    """
    monitor = session.monitor
    calibrated, counts = monitor.calibrated, monitor.counts
    facts: dict[str, object] = {
        'detector': calibrated.detector.name,
        'features': f'{calibrated.feature} (width {calibrated.feature.dim})',
        'alpha (promised false-alarm rate)': f'{monitor.threshold.alpha:g}',
        'calibration rollouts': calibrated.band.n_calibration,
        'band length [steps]': calibrated.band.length,
        'episode': monitor.episode_id,
        'task': monitor.task,
        'band': monitor.band_name,
        'state': session.verdict.state.name,
        'episodes': counts.episodes,
        'steps scored': counts.scored,
        'steps invalid': counts.invalid,
        'steps missing': counts.missing,
        'steps out of order': counts.out_of_order,
        'last problem': session.problem,
    }
    if monitor.adaptation is not None:
        facts |= _adaptation_facts(monitor.adaptation, monitor.threshold.task)
        kept_in = session.adaptation_kept_in
        facts['adaptation file'] = (
            (session.file_problem or kept_in) if kept_in else 'none: updates are only in memory'
        )
    if session.latencies:
        p50, p99 = np.percentile(session.latencies, (50, 99)) * 1e3
        facts |= {'latency p50 [ms]': f'{p50:.3f}', 'latency p99 [ms]': f'{p99:.3f}'}
    return facts


def _adaptation_facts(adaptation: AdaptiveBand, task_in_use: str) -> dict[str, object]:
    """Return the state of the adaptation of the band in use and of each updated band."""
    facts: dict[str, object] = {'adaptation step': f'{adaptation.adaptation_step:g}'}
    for task in adaptation.tasks:
        moving = adaptation.of(task)
        if not moving.successes and task != task_in_use:
            continue
        share = f'{moving.false_alarms / moving.successes:.3g}' if moving.successes else 'unknown'
        facts[f'adaptation of {name_of(task)}'] = (
            f'level {moving.level:.4g}; false alarms {moving.false_alarms} of '
            f'{moving.successes} labelled successes, realised {share}, promised {moving.alpha:g}'
        )
    return facts
