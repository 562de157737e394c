# SPDX-License-Identifier: Apache-2.0
"""The loop of a fleet: that of one monitor, with many."""

from safe_monitor_node.nodes.monitor_loop import BatchCounts
from safe_monitor_node.nodes.monitor_loop import MonitorLoop as FleetLoop

__all__ = ['BatchCounts', 'FleetLoop']
