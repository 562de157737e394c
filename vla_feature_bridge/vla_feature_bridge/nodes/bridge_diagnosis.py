# SPDX-License-Identifier: Apache-2.0
"""Severity and facts of the bridge and of its sources for ``/diagnostics``. No ROS."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vla_feature_bridge.nodes.bridge_channel import Channel
from vla_feature_bridge.nodes.levels import Finding, Level, summarise

#: How long a problem is reported after it was noticed [s].
RECENT = 10.0


@dataclass
class Diagnosis:
    """One status of ``/diagnostics``.

    Attributes
    ----------
    name : str
        Name of the diagnosed part, without the name of the node.
    level : Level
    message : str
    facts : dict of str to object
        Values by their names; the name of a time contains the unit.
    """

    name: str
    level: Level
    message: str
    facts: dict[str, object] = field(default_factory=dict)


@dataclass
class Surroundings:
    """The connection of a source, and the nodes around it.

    Attributes
    ----------
    step_topic : str
    subscribers : int
        Subscribers of its steps.
    other_publishers : list of str
        Other nodes that publish on its topic of steps.
    connected : bool
        Whether its sender is connected, or each of its topics has a publisher.
    connection : str
        A text about the origin of its steps, for people.
    problems : list of Finding
        Problems of its connection.
    """

    step_topic: str
    subscribers: int = 0
    other_publishers: list[str] = field(default_factory=list)
    connected: bool = True
    connection: str = ''
    problems: list[Finding] = field(default_factory=list)


def diagnose_channel(
    channel: Channel, around: Surroundings, stale_after: float, max_step_age: float
) -> Diagnosis:
    """Return the diagnosis of one source.

    Parameters
    ----------
    channel : Channel
    around : Surroundings
    stale_after, max_step_age : float
        As the parameters of the bridge [s].
    """
    now = time.monotonic()
    findings = [
        *around.problems,
        *_connection_findings(channel, around),
        *_step_findings(channel, now, stale_after, max_step_age),
    ]
    rate = channel.pace.rate(now)
    fine = (
        f'episode {channel.running[:100]!r}, {rate:.1f} steps/s'
        if channel.running
        else 'connected, no episode runs'
    )
    level, message = summarise(findings, fine)
    return Diagnosis(
        f'source {channel.name}' if channel.name else 'source',
        level,
        message,
        _facts(channel, around, now),
    )


def _connection_findings(channel: Channel, around: Surroundings) -> list[Finding]:
    findings = []
    if not around.connected:
        episode = ' while an episode runs' if channel.running else ''
        findings.append(Finding(Level.STALE, f'the source is not connected{episode}'))
    if around.other_publishers:
        others = ', '.join(around.other_publishers)
        findings.append(
            Finding(Level.WARN, f'another node publishes {around.step_topic} too: {others}')
        )
    if around.connected and not around.subscribers:
        findings.append(Finding(Level.WARN, f'no node subscribes to {around.step_topic}'))
    return findings


def _step_findings(
    channel: Channel, now: float, stale_after: float, max_step_age: float
) -> list[Finding]:
    findings = []
    if channel.problem and channel.problem_is_current(now, RECENT):
        findings.append(Finding(Level.WARN, channel.problem))
    if channel.outside_at is not None and now - channel.outside_at < RECENT:
        findings.append(
            Finding(
                Level.WARN,
                f'{channel.counts.outside} steps came while no episode ran; they are not published',
            )
        )
    last = channel.pace.last
    since = channel.running_since if last is None else max(last, channel.running_since)
    if channel.running and now - since > stale_after:
        findings.append(Finding(Level.STALE, f'no step for {now - since:.1f} s'))
    elif last is not None and max_step_age and abs(channel.pace.age) > max_step_age:
        findings.append(
            Finding(
                Level.WARN,
                f'the stamp of the last step is {channel.pace.age:.1f} s before its arrival: it '
                'waited, or the clocks differ',
            )
        )
    return findings


def _facts(channel: Channel, around: Surroundings, now: float) -> dict[str, object]:
    counts, pace = channel.counts, channel.pace
    return {
        'connection': around.connection,
        'step topic': around.step_topic,
        'subscribers': around.subscribers,
        'episode': channel.running[:200],
        'episodes': counts.episodes,
        'rate [Hz]': f'{pace.rate(now):.2f}',
        'time since last step [s]': 'none' if pace.last is None else f'{now - pace.last:.1f}',
        'age of last step [s]': f'{pace.age:.3f}',
        'steps received': counts.received,
        'steps published': counts.published,
        'steps lost': counts.lost,
        'steps repeated': counts.repeated,
        'steps refused': counts.refused,
        'steps outside an episode': counts.outside,
        'last problem': channel.problem[:1000],
    }
