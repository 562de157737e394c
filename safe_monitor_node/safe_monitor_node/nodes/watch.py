# SPDX-License-Identifier: Apache-2.0
"""The executable ``watch``: ``ros2 run safe_monitor_node watch``.

The view itself is in ``watch_node``, which takes a while to import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vla_feature_bridge.nodes.startup import start


def main(args: list[str] | None = None) -> int:
    """Show all robots in the terminal; returns the exit status."""
    return start(_load, args)


def _load() -> Callable[..., int]:
    from safe_monitor_node.nodes.watch_node import main as run

    return run


if __name__ == '__main__':
    sys.exit(main())
