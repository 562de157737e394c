# SPDX-License-Identifier: Apache-2.0
"""Severity and facts of a monitor session for ``/diagnostics``, without ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.good_runs import why_no_good_runs
from safe_monitor_node.monitor.session import MonitorSession, name_of_detector
from safe_monitor_node.monitor.step_order import shown
from vla_feature_bridge.nodes.levels import Finding, Level, most_severe, summarise

_LEVELS = {
    AlarmState.NOMINAL: Level.OK,
    AlarmState.WARNING: Level.WARN,
    AlarmState.ALARM: Level.ERROR,
    AlarmState.INVALID: Level.ERROR,
    AlarmState.UNKNOWN: Level.STALE,
    AlarmState.STALE: Level.STALE,
}


def diagnose(
    session: MonitorSession | None, active: bool, failure: str, around: Sequence[Finding] = ()
) -> tuple[Level, str]:
    """Return the level and one sentence for a person.

    Parameters
    ----------
    session : MonitorSession or None
        None while the node is not configured.
    active : bool
        Whether the node is active.
    failure : str
        Reason why the last configure failed; empty if it succeeded.
    around : sequence of Finding
        What is wrong with the node and with the nodes around it.
    """
    if session is None:
        level, message = (Level.ERROR, failure) if failure else (Level.STALE, 'not configured')
    elif not active:
        level, message = Level.STALE, 'not active'
    else:
        verdict = session.verdict
        level, message = _LEVELS[verdict.state], f'{verdict.state.name}: {verdict.reason}'
        around = [*around, *_findings_of(session)]
    around = [finding for finding in around if finding.text not in message]
    if not around:
        return level, message
    worst, text = summarise(around, '')
    if level == Level.OK:
        return worst, f'{message.partition(":")[0]}, but {text}'
    return most_severe(level, worst), f'{message}; {text}'


def _findings_of(session: MonitorSession) -> list[Finding]:
    """Return what is doubtful although the state can be NOMINAL."""
    texts = (
        session.file_problem,
        session.freshness.warning,
        session.monitor.checks.warning,
        *session.remarks.texts,
    )
    return [Finding(Level.WARN, text) for text in texts if text]


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
    if (good_runs := monitor.thresholds.good_runs) is not None:
        text = f'a new task gets its own threshold from {good_runs.wanted} good runs'
        counts = [f'{shown(task)} {good_runs.count(task)}' for task in good_runs.tasks]
        sentences.append(f'{text}; good runs so far: {", ".join(counts)}' if counts else text)
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
        'steps repeated': counts.repeated,
        'steps misplaced': counts.misplaced,
        'first problem': session.first_problem,
        'last problem': session.problem,
        **_settings_facts(session),
    }
    facts |= _good_runs_facts(session)
    if monitor.adaptation is not None:
        facts |= _adaptation_facts(monitor.adaptation, monitor.threshold.task)
    if monitor.adaptation is not None or session.settings.adaptation_file:
        kept_in = session.adaptation_kept_in
        facts['adaptation file'] = (
            (session.file_problem or kept_in) if kept_in else 'none: updates are only in memory'
        )
    if session.latencies:
        p50, p99 = np.percentile(session.latencies, (50, 99)) * 1e3
        facts |= {'latency p50 [ms]': f'{p50:.3f}', 'latency p99 [ms]': f'{p99:.3f}'}
    return facts


def _settings_facts(session: MonitorSession) -> dict[str, object]:
    """Return what counts as an alarm and as STALE, and what changes with the next episode."""
    alarms, freshness = session.monitor.alarms, session.freshness
    config, age = alarms.config, freshness.age
    if config.stale_after == math.inf:
        stale = 'never'
    else:
        stale = f'{alarms.silence:.3g}'
        if not config.stale_after:
            stale += f' (learned: {alarms.period.explain()})'
    facts: dict[str, object] = {
        'alarm_k of alarm_n': f'{config.k} of {config.n}',
        'latch': config.latch.value,
        'stale after [s]': stale,
        'max_age [s]': f'{freshness.max_age:g}',
        'age of the last step [s]': 'unknown' if age is None else f'{age:.3f}',
    }
    upcoming = []
    if (config.k, config.n) != (alarms.next_config.k, alarms.next_config.n):
        upcoming.append(f'alarm_k {alarms.next_config.k} of alarm_n {alarms.next_config.n}')
    if (thresholds := session.monitor.next_thresholds) is not None:
        rates = (thresholds.alarm.alpha, thresholds.warning.alpha)
        upcoming.append('alpha {:g}, warning_alpha {:g}'.format(*rates))
    if upcoming:
        facts['at the next episode'] = ', '.join(upcoming)
    return facts


def _good_runs_facts(session: MonitorSession) -> dict[str, object]:
    """Return what is learned about new tasks from good runs, and why nothing is."""
    monitor = session.monitor
    good_runs = monitor.thresholds.good_runs
    if good_runs is None:
        return {'good runs': why_no_good_runs(monitor.calibrated, session.settings.good_runs)}
    facts: dict[str, object] = {'good runs': session.learning or 'not learning now'}
    for task in good_runs.tasks:
        count, band = good_runs.count(task), good_runs.bands.get(task)
        text = f'{count} of {good_runs.wanted}'
        if band is not None:
            text += f'; threshold {band.at(monitor.threshold.alpha).at(0):.4g}'
        facts[f'good runs of task {shown(task)}'] = text
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
