# SPDX-License-Identifier: Apache-2.0
"""Carries steps over a socket, from the process of a policy to the bridge. Needs only NumPy.

The modules; each may import only modules above it:

address            addresses: ``unix:/path`` and ``tcp://host:port``
frame              frames: converts header and arrays to bytes and back, with limits
budget             memory for the frames of all connections
messages           converts steps, events and images to frames and back
send_queue         the frames that wait to be sent; a full queue drops the oldest frames
link               the thread of a sender: connects, sends, connects again
sender             ``StepSender``: sends the steps of a policy
listener           listening sockets of the bridge
connection         one connection of a sender, on the side of the bridge
source             the state and statistics of a source in the receiver
receiver           ``StepReceiver``: receives the steps of many policies

The names load on first use, so that a policy does not load the receiver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_feature_bridge.wire.messages import Image
    from vla_feature_bridge.wire.receiver import StepReceiver
    from vla_feature_bridge.wire.sender import StepSender

__all__ = ['Image', 'StepReceiver', 'StepSender']


def __getattr__(name: str) -> Any:
    if name == 'StepSender':
        from vla_feature_bridge.wire import sender

        return sender.StepSender
    if name == 'StepReceiver':
        from vla_feature_bridge.wire import receiver

        return receiver.StepReceiver
    if name == 'Image':
        from vla_feature_bridge.wire import messages

        return messages.Image
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
