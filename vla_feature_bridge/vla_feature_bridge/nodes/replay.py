# SPDX-License-Identifier: Apache-2.0
"""The executable ``replay``: ``ros2 run vla_feature_bridge replay``.

The node is in ``replay_node``, because the import of the node takes some time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vla_feature_bridge.nodes.startup import start


def main(args: list[str] | None = None) -> int:
    """Run the node and return 0 if all episodes were played, otherwise 1."""
    return start(_load, args)


def _load() -> Callable[..., int]:
    from vla_feature_bridge.nodes.replay_node import main as run

    return run


if __name__ == '__main__':
    sys.exit(main())
