# SPDX-License-Identifier: Apache-2.0
"""The executable ``bridge``: ``ros2 run vla_feature_bridge bridge``.

The node is in ``bridge_node``, because the import of the node takes some time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vla_feature_bridge.nodes.startup import start


def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down and return the exit status."""
    return start(_load, args)


def _load() -> Callable[..., int]:
    from vla_feature_bridge.nodes.bridge_node import main as run

    return run


if __name__ == '__main__':
    sys.exit(main())
