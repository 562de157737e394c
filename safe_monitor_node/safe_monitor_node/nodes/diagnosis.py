# SPDX-License-Identifier: Apache-2.0
"""Severity and facts of a monitor session for ``/diagnostics``, without ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safe_monitor_node.bands.adaptive_band import name_of
from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.good_runs import why_no_good_runs
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.slot import DetectorSlot, learns, name_of_detector
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
        Problems of the node and of other nodes.
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
    """Return problems that are possible in the state NOMINAL."""
    texts = (
        session.file_problem,
        session.freshness.warning,
        *dict.fromkeys(monitor.checks.warning for monitor in session.ensemble.monitors),
        *session.remarks.texts,
    )
    return [Finding(Level.WARN, text) for text in texts if text]


def introduce(session: MonitorSession) -> list[str]:
    """Return the lines of the log that describe a new session."""
    ensemble = session.ensemble
    sentences = [sentence for slot in ensemble.slots for sentence in _introduce(slot)]
    if ensemble.several:
        names = ', '.join(ensemble.names)
        sentences.append(f'rule {ensemble.rule.text!r} of the detectors {names}')
    return sentences


def _introduce(slot: DetectorSlot) -> list[str]:
    monitor = slot.monitor
    width = monitor.calibrated.feature.dim
    sentences = [
        f'detector {name_of_detector(monitor)}{f" (width {width})" if width else ""}, '
        f'alpha {monitor.threshold.alpha:g}, from {slot.folder}'
    ]
    if (adaptation := monitor.adaptation) is not None:
        moving, kept_in = adaptation.of(''), slot.adaptation_kept_in
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
        'reason': session.verdict.reason,
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
    ensemble = session.ensemble
    facts |= _detector_facts(session, ensemble.slots[0], '')
    if ensemble.several:
        facts['detector_rule'] = ensemble.rule.text
        for slot in ensemble.slots:
            facts[f'detector {slot.name}'] = _described(slot)
        for slot in ensemble.slots[1:]:
            facts |= _detector_facts(session, slot, f'{slot.name}: ')
    if unseen := session.settings.advice.tasks - session.tasks:
        facts['tasks of alarm_policy without an episode'] = ', '.join(sorted(unseen))
    if session.latencies:
        p50, p99 = np.percentile(session.latencies, (50, 99)) * 1e3
        facts |= {'latency p50 [ms]': f'{p50:.3f}', 'latency p99 [ms]': f'{p99:.3f}'}
    return facts


def _described(slot: DetectorSlot) -> str:
    """Return the description and the state of one of several detectors, in one line."""
    monitor = slot.monitor
    verdict, counts = slot.shown(monitor.verdict), monitor.counts
    text = verdict.state.name
    if math.isfinite(verdict.score):
        text += f', score {verdict.score:.4g}, threshold {verdict.threshold:.4g}'
    else:
        text += f': {verdict.reason}'
    text += f'; {name_of_detector(monitor)}, alpha {monitor.threshold.alpha:g}'
    text += f'; steps scored {counts.scored}, invalid {counts.invalid}'
    when = 'from' if slot.next_monitor is None else 'at the next episode'
    return f'{text}; {when} {slot.folder}'


def _settings_facts(session: MonitorSession) -> dict[str, object]:
    """Return the settings of alarms and of STALE, and the changes at the next episode."""
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
        'warning_steps': config.warning_steps,
        'latch': session.settings.alarm.latch.value,
        'stale after [s]': stale,
        'max_age [s]': f'{freshness.max_age:g}',
        'age of the last step [s]': 'unknown' if age is None else f'{age:.3f}',
    }
    upcoming = []
    if session.ensemble.next_rule != session.ensemble.rule:
        upcoming.append(f'detector_rule {session.ensemble.next_rule.text}')
    if config.warning_steps != alarms.next_config.warning_steps:
        upcoming.append(f'warning_steps {alarms.next_config.warning_steps}')
    if (config.k, config.n) != (alarms.next_config.k, alarms.next_config.n):
        upcoming.append(f'alarm_k {alarms.next_config.k} of alarm_n {alarms.next_config.n}')
    if (thresholds := session.monitor.next_thresholds) is not None:
        rates = (thresholds.alarm.alpha, thresholds.warning.alpha)
        upcoming.append('alpha {:g}, warning_alpha {:g}'.format(*rates))
    if upcoming:
        facts['at the next episode'] = ', '.join(upcoming)
    return facts


def _detector_facts(session: MonitorSession, slot: DetectorSlot, prefix: str) -> dict[str, object]:
    """Return the effects of labels on one detector, and the file that stores them."""
    facts = _good_runs_facts(session, slot, prefix) | _adaptation_facts(slot, prefix)
    if learns(slot.monitor) or session.settings.adaptation_file:
        kept_in = slot.adaptation_kept_in
        lost = 'updates are only in memory' if learns(slot.monitor) else 'labels change nothing'
        facts[f'{prefix}adaptation file'] = (
            (slot.file_problem or kept_in) if kept_in else f'none: {lost}'
        )
    return facts


def _good_runs_facts(session: MonitorSession, slot: DetectorSlot, prefix: str) -> dict[str, object]:
    """Return the good runs of new tasks, or why no task is learned."""
    monitor = slot.monitor
    good_runs = monitor.thresholds.good_runs
    if good_runs is None:
        why = why_no_good_runs(monitor.calibrated, session.settings.good_runs)
        return {f'{prefix}good runs': why}
    facts: dict[str, object] = {f'{prefix}good runs': slot.learning or 'not learning now'}
    for task in good_runs.tasks:
        count, band = good_runs.count(task), good_runs.bands.get(task)
        text = f'{count} of {good_runs.wanted}'
        if band is not None:
            text += f'; threshold {band.at(monitor.threshold.alpha).at(0):.4g}'
        facts[f'{prefix}good runs of task {shown(task)}'] = text
    return facts


def _adaptation_facts(slot: DetectorSlot, prefix: str) -> dict[str, object]:
    """Return the state of the adaptation of the band in use and of each updated band."""
    monitor = slot.monitor
    if (adaptation := monitor.adaptation) is None:
        return {}
    facts: dict[str, object] = {f'{prefix}adaptation step': f'{adaptation.adaptation_step:g}'}
    for task in adaptation.tasks:
        moving = adaptation.of(task)
        if not moving.successes and task != monitor.threshold.task:
            continue
        share = f'{moving.false_alarms / moving.successes:.3g}' if moving.successes else 'unknown'
        facts[f'{prefix}adaptation of {name_of(task)}'] = (
            f'level {moving.level:.4g}; false alarms {moving.false_alarms} of '
            f'{moving.successes} labelled successes, realised {share}, promised {moving.alpha:g}'
        )
    return facts
