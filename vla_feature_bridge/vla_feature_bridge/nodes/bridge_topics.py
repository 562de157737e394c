# SPDX-License-Identifier: Apache-2.0
"""Makes the steps of a policy from topics of other nodes: features, actions, observation."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.bridge_episodes import JoinedEpisodes
from vla_feature_bridge.nodes.levels import Finding, Level
from vla_feature_bridge.ros.foreign_arrays import (
    ACTION_TYPES,
    FEATURE_TYPES,
    ActionReader,
    features_of,
)
from vla_feature_bridge.ros.joins import Join, Stamped
from vla_feature_bridge.ros.topic_input import TopicInput

#: The message types of each input; empty for any type. A step gets the stamp of the first input
#: that has a stamp.
_INPUTS: dict[str, tuple[str, ...]] = {
    'observation': (),
    'features': FEATURE_TYPES,
    'actions': ACTION_TYPES,
}
#: If a step has an older stamp than the last step, by less than this time, it arrived late. If the
#: difference is larger, the clock of the publisher was set back [ns].
_LATE = 5_000_000_000


class TopicStepsError(SafeError):
    """The parameters of joined topics contradict each other."""


class TopicSteps:
    """Joins the messages of topics to steps, and gives them to a channel.

    The leading topic is the features topic, or the actions topic if there are no features. Each
    message of the leading topic is one inference.

    Parameters
    ----------
    node : ManagedNode
        Messages are processed while its ``active`` is true.
    p
        Values of the parameters of the bridge.
    channel : JoinedEpisodes

    Attributes
    ----------
    instruction : str or None
        Instruction of the steps; None if no topic gives it.

    Raises
    ------
    SafeError
        A message type is not installed or cannot be read, or ``message_filters`` is missing.
    """

    def __init__(self, node: Any, p: Any, channel: JoinedEpisodes) -> None:
        self._node, self._p, self._channel = node, p, channel
        self.instruction: str | None = None
        self.late = 0
        self._names = [name for name in _INPUTS if getattr(p, f'{name}_topic')]
        self._leading = 'features' if 'features' in self._names else 'actions'
        if self._leading not in self._names:
            raise TopicStepsError(
                where='parameter observation_topic',
                expected='features_topic or actions_topic too',
                found='neither',
                advice='set actions_topic, or leave observation_topic empty',
            )
        self._reader = ActionReader([name for name in p.joint_names if name])
        self.join = Join(
            self._names,
            self._on_joined,
            rule=p.join,
            slop=p.join_slop,
            queue_size=p.join_queue_size,
            allow_headerless=p.allow_headerless,
        )
        self._last_ordinal, self._last_stamp = -1, 0
        self.inputs = {name: self._input(name) for name in self._names}

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints of the actions; empty before the first message."""
        return self._reader.joint_names

    def _input(self, name: str) -> TopicInput:
        def take(message: Any) -> None:
            if self._node.active:
                self.join.add(name, message, self._node.get_clock().now().nanoseconds)

        return TopicInput(
            self._node,
            getattr(self._p, f'{name}_topic'),
            take,
            types=_INPUTS[name],
            type_name=getattr(self._p, f'{name}_type'),
            header_only=name == 'observation',
        )

    def update(self) -> None:
        """Look for publishers."""
        for topic in self.inputs.values():
            topic.update()

    def close(self) -> None:
        """End all subscriptions."""
        for topic in self.inputs.values():
            topic.close()

    def forget_unjoined(self) -> None:
        """Do not count messages that came before an episode as missing steps of the episode."""
        self._last_ordinal = self.join.counts[self._leading].received - 1

    def clock_jumped(self) -> None:
        """Accept the next step with any stamp."""
        self._last_stamp = 0

    @property
    def connected(self) -> bool:
        """Whether every topic has a publisher of the right type."""
        return all(topic.publishers for topic in self.inputs.values())

    def findings(self) -> list[Finding]:
        """Return the problems of the topics."""
        found = [
            Finding(
                Level.STALE if topic.problem == 'no publisher' else Level.ERROR,
                f'{name}_topic {topic.topic}: {topic.problem}',
            )
            for name, topic in self.inputs.items()
            if topic.problem
        ]
        found += [
            Finding(Level.WARN, f'{topic.publishers} nodes publish {topic.topic}')
            for topic in self.inputs.values()
            if topic.publishers > 1
        ]
        if self.join.problem:
            found.append(Finding(Level.ERROR, self.join.problem))
        return found

    def facts(self) -> dict[str, object]:
        """Return the numbers of messages of each topic."""
        facts: dict[str, object] = {'late steps': self.late}
        for name, counts in self.join.counts.items():
            facts[f'{name} topic'] = self.inputs[name].topic
            facts[f'{name} messages'] = (
                f'{counts.received} received, {counts.joined} joined, {counts.waiting} waiting, '
                f'{counts.lost} without partners, {counts.without_stamp} without stamp'
            )
        return facts

    def _on_joined(self, messages: list[Stamped]) -> None:
        parts = dict(zip(self._names, messages, strict=True))
        lead = parts[self._leading]
        stamp = next((part.stamp for part in messages if part.measured), lead.stamp)
        if stamp < self._last_stamp <= stamp + _LATE:
            self.late += 1
            self._channel.note(
                f'a step arrived after another one whose stamp is {self._last_stamp - stamp} ns '
                'later; it is not published'
            )
            return
        missing = max(0, lead.ordinal - self._last_ordinal - 1)
        if self._p.unjoined_steps == 'ignored':
            missing = 0
        self._last_ordinal, self._last_stamp = max(lead.ordinal, self._last_ordinal), stamp
        try:
            features, actions = self._read(parts)
        except SafeError as error:
            self._channel.refuse(str(error), stamp, missing)
            return
        try:
            self._channel.take_joined(features, actions, stamp, self.instruction, missing)
        except Exception as error:  # Messages of other nodes must not end this node.
            self._channel.note(str(error) or repr(error))

    def _read(self, parts: dict[str, Stamped]) -> tuple[np.ndarray | None, np.ndarray | None]:
        features = features_of(parts['features'].message) if 'features' in parts else None
        actions = self._reader.read(parts['actions'].message) if 'actions' in parts else None
        return features, actions
