# SPDX-License-Identifier: Apache-2.0
"""The executable ``bridge``: ``ros2 run vla_feature_bridge bridge``.

The node itself is in ``bridge_node``, which takes a while to import.
"""

from __future__ import annotations

import sys

from vla_feature_bridge.nodes.startup import start


def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down; returns the exit status."""
    return start('vla_feature_bridge.nodes.bridge_node', args)


if __name__ == '__main__':
    sys.exit(main())
