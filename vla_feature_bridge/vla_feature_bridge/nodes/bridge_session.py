# SPDX-License-Identifier: Apache-2.0
"""All objects of the bridge between configure and cleanup: receiver, sources, topics."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.bridge_boundaries import Boundary
from vla_feature_bridge.nodes.bridge_diagnosis import (
    RECENT,
    Diagnosis,
    Finding,
    diagnose_channel,
    summarise,
)
from vla_feature_bridge.nodes.bridge_episodes import JoinedEpisodes
from vla_feature_bridge.nodes.bridge_signs import (
    event_input,
    goal_input,
    instruction_input,
    value_input,
)
from vla_feature_bridge.nodes.bridge_sources import BridgedSource, Sources
from vla_feature_bridge.nodes.bridge_topics import TopicSteps
from vla_feature_bridge.nodes.handover import Handover
from vla_feature_bridge.nodes.levels import Level
from vla_feature_bridge.ros.topic_input import TopicInput
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire.address import default_address
from vla_feature_bridge.wire.messages import Hello, Image
from vla_feature_bridge.wire.receiver import StepReceiver

#: Period of the search for publishers [s].
_LOOK = 0.5
#: How often a waiting thread checks whether the session is closed [s].
_TICK = 0.1
#: The first steps of a connection may have waited in the sender: at least this time lies between
#: two of them [s], because a subscriber keeps only 100 steps that it has not handled.
_PAUSE = 0.005
#: Number of these first steps: a sender keeps 256, and the system some more.
_BACKLOG = 500
#: Number of different problems of topics that are logged.
_LOGGED = 50
_NO_SENDERS = 'none'


class BridgeSession:
    """Receives data from senders and topics, and publishes the steps of each source.

    Parameters
    ----------
    node : ManagedNode
        Steps are published while its ``active`` is true.
    p
        Values of the parameters of the bridge.

    Raises
    ------
    SafeError
        An address cannot be listened on, a parameter is wrong, or a package is missing.
    """

    def __init__(self, node: Any, p: Any) -> None:
        self._node, self._p = node, p
        self.sources = Sources(node, p)
        self._instruction = ''
        self._problem, self._problem_at = '', -RECENT
        self._ignored = 0
        self._refusals, self._refused_at = 0, -RECENT
        self._looked_at = 0.0
        self._logged: set[str] = set()
        self._topics: TopicSteps | None = None
        self._signs: dict[str, TopicInput] = {}
        self._handover = Handover(node, self._on_error)
        self._receiver: StepReceiver | None = None
        try:
            self._open()
        except Exception:
            self.close()
            raise

    def _open(self) -> None:
        node, p = self._node, self._p
        if p.features_topic or p.actions_topic or p.observation_topic:
            channel = self.sources.of_topics().channel
            assert isinstance(channel, JoinedEpisodes)
            self._topics = TopicSteps(node, p, channel)
            channel.on_begin = self._topics.forget_unjoined
        self._open_signs(node, p)
        addresses = [address for address in p.listen if address] or [default_address()]
        if addresses != [_NO_SENDERS]:
            self._receiver = StepReceiver(
                addresses, self._on_message, self._on_source, log=node.get_logger().warning
            )

    def _open_signs(self, node: Node, p: Any) -> None:
        take = self._take_sign
        if p.instruction_topic:
            self._signs['instruction_topic'] = instruction_input(
                node, p, self._keep_instruction, take
            )
        if p.episode_from == 'topic':
            self._signs['episode_topic'] = value_input(node, p, take)
        elif p.episode_from == 'event' and p.episode_topic:
            self._signs['episode_topic'] = event_input(node, p.episode_topic, take)
        elif p.episode_from == 'action_status':
            self._signs['episode_action'] = goal_input(node, p, take)

    def close(self) -> None:
        """Close every connection and destroy every topic."""
        self._handover.close()
        if self._receiver is not None:
            self._receiver.close()
        for sign in self._signs.values():
            sign.close()
        if self._topics is not None:
            self._topics.close()
        self.sources.close()

    def introduction(self) -> list[str]:
        """Return the lines of the log that describe the session."""
        sentences = []
        if self._receiver is not None:
            sentences.append(f'listening at {", ".join(self._receiver.addresses)}')
        if self._topics is not None:
            names = ', '.join(topic.topic for topic in self._topics.inputs.values())
            verb = 'joining' if len(self._topics.inputs) > 1 else 'reading'
            sentences.append(f'{verb} {names}')
        if not sentences:
            sentences.append(
                'no source of steps: listen is none, features_topic and actions_topic are empty'
            )
        sentences.append(f'episodes come from: {self._p.episode_from}')
        return sentences

    # --- what comes in

    def _on_message(self, name: str, message: Any) -> None:
        """Handle a message of a sender, in a thread of the receiver."""
        source = self.sources.get(name)
        # While this thread waits, steps wait in the queue of the sender, which drops the oldest
        # steps.
        while source is not None and not source.ready.wait(_TICK):
            if self._handover.is_closed:
                return
        self._handover.call(lambda: self._take_message(name, message))
        if source is not None and source.backlog and isinstance(message, PolicyStep):
            source.backlog -= 1
            time.sleep(_PAUSE)

    def _on_source(self, hello: Hello, connected: bool) -> None:
        """Handle the start or the end of a connection, in a thread of the receiver."""
        self._handover.call(lambda: self._take_connection(hello, connected))

    def _take_connection(self, hello: Hello, connected: bool) -> None:
        try:
            source = self.sources.of_sender(hello.source)
        except SafeError as error:
            if self._receiver is not None:
                self._receiver.set_status(False, str(error), hello.source)
            raise
        # Two connections of one source use two threads, so their calls can come in any order.
        known = self._receiver.statistics().get(hello.source) if self._receiver else None
        source.connected = known is not None and known.connected
        source.lost_at = None if source.connected else time.monotonic()
        source.backlog = _BACKLOG
        self._tell(source)
        self._node.get_logger().info(
            f'source {hello.source!r} (policy {hello.policy!r}, process {hello.pid}) '
            f'{"connected" if connected else "is gone"}'
        )

    def _take_message(self, name: str, message: Any) -> None:
        if not self._node.active:
            self._ignored += 1
            return
        source = self.sources.of_sender(name)
        channel: Any = source.channel
        try:
            if isinstance(message, PolicyStep):
                message.instruction = message.instruction or self._instruction
                message.stamp = message.stamp or self._now()
                channel.take_step(message)
            elif isinstance(message, EpisodeEventRecord):
                channel.take_event(message)
            elif isinstance(message, Image):
                source.outputs.publish_image(message.name, message.array, message.stamp)
        except Exception as error:  # Data of a policy must not end the node.
            text = str(error) if isinstance(error, SafeError) else repr(error)
            channel.note(text)
            self._node.get_logger().warning(f'source {name!r}: {text}', throttle_duration_sec=5.0)

    def _now(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_error(self, error: Exception) -> None:
        self._problem, self._problem_at = str(error) or repr(error), time.monotonic()
        self._node.get_logger().warning(self._problem, throttle_duration_sec=5.0)

    def _keep_instruction(self, instruction: str) -> None:
        self._instruction = instruction
        if self._topics is not None:
            self._topics.instruction = instruction

    def _take_sign(self, boundary: Boundary) -> None:
        if self._node.active:
            self.sources.take_for_all(boundary)
        else:
            self.sources.remember(boundary)

    def activated(self) -> None:
        """Begin to publish."""
        self.sources.begin_remembered()

    # --- what people ask for

    def serve(self, boundary: Boundary, name: str) -> list[str]:
        """Begin or end the episode of one source or of all sources. Return the ids of the episodes.

        Raises
        ------
        SafeError
            The parameter ``episode_from`` is not ``service``, or no source has this name.
        """
        if self._p.episode_from != 'service':
            raise SafeError(
                where='parameter episode_from',
                expected='service, for this call',
                found=self._p.episode_from,
                advice='start the bridge with episode_from:=service',
            )
        if name:
            sources = self.sources.named(name)
            before = [source.channel.running for source in sources]
            self.sources.take(boundary, sources[0])
        else:
            sources = list(self.sources)
            before = [source.channel.running for source in sources]
            self.sources.take_for_all(boundary)
        if boundary.kind == 'end':
            return [episode for episode in before if episode]
        return [source.channel.running for source in sources]

    def label(self, episode_id: str, success: bool | None, reason: str) -> str:
        """Publish the outcome of an episode and return what was done.

        Raises
        ------
        SafeError
            It is not clear which episode is meant.
        """
        channel = self.sources.with_episode(episode_id).channel
        found = episode_id or channel.latest_id
        if not found:
            raise SafeError(where='label_episode', expected='an episode', found='none yet')
        channel.label(found, success, reason)
        known = '' if channel.knows(found) else '; the bridge does not know this episode'
        outcome = {None: 'unknown', True: 'a success', False: 'a failure'}[success]
        return f'episode {found!r}, outcome {outcome}: published{known}'

    # --- what comes by itself

    def tick(self) -> None:
        """Check subscribers, publishers and the time."""
        if self._node.active:
            self.sources.tick()
        self.sources.look_for_subscribers()
        for source in self.sources:
            self._tell(source)
        now = time.monotonic()
        if now - self._looked_at < _LOOK:
            return
        self._looked_at = now
        self.sources.update_inputs()
        for sign in self._signs.values():
            sign.update()
        if self._topics is not None:
            self._topics.update()
        self._log_problems()

    def _log_problems(self) -> None:
        """Log each problem of a topic once. A topic without a publisher is no problem."""
        findings = self._sign_findings()
        if self._topics is not None:
            findings += self._topics.findings()
        for finding in findings:
            text = finding.text
            if finding.level == Level.STALE or text in self._logged or len(self._logged) >= _LOGGED:
                continue
            self._logged.add(text)
            log = self._node.get_logger()
            # rclpy refuses one line of the program that logs at two levels.
            if finding.level == Level.ERROR:
                log.error(text)
            else:
                log.warning(text)

    def _tell(self, source: BridgedSource) -> None:
        """Tell the sender of a source whether a monitor listens."""
        if self._receiver is None:
            return
        # A recorder of steps alone, or a subscriber that cannot connect, is not waited for here.
        found = self.sources.all_found or source.ready.is_set()
        listens = self._node.active and found and source.outputs.subscribers > 0
        topic = source.outputs.step_topic
        detail = f'{topic}: {"a subscriber listens" if listens else "no subscriber listens yet"}'
        self._receiver.set_status(listens, detail, source.channel.name)

    def clock_jumped(self) -> None:
        """Accept every stamp from now on, also earlier stamps."""
        if self._topics is not None:
            self._topics.clock_jumped()

    # --- diagnostics

    def diagnoses(self, findings: list[Finding]) -> list[Diagnosis]:
        """Return the diagnosis of the bridge and of every source.

        Parameters
        ----------
        findings : list of Finding
            What the node has found.
        """
        findings = [*findings, *self._own_findings()]
        facts: dict[str, object] = {'episode_from': self._p.episode_from}
        if self._receiver is not None:
            facts['listening at'] = ', '.join(self._receiver.addresses)
            facts['connections refused'] = self._receiver.refusals
            facts['last refusal'] = self._receiver.last_refusal[:1000]
        facts['sources'] = ', '.join(repr(s.channel.name) for s in self.sources) or 'none'
        facts['messages ignored while inactive'] = self._ignored
        for name, sign in self._signs.items():
            facts[name] = f'{sign.topic}: {sign.received} messages'
        level, message = summarise(findings, f'{len(self.sources)} source(s)')
        return [
            Diagnosis('bridge', level, message, facts),
            *(self._diagnose(source) for source in self.sources),
        ]

    def _own_findings(self) -> list[Finding]:
        now = time.monotonic()
        findings = []
        if not len(self.sources):
            findings.append(Finding(Level.STALE, 'no source is connected'))
        if self._receiver is not None and self._receiver.refusals != self._refusals:
            self._refusals, self._refused_at = self._receiver.refusals, now
        if self._receiver is not None and now - self._refused_at < RECENT:
            findings.append(Finding(Level.ERROR, self._receiver.last_refusal))
        if now - self._problem_at < RECENT:
            findings.append(Finding(Level.ERROR, self._problem))
        return findings + self._sign_findings()

    def _sign_findings(self) -> list[Finding]:
        return [
            Finding(
                Level.STALE if sign.problem == 'no publisher' else Level.ERROR,
                f'{name} {sign.topic}: {sign.problem}',
            )
            for name, sign in self._signs.items()
            if sign.problem
        ]

    def _diagnose(self, source: BridgedSource) -> Diagnosis:
        around = source.surroundings()
        if not self._node.active:
            around.problems.append(Finding(Level.STALE, 'the bridge is not active'))
        channel, p = source.channel, self._p
        more: dict[str, object] = {}
        if self._topics is not None and isinstance(channel, JoinedEpisodes):
            around.connected = self._topics.connected
            around.connection = 'topics'
            around.problems += self._topics.findings()
            source.outputs.joint_names = self._topics.joint_names
            more = self._topics.facts()
        elif self._receiver is not None:
            known = self._receiver.statistics().get(channel.name)
            if known is not None:
                around.connection = (
                    f'{known.address}, policy {known.hello.policy!r}, process {known.hello.pid}'
                )
                more = {
                    'connections': known.connections,
                    'steps dropped by the sender': known.dropped,
                    'last error of the connection': known.last_error[:1000],
                }
        if source.events is not None and source.events.problem not in ('', 'no publisher'):
            around.problems.append(Finding(Level.ERROR, source.events.problem))
        diagnosis = diagnose_channel(channel, around, p.stale_after, p.max_step_age)
        diagnosis.facts |= more
        return diagnosis
