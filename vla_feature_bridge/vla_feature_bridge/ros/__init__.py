# SPDX-License-Identifier: Apache-2.0
"""Common code of all nodes, and the publisher for the process of a policy. Needs ROS 2.

The modules; each may import only modules above it:

qos                quality of service of every topic
parameters         parameters of a node, declared once
clock_watch        notices that the ROS time stands still
messages           steps and events to messages and back
message_types      message types by their names
definitions        what a recording says about its topics
foreign_arrays     features and actions in messages of other projects
chunks             action chunks and images as messages for people
topic_input        a subscription whose type and QoS follow the publishers
joins              messages of several topics joined by their stamps
publisher          ``StepPublisher``: publishes the steps of a policy

``StepPublisher`` loads on first use, so that the other modules do not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_feature_bridge.ros.publisher import StepPublisher

__all__ = ['StepPublisher']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from vla_feature_bridge.ros import publisher

    return getattr(publisher, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
