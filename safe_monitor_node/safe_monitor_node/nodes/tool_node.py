# SPDX-License-Identifier: Apache-2.0
"""The node of a command: several can run at one time, and it offers no service."""

from __future__ import annotations

import os

from rclpy.node import Node
from rclpy.parameter import Parameter


class ToolNode(Node):
    """A node with the process id in its name.

    SROS 2 allows names: a service below a name that nobody knows before, such as
    ``~/get_parameters``, could only be allowed with a wildcard.

    Parameters
    ----------
    name : str
        What the name begins with.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f'{name}_{os.getpid()}',
            enable_rosout=False,
            start_parameter_services=False,
            parameter_overrides=[Parameter('start_type_description_service', value=False)],
        )
