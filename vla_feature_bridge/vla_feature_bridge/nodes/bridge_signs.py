# SPDX-License-Identifier: Apache-2.0
"""Reads the begin and end of episodes from topics: events, values, goals, instructions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from safe_msgs.msg import EpisodeEvent
from vla_feature_bridge.nodes.bridge_boundaries import (
    Boundary,
    BoundaryError,
    EpisodeValues,
    Goal,
    GoalRule,
    InstructionRule,
    ValueRule,
)
from vla_feature_bridge.ros.messages import success_of, time_from_message
from vla_feature_bridge.ros.topic_input import TopicInput

TakeBoundary = Callable[[Boundary], None]

EVENT_TYPE = 'safe_msgs/msg/EpisodeEvent'
_KEPT_EVENTS = 100
_STATUS_TYPE = 'action_msgs/msg/GoalStatusArray'


def event_input(node: Node, topic: str, take: TakeBoundary) -> TopicInput:
    """Return a subscription of episode events whose START and END become boundaries.

    A new subscription receives old events again. An event with the stamp of an earlier event is
    ignored.
    """
    before: deque[tuple[int, str, int]] = deque(maxlen=_KEPT_EVENTS)

    def on_event(event: EpisodeEvent) -> None:
        key = (event.kind, event.episode_id, time_from_message(event.header.stamp))
        if key in before:
            return
        if key[2]:
            before.append(key)
        if event.kind == EpisodeEvent.KIND_START:
            take(
                Boundary(
                    'start',
                    episode_id=event.episode_id,
                    task=event.task,
                    instruction=event.instruction,
                    reason=event.reason,
                )
            )
        elif event.kind == EpisodeEvent.KIND_END:
            take(
                Boundary(
                    'end',
                    episode_id=event.episode_id,
                    success=success_of(event.outcome),
                    reason=event.reason,
                )
            )

    return TopicInput(node, topic, on_event, type_name=EVENT_TYPE, latched=True)


def value_input(node: Node, p: Any, take: TakeBoundary) -> TopicInput:
    """Return a subscription whose values become boundaries, as set by the parameters."""
    rule = ValueRule(
        EpisodeValues(
            *(
                tuple(value for value in getattr(p, f'episode_{kind}_values') if value)
                for kind in ('start', 'success', 'failure', 'end')
            )
        )
    )

    def on_message(message: Any) -> None:
        boundary = rule.take(value_of(message, p.episode_field))
        if boundary is not None:
            take(boundary)

    return TopicInput(node, p.episode_topic, on_message, type_name=p.episode_type, latched=True)


def value_of(message: Any, field: str) -> Any:
    """Return the value of a field of a message; nested fields have dots between the names.

    Raises
    ------
    BoundaryError
        The message has no field with this name.
    """
    value = message
    for name in field.split('.'):
        describe = getattr(type(value), 'get_fields_and_field_types', None)
        fields: dict[str, str] = {} if describe is None else describe()
        if name not in fields:
            raise BoundaryError(
                where=f'parameter episode_field {field!r}',
                expected=f'a field among {", ".join(fields) or "none"}',
                found=repr(name),
            )
        value = getattr(value, name)
    return value


def goal_input(node: Node, p: Any, take: TakeBoundary) -> TopicInput:
    """Return a subscription of the states of an action's goals, which become boundaries."""
    rule = GoalRule(p.action_gives_outcome)

    def on_status(message: Any) -> None:
        goals = [
            Goal(
                bytes(status.goal_info.goal_id.uuid).hex(),
                status.status,
                time_from_message(status.goal_info.stamp),
            )
            for status in message.status_list
        ]
        for boundary in rule.take(goals):
            take(boundary)

    topic = f'{p.episode_action}/_action/status'
    return TopicInput(node, topic, on_status, type_name=_STATUS_TYPE, latched=True)


def instruction_input(
    node: Node, p: Any, keep: Callable[[str], None], take: TakeBoundary
) -> TopicInput:
    """Return a subscription of the instruction.

    The instruction is stored, and may become a boundary.
    """
    rule = InstructionRule() if p.episode_from == 'instruction' else None

    def on_message(message: Any) -> None:
        keep(message.data)
        boundary = None if rule is None else rule.take(message.data)
        if boundary is not None:
            take(boundary)

    return TopicInput(
        node, p.instruction_topic, on_message, type_name='std_msgs/msg/String', latched=True
    )
