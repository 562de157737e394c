# SPDX-License-Identifier: Apache-2.0
"""Facts about topics for a recording: message definitions, type hashes and offered QoS."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from ament_index_python import get_package_share_directory
from ament_index_python.packages import PackageNotFoundError
from rclpy.qos import QoSProfile

from vla_feature_bridge.ros.message_types import MessageTypeError, full_type_name

_SEPARATOR = '=' * 80
_ARRAY = re.compile(r'\[[^\]]*\]$')
_PRIMITIVE = re.compile(
    r'(bool|byte|char|float32|float64|u?int(8|16|32|64)|w?string(<=\d+)?)(\[[^\]]*\])?'
)
#: rosbag2 reads a duration that is not set as this number of seconds and nanoseconds.
_FOREVER = {'sec': 9223372036, 'nsec': 854775807}


def full_definition(name: str) -> str:
    """Return the definition of a message type with all definitions that it uses.

    Recorders store this text in a recording, so that the recording can be read without the
    packages.

    Parameters
    ----------
    name : str
        Such as ``std_msgs/msg/Bool``.

    Raises
    ------
    MessageTypeError
        The name is wrong, or a package is not installed or has no such message.
    """
    name = full_type_name(name)
    found: dict[str, str] = {}
    _collect(name, found)
    parts = [found.pop(name)]
    for used, text in found.items():
        parts.append(f'{_SEPARATOR}\nMSG: {used.replace("/msg/", "/")}\n{text}')
    return '\n'.join(parts)


def _collect(name: str, found: dict[str, str]) -> None:
    if name in found:
        return
    found[name] = text = _file(name, 'msg').read_text(encoding='utf-8')
    package = name.partition('/')[0]
    for line in text.splitlines():
        words = line.partition('#')[0].split()
        if words and _PRIMITIVE.fullmatch(words[0]) is None:
            used = _ARRAY.sub('', words[0])
            _collect(full_type_name(used if '/' in used else f'{package}/{used}'), found)


@cache
def _file(name: str, suffix: str) -> Path:
    package, _, message = name.split('/')
    try:
        share = Path(get_package_share_directory(package))
    except PackageNotFoundError:
        share = Path('/nonexistent')
    file = share / 'msg' / f'{message}.{suffix}'
    if not file.is_file():
        raise MessageTypeError(
            where=f'message type {name}',
            expected=f'the file msg/{message}.{suffix} of the package {package}',
            found='no such file',
            advice=f'install or build the package {package}, and source its workspace',
        )
    return file


def type_hash(name: str) -> str:
    """Return the RIHS01 hash of a message type; empty if its package does not state the hash."""
    try:
        described = json.loads(_file(full_type_name(name), 'json').read_text(encoding='utf-8'))
    except (MessageTypeError, OSError, ValueError):
        return ''
    for entry in described.get('type_hashes', []):
        if entry.get('type_name') == name:
            return str(entry.get('hash_string', ''))
    return ''


def offered_qos(profile: QoSProfile) -> str:
    """Return the QoS that a player offers on a topic, in the text form of rosbag2.

    The numbers are those of the middleware interface; all versions of rosbag2 read them.
    """
    return json.dumps(
        [
            {
                'history': int(profile.history),
                'depth': profile.depth,
                'reliability': int(profile.reliability),
                'durability': int(profile.durability),
                'deadline': _FOREVER,
                'lifespan': _FOREVER,
                'liveliness': int(profile.liveliness) or 1,
                'liveliness_lease_duration': _FOREVER,
                'avoid_ros_namespace_conventions': False,
            }
        ]
    )
