# SPDX-License-Identifier: Apache-2.0
"""The sources of the bridge. Each source has a channel and topics."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from vla_feature_bridge.episode_steps import EpisodeSteps
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.bridge_boundaries import Boundary, InstructionRule
from vla_feature_bridge.nodes.bridge_channel import Channel
from vla_feature_bridge.nodes.bridge_diagnosis import Surroundings
from vla_feature_bridge.nodes.bridge_episodes import (
    GivenEpisodes,
    JoinedEpisodes,
    SenderEpisodes,
)
from vla_feature_bridge.nodes.bridge_outputs import SourceOutputs, check_source_name
from vla_feature_bridge.nodes.bridge_signs import event_input
from vla_feature_bridge.ros.topic_input import TopicInput
from vla_feature_bridge.step import NO_FEATURE

#: How long all subscribers must have been connected before the first step is published [s].
_SETTLE = 0.25
#: Time in which a new node finds all nodes that already run [s]. The first announcements can get
#: lost; Fast DDS repeats them after 3 s.
_DISCOVERY = 3.5


class SourceError(SafeError):
    """A source cannot be accepted, or no source has the given name."""


@dataclass
class BridgedSource:
    """One source.

    Attributes
    ----------
    channel : Channel
    outputs : SourceOutputs
    events : TopicInput or None
        Episode events of another node in the namespace of the source.
    connected : bool
        Whether its sender is connected.
    lost_at : float or None
        When its sender lost the connection, on the steady clock [s].
    ready : threading.Event
        Set as soon as published steps reach all subscribers.
    backlog : int
        How many of the next steps may have waited in the sender.
    """

    channel: Channel
    outputs: SourceOutputs
    events: TopicInput | None = None
    connected: bool = False
    lost_at: float | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    backlog: int = 0
    _made_at: float = field(default_factory=time.monotonic)
    _connected: int = 0
    _connected_at: float = 0.0

    def look_for_subscribers(self, patience: float, all_found: bool) -> None:
        """Check whether the new topics of the source have found their subscribers.

        A subscriber does not receive steps that were published before it was connected.

        Parameters
        ----------
        patience : float
            How long to wait for a subscriber [s].
        all_found : bool
            Whether the node has had the time to find all subscribers.
        """
        now = time.monotonic()
        connected = self.outputs.subscribers if self.outputs.has_all_subscribers else 0
        if connected != self._connected:
            self._connected, self._connected_at = connected, now
        settled = connected > 0 and now - self._connected_at >= _SETTLE
        if (all_found and settled) or now - self._made_at >= patience:
            self.ready.set()

    def surroundings(self) -> Surroundings:
        """Return the ROS connections of the source."""
        return Surroundings(
            step_topic=self.outputs.step_topic,
            subscribers=self.outputs.subscribers,
            other_publishers=self.outputs.other_publishers(),
            connected=self.connected,
        )


class Sources:
    """All sources by their names. A new source gets its topics at its first connection.

    Parameters
    ----------
    node : BridgeNode
    p
        Values of the parameters of the bridge.
    """

    def __init__(self, node: Any, p: Any) -> None:
        self._node, self._p = node, p
        self._sources: dict[str, BridgedSource] = {}
        self._running: Boundary | None = None

    def __iter__(self) -> Any:
        return iter(self._sources.values())

    def __len__(self) -> int:
        return len(self._sources)

    def get(self, name: str) -> BridgedSource | None:
        """Return a source; None if it has not connected yet."""
        return self._sources.get(name)

    def close(self) -> None:
        """Destroy all topics."""
        for source in self:
            source.outputs.destroy()
            if source.events is not None:
                source.events.close()
        self._sources.clear()

    # --- taking sources

    def of_sender(self, name: str) -> BridgedSource:
        """Return the source of a sender.

        Raises
        ------
        SafeError
            Its name cannot be a namespace, the name belongs to the joined topics, or there are too
            many sources.
        """
        found = self._sources.get(name)
        if found is None:
            found = self._sources[name] = self._new(name)
            if self._running is not None:
                found.channel.start(self._running)
        elif isinstance(found.channel, JoinedEpisodes):
            raise SourceError(
                where=f'source {name!r}',
                expected='a name that the joined topics do not have (topics_source)',
                found='a sender with that name',
                advice='give the StepSender another source',
            )
        return found

    def of_topics(self) -> BridgedSource:
        """Return the source whose steps are joined from topics.

        Raises
        ------
        SafeError
            A parameter is wrong.
        """
        p = self._p
        found = self._new(p.topics_source, joined=True)
        self._sources[p.topics_source] = found
        return found

    def _new(self, name: str, joined: bool = False) -> BridgedSource:
        check_source_name(name)
        if len(self._sources) >= self._p.max_sources:
            raise SourceError(
                where=f'source {name!r}',
                expected=f'at most {self._p.max_sources} sources (max_sources)',
                found='one more',
                advice='give every policy the same source at each start',
            )
        p = self._p
        prefix = f'{name}/' if name else ''
        own_events = self._node.resolve_topic_name(f'{prefix}vla/episode')
        follows = p.episode_from == 'event' and (
            not p.episode_topic or self._node.resolve_topic_name(p.episode_topic) == own_events
        )
        outputs = SourceOutputs(
            self._node,
            name,
            [name for name in p.joint_names if name],
            p.action_period,
            publishes_events=not follows,
        )
        source = BridgedSource(self._channel(name, outputs, joined), outputs)
        source.channel.default_task = p.task
        if follows:
            source.events = event_input(
                self._node, own_events, lambda boundary: self.take(boundary, source)
            )
        return source

    def _channel(self, name: str, outputs: SourceOutputs, joined: bool) -> Channel:
        p, clock = self._p, lambda: int(self._node.get_clock().now().nanoseconds)
        by_gap = p.episode_from == 'gap'
        if joined:
            steps = EpisodeSteps(
                p.feature_name if p.features_topic else NO_FEATURE,
                p.exec_horizon,
                p.policy,
                p.action_space,
                clock,
            )
            return JoinedEpisodes(name, outputs, clock, steps, by_gap)
        if p.episode_from == 'sender':
            return SenderEpisodes(name, outputs, clock)
        by_instruction = p.episode_from == 'instruction' and not p.instruction_topic
        rule = InstructionRule() if by_instruction else None
        return GivenEpisodes(name, outputs, clock, by_gap, rule)

    # --- episodes

    def take_for_all(self, boundary: Boundary) -> None:
        """Begin or end an episode of every source, also of sources that connect later."""
        self.remember(boundary)
        for source in self:
            self.take(boundary, source)

    def remember(self, boundary: Boundary) -> None:
        """Remember the START of an episode for sources that connect later; forget it at its END."""
        self._running = boundary if boundary.kind == 'start' else None

    def begin_remembered(self) -> None:
        """Publish the START of an episode that began while the bridge was inactive."""
        if self._running is not None:
            for source in self:
                self.take(self._running, source)

    def take(self, boundary: Boundary, source: BridgedSource) -> None:
        """Begin or end an episode of one source."""
        if boundary.kind == 'start':
            if boundary.episode_id and boundary.episode_id == source.channel.running:
                return
            source.channel.start(boundary)
        elif not boundary.episode_id or boundary.episode_id == source.channel.running:
            source.channel.end(boundary)

    def named(self, name: str) -> list[BridgedSource]:
        """Return the source with this name, or all sources if the name is empty.

        Raises
        ------
        SourceError
            No source is found.
        """
        found = [source for source in self if not name or source.channel.name == name]
        if found:
            return found
        names = ', '.join(repr(name) for name in self._sources) or 'none'
        raise SourceError(
            where='source', expected=f'a source of the bridge ({names})', found=repr(name)
        )

    def with_episode(self, episode_id: str) -> BridgedSource:
        """Return the source that an episode belongs to.

        Parameters
        ----------
        episode_id : str
            Empty means the running or last episode of the only source.

        Raises
        ------
        SourceError
            The episode is unknown, and there are several sources.
        """
        known = [source for source in self if source.channel.knows(episode_id)]
        if known:
            return known[-1]
        sources = list(self)
        if len(sources) == 1:
            return sources[0]
        raise SourceError(
            where='episode_id',
            expected=f'the id of an episode that one of the {len(sources)} sources has published',
            found=repr(episode_id),
            advice='check the id on the topic vla/episode of the source'
            if sources
            else 'start the policy first: no source is connected',
        )

    @property
    def all_found(self) -> bool:
        """Whether the node has had the time to find all subscribers."""
        return bool(time.monotonic() - self._node.made_at >= _DISCOVERY)

    def look_for_subscribers(self) -> None:
        """Look for the subscribers of sources that are new."""
        for source in self:
            if not source.ready.is_set():
                source.look_for_subscribers(self._p.wait_for_subscribers, self.all_found)

    def tick(self) -> None:
        """End the episodes whose time is over, as set by the parameters."""
        now, p = time.monotonic(), self._p
        for source in self:
            channel = source.channel
            if not channel.running:
                continue
            last = max(channel.pace.last or 0.0, channel.running_since)
            if p.episode_from == 'gap' and now - last > p.episode_gap:
                channel.end(Boundary('end', reason=f'no step for {p.episode_gap:g} s'))
            elif p.end_lost_after and now - (source.lost_at or now) > p.end_lost_after:
                channel.end(Boundary('end', reason='the connection of the source was lost'))

    def update_inputs(self) -> None:
        """Look for publishers of episode events."""
        for source in self:
            if source.events is not None:
                source.events.update()
