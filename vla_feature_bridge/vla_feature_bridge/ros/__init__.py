# SPDX-License-Identifier: Apache-2.0
"""Common code of all nodes, and the publisher for the process of a policy. Needs ROS 2.

The modules; each may import only modules above it:

qos                quality of service of every topic
parameters         parameters of a node, declared once
messages           steps to messages and back
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
