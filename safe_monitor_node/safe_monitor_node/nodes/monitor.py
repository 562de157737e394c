# SPDX-License-Identifier: Apache-2.0
"""The executable ``monitor``: ``ros2 run safe_monitor_node monitor``.

The node itself is in ``monitor_process``, which takes a while to import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vla_feature_bridge.nodes.startup import start


def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down and return the exit status."""
    return start(_load, args)


def _load() -> Callable[..., int]:
    from safe_monitor_node.nodes.monitor_process import main as run

    return run


if __name__ == '__main__':
    sys.exit(main())
