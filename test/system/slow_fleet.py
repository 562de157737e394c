# SPDX-License-Identifier: Apache-2.0
"""A fleet whose disk is slow: after the first, each detector takes two seconds longer to read."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

from safe_monitor_node.nodes.fleet_node import main
from safe_monitor_node.storage import shared_detectors

_reads = itertools.count()
_load_detector = shared_detectors.load_detector


def _slowly(folder: Any) -> Any:
    time.sleep(2.0 if next(_reads) else 0.0)
    return _load_detector(folder)


if __name__ == '__main__':
    setattr(shared_detectors, 'load_detector', _slowly)  # noqa: B010
    sys.exit(main())
