# SPDX-License-Identifier: Apache-2.0
"""A fleet whose code has an error: a step of the episode ``fault`` raises where nothing may."""

from __future__ import annotations

import sys
from typing import Any

from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.nodes.fleet_node import main

_scoring = MonitorSession.scoring


def _faulty(self: MonitorSession, step: Any, *rest: Any) -> Any:
    if step.episode_id == 'fault':
        raise ZeroDivisionError('an error in the code')
    return (yield from _scoring(self, step, *rest))


if __name__ == '__main__':
    setattr(MonitorSession, 'scoring', _faulty)  # noqa: B010
    sys.exit(main())
