# SPDX-License-Identifier: Apache-2.0
"""Action chunks and images as messages for people: plots, RViz, bags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Duration
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.messages import NANOSECONDS, time_to_message
from vla_feature_bridge.step import PolicyStep

#: Encoding of an image by its dtype and its number of channels.
_ENCODINGS = {
    ('uint8', 1): 'mono8',
    ('uint8', 3): 'rgb8',
    ('uint8', 4): 'rgba8',
    ('uint16', 1): 'mono16',
    ('float32', 1): '32FC1',
}


class ImageError(SafeError):
    """An array cannot be sent as an image."""


def chunk_to_message(
    step: PolicyStep, joint_names: Sequence[str], action_period: float
) -> JointTrajectory | None:
    """Return the executed chunk of a step as a trajectory; None if the step has no actions.

    Parameters
    ----------
    step : PolicyStep
    joint_names : sequence of str
        One name for each action dimension. If their number differs, the names are ``action_0``,
        ``action_1`` and so on.
    action_period : float
        Time from one action to the next [s]; the first action has this time from the start.
    """
    if step.actions is None:
        return None
    chunk = np.asarray(step.actions[0], dtype=np.float64)
    if len(joint_names) != chunk.shape[1]:
        joint_names = [f'action_{index}' for index in range(chunk.shape[1])]
    message = JointTrajectory(joint_names=list(joint_names))
    message.header.stamp = time_to_message(step.stamp)
    period = round(action_period * NANOSECONDS)
    message.points = [
        JointTrajectoryPoint(positions=row.tolist(), time_from_start=_duration(index * period))
        for index, row in enumerate(chunk, start=1)
    ]
    return message


def _duration(nanoseconds: int) -> Duration:
    return Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def image_to_message(array: np.ndarray, stamp: int, frame_id: str = '') -> Image:
    """Return the message of an image.

    Parameters
    ----------
    array : ndarray, shape (height, width) or (height, width, channels)
        uint8 with 1, 3 (red, green, blue) or 4 channels; uint16 or float32 with 1 channel.
    stamp : int
        Time of the image [ns].

    Raises
    ------
    ImageError
        The array has another shape or dtype.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    encoding = _ENCODINGS.get((array.dtype.name, channels))
    if array.ndim not in (2, 3) or encoding is None or array.size == 0:
        raise ImageError(
            where='image',
            expected='shape (height, width) or (height, width, channels): uint8 with 1, 3 or 4 '
            'channels, uint16 or float32 with 1',
            found=f'shape {array.shape} of {array.dtype}',
        )
    height, width = array.shape[:2]
    message = Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * channels * array.dtype.itemsize,
    )
    message.header.stamp = time_to_message(stamp)
    message.header.frame_id = frame_id
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder('<'))
    message.data.frombytes(little.reshape(-1).view(np.uint8).data)
    return message
