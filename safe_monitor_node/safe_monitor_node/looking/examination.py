# SPDX-License-Identifier: Apache-2.0
"""Finds problems of monitors, topics and nodes in data of the ROS graph. No ROS."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Mark(Enum):
    """Kind of a remark: ok, information, or a problem."""

    OK = 'ok'
    NOTE = 'note'
    PROBLEM = 'problem'


@dataclass(frozen=True)
class Remark:
    """One sentence for a person."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Reader:
    """A subscription of ``safe/stop``.

    Attributes
    ----------
    node : str
    type_name : str
        Type of its messages.
    mismatch : str
        Why the QoS does not match the QoS of the monitor; empty if it matches.
    records : bool
        Whether the node also subscribes to the steps. Such a node is a recorder or a black box, and
        does not stop the robot.
    """

    node: str
    type_name: str
    mismatch: str = ''
    records: bool = False


@dataclass(frozen=True)
class Report:
    """One status of a node on ``/diagnostics``; ``at`` is its arrival on the steady clock [s]."""

    at: float
    level: int
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MonitorSeen:
    """Collected data of one monitor.

    Attributes
    ----------
    name : str
        Full name of the node.
    reports : sequence of Report
        In the order of their arrival.
    step_topics : sequence of str
        Topics of steps that the monitor subscribes to.
    step_publishers, event_publishers : sequence of str
        Other nodes that publish steps and episode events for this monitor.
    stop_topic : str
    stop_readers : sequence of Reader
    answers : bool
        Whether it answered a call of a service after the look.
    until : float
        When the doctor stopped to wait for this answer, on the steady clock [s].
    """

    name: str
    reports: Sequence[Report] = ()
    step_topics: Sequence[str] = ()
    step_publishers: Sequence[str] = ()
    event_publishers: Sequence[str] = ()
    stop_topic: str = ''
    stop_readers: Sequence[Reader] = ()
    answers: bool = True
    until: float = math.nan


@dataclass(frozen=True)
class GraphSeen:
    """Collected data of all nodes.

    Attributes
    ----------
    wait : float
        How long the data was collected [s].
    surroundings : str
        ROS domain, discovery range and RMW, for a person.
    nodes : sequence of str
        Full names of all nodes, also repeated ones.
    steps : mapping of str to sequence of str
        For each topic of policy steps the nodes that publish it.
    monitors : sequence of MonitorSeen
    bridges : mapping of str to mapping of str to Report
        For each bridge the last report of each of its parts: ``bridge``, ``source NAME``.
    """

    wait: float
    surroundings: str
    nodes: Sequence[str] = ()
    steps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    monitors: Sequence[MonitorSeen] = ()
    bridges: Mapping[str, Mapping[str, Report]] = field(default_factory=dict)


def examine_graph(seen: GraphSeen, robot: str = '') -> list[Remark]:
    """Return the remarks about all nodes; ``robot`` limits them to one robot."""
    remarks = [Remark(Mark.OK, f'{seen.surroundings}: {_count(len(seen.nodes), "node")}')]
    if not seen.nodes:
        remarks.append(
            Remark(
                Mark.PROBLEM,
                'no other node is visible: start the monitor, or give this terminal the same '
                'ROS_DOMAIN_ID, RMW_IMPLEMENTATION and ROS_AUTOMATIC_DISCOVERY_RANGE; between two '
                'computers, the network must pass multicast',
            )
        )
    for name, count in Counter(seen.nodes).items():
        if count > 1:
            remarks.append(
                Remark(
                    Mark.PROBLEM,
                    f'{name}: expected one node of this name, found {count}; end the others, or '
                    'start them in other namespaces (a killed node is listed for up to 20 s)',
                )
            )
    if not seen.monitors:
        which = f'robot {robot}' if robot else 'all namespaces'
        remarks.append(
            Remark(
                Mark.PROBLEM,
                f'{which}: expected a monitor, found none; start one with `ros2 launch '
                'safe_bringup monitor.launch.py detector_folder:=FOLDER`, or check whether its '
                'process hangs',
            )
        )
    listened = {topic for monitor in seen.monitors for topic in monitor.step_topics}
    remarks += _unheard(seen, listened) if not robot else []
    return remarks


def _unheard(seen: GraphSeen, listened: set[str]) -> Iterator[Remark]:
    for topic, nodes in sorted(seen.steps.items()):
        if topic in listened or not nodes:
            continue
        text = f'{topic}: {_names(nodes)} publishes steps, and no monitor subscribes'
        if seen.monitors:
            text += (
                '; start a monitor in the namespace of the policy, or remap vla/policy_step of the '
                'policy or of the monitor'
            )
        yield Remark(Mark.PROBLEM, text)


def examine_bridge(reports: Mapping[str, Report]) -> list[Remark]:
    """Return what a bridge reports about itself and about its sources.

    Parameters
    ----------
    reports : mapping of str to Report
        The last report of each part, ``bridge`` and ``source NAME``.
    """
    own = reports.get('bridge')
    if own is not None and not own.facts:
        advice = 'correct this and start the bridge again; until then it publishes no step'
        return [Remark(Mark.PROBLEM, f'not configured: {own.message}; {advice}')]
    if own is not None and own.message.startswith('not active'):
        advice = 'make it active with `ros2 lifecycle set`; until then it publishes no step'
        return [Remark(Mark.PROBLEM, f'{own.message}; {advice}')]
    marks = {0: Mark.OK, 3: Mark.NOTE}
    return [
        Remark(marks.get(report.level, Mark.PROBLEM), f'{part}: {report.message}')
        for part, report in sorted(reports.items())
    ]


def examine_monitor(monitor: MonitorSeen, wait: float) -> list[Remark]:
    """Return what is to say about one monitor that was looked at for ``wait`` seconds."""
    if not monitor.answers:
        return _no_answer(monitor)
    if not monitor.reports:
        text = (
            f'{monitor.name} answers, but sent no diagnostics for {wait:g} s: use a longer --wait '
            'if diagnostics_period is longer; otherwise its messages do not reach this computer'
        )
        return [Remark(Mark.PROBLEM, text)]
    last = monitor.reports[-1]
    if 'state' not in last.facts:
        advice = 'correct this and load a folder with `ros2 safe load FOLDER`'
        return [Remark(Mark.PROBLEM, f'not configured: {last.message}; {advice}')]
    facts = last.facts
    if last.message.startswith('not active'):
        advice = f'`ros2 lifecycle set {monitor.name} activate` makes it active'
        return [Remark(Mark.PROBLEM, f'{last.message}; {advice}')]
    detector = f'detector {facts.get("detector", "?")} of {facts.get("detector_folder", "?")}'
    features = f'features {facts.get("features", "?")}'
    return [
        Remark(Mark.OK, f'active, with {detector}, {features}'),
        *_state(last),
        *_steps(monitor),
        *_events(monitor),
        *_stop(monitor),
    ]


def _no_answer(monitor: MonitorSeen) -> list[Remark]:
    """Return what is to say about a monitor that is in the graph and does not answer."""
    text = (
        f'{monitor.name}/get_state: expected an answer, found none: the process of the monitor '
        'hangs or is suspended, loads a detector, or was killed less than 20 s ago; until it '
        'answers, nothing watches the robot: run the doctor again, and then start the monitor again'
    )
    remarks = [Remark(Mark.PROBLEM, text)]
    if monitor.reports:
        last = monitor.reports[-1]
        text = f'its last diagnostics came {monitor.until - last.at:.1f} s before: {last.message}'
        remarks.append(Remark(Mark.NOTE, text))
    return remarks


def _state(report: Report) -> Iterator[Remark]:
    """Yield the remarks of the monitor itself: its state and its problems."""
    state, reason = report.facts['state'], report.facts.get('reason', '')
    head, rest, unclear = f'{state}: {reason}', '', False
    if report.message.startswith(f'{state}, but '):
        rest = report.message.removeprefix(f'{state}, but ')
    elif report.message.startswith(head):
        rest = report.message.removeprefix(head).removeprefix('; ')
    elif report.message:
        # From another version, or shortened: the problems cannot be separated from the state.
        head, unclear = report.message, report.level > 0
    mark = (
        Mark.PROBLEM if state in _HINTS or unclear else Mark.OK if state == 'NOMINAL' else Mark.NOTE
    )
    if hint := next((text for part, text in _HINTS.get(state, ()) if part in head), ''):
        head += f'; {hint}'
    yield Remark(mark, head)
    if rest:
        yield Remark(Mark.PROBLEM, rest)


_HINTS = {
    'INVALID': (
        (
            'missing',
            'if these are the first steps, the policy published before the monitor was connected: '
            '`StepPublisher.start` waits for it, and `ros2 bag play --delay 3` too; the next '
            'episode is scored again',
        ),
    ),
    'STALE': (
        (
            'no /clock',
            'start the simulation or `ros2 bag play --clock`, or set use_sim_time to false',
        ),
        (
            'no policy step has arrived',
            'if the episode is over, let the policy send END (`StepPublisher.end`); if it infers '
            'more slowly, set stale_after; otherwise check the process of the policy',
        ),
    ),
}


def _steps(monitor: MonitorSeen) -> Iterator[Remark]:
    if len(monitor.reports) < 2:
        return
    first, last = monitor.reports[0], monitor.reports[-1]
    names = ('steps scored', 'steps invalid', 'steps missing')
    changes = [_number(last.facts, name) - _number(first.facts, name) for name in names]
    seconds = last.at - first.at
    if any(change > 0 for change in changes):
        parts = [f'{change:.0f} {name}' for name, change in zip(names, changes, strict=True)]
        mark = Mark.OK if changes[0] > 0 else Mark.PROBLEM
        yield Remark(mark, f'in {seconds:.1f} s: {", ".join(parts)}')
    elif monitor.step_publishers:
        yield Remark(
            Mark.NOTE,
            f'no step arrived for {seconds:.1f} s, although {_names(monitor.step_publishers)} has '
            'a publisher for them',
        )
    ages = _number(last.facts, 'age of the last step [s]')
    if ages < -0.1:
        yield Remark(
            Mark.PROBLEM,
            f'the stamp of the last step is {-ages:.2f} s in the future: synchronise the clocks of '
            'the computers, for example with chrony',
        )


def _events(monitor: MonitorSeen) -> Iterator[Remark]:
    if monitor.step_publishers and not monitor.event_publishers:
        yield Remark(
            Mark.NOTE,
            'no node publishes episode events: without END, the state is STALE some time after the '
            'last step of every episode; call `start` and `end` of StepPublisher',
        )


def _stop(monitor: MonitorSeen) -> Iterator[Remark]:
    topic, right = monitor.stop_topic, 'std_msgs/msg/Bool'
    if not monitor.stop_readers:
        yield Remark(Mark.NOTE, f'{topic}: no node subscribes, so that an alarm stops no robot')
    elif all(reader.records for reader in monitor.stop_readers):
        names = _names([reader.node for reader in monitor.stop_readers])
        text = f'{topic}: only {names} subscribes, to record it, so that an alarm stops no robot'
        yield Remark(Mark.NOTE, text)
    for reader in monitor.stop_readers:
        if reader.type_name != right:
            text = f'{topic}: {reader.node} expects {reader.type_name}; subscribe to {right}'
            yield Remark(Mark.PROBLEM, text)
        elif reader.mismatch:
            text = f'{topic}: {reader.node} gets no message ({reader.mismatch}); '
            text += 'subscribe with durability VOLATILE and without a shorter deadline'
            yield Remark(Mark.PROBLEM, text)
        else:
            yield Remark(Mark.OK, f'{topic}: {reader.node} gets it')


def _number(facts: Mapping[str, str], name: str) -> float:
    """Return a fact as a number; NaN if it is not a number."""
    try:
        return float(facts.get(name, 'nan'))
    except ValueError:
        return math.nan


def _count(count: int, noun: str) -> str:
    return f'{count} {noun}' + ('' if count == 1 else 's')


def _names(nodes: Sequence[str]) -> str:
    return ', '.join(sorted(set(nodes)))
