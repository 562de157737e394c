# SPDX-License-Identifier: Apache-2.0
"""Finds message types by their names at run time, so that a node needs only the types that it uses.

The name of a type may come from the network. A package is imported only if it is an installed
package of ROS interfaces that contains this message.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from ament_index_python import get_resource

from vla_feature_bridge.errors import SafeError

_NAME = re.compile(r'(?P<package>[a-z][a-z0-9_]*)/(msg/)?(?P<message>[A-Z][A-Za-z0-9]*)')


class MessageTypeError(SafeError):
    """A message type is not installed. The text contains its name and what to install."""


def full_type_name(name: str) -> str:
    """Return the name of a message type with its middle part: ``std_msgs/msg/String``.

    Parameters
    ----------
    name : str
        ``std_msgs/msg/String`` or ``std_msgs/String``.

    Raises
    ------
    MessageTypeError
        The text is not the name of a message type.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise MessageTypeError(
            where='message type',
            expected='a name such as std_msgs/msg/String',
            found=repr(name[:100]),
            advice='`ros2 topic info TOPIC` prints the type of a topic',
        )
    return f'{found["package"]}/msg/{found["message"]}'


def message_type(name: str) -> Any:
    """Return the class of a message type.

    Raises
    ------
    MessageTypeError
        The name is wrong, or the package is not installed, or the package has no such message.
    """
    package, _, message = full_type_name(name).split('/')
    try:
        listed, _ = get_resource('rosidl_interfaces', package)
    except LookupError:
        raise MessageTypeError(
            where=f'message type {name}',
            expected=f'the package {package} on this machine',
            found='no such package',
            advice=f'build it or install it (apt: ros-DISTRO-{package.replace("_", "-")}) and '
            'source its workspace before the bridge starts',
        ) from None
    if f'msg/{message}.msg' not in listed.split() and f'msg/{message}.idl' not in listed.split():
        raise MessageTypeError(
            where=f'message type {name}',
            expected=f'a message of the package {package}',
            found='a package without this message',
            advice=f'`ros2 interface package {package}` lists its messages',
        )
    try:
        return getattr(import_module(f'{package}.msg'), message)
    except (ImportError, AttributeError) as error:
        raise MessageTypeError(
            where=f'message type {name}',
            expected='a package with Python messages',
            found=f'{type(error).__name__}: {error}',
            advice='build the package again for the Python of this node',
        ) from error


def type_name_of(message: Any) -> str:
    """Return the name of the type of a message, or of a message class: ``std_msgs/msg/String``."""
    cls = message if isinstance(message, type) else type(message)
    return f'{cls.__module__.partition(".")[0]}/msg/{cls.__name__}'


def has_header(cls: Any) -> bool:
    """Return True if messages of a class begin with a ``std_msgs/Header``."""
    fields = cls.get_fields_and_field_types()
    return next(iter(fields.items()), None) == ('header', 'std_msgs/Header')
