# SPDX-License-Identifier: Apache-2.0
"""``python -m safe_monitor_node VERB``, the same as ``ros2 safe VERB``."""

import sys

from safe_monitor_node.verbs.command import main

if __name__ == '__main__':
    sys.exit(main())
