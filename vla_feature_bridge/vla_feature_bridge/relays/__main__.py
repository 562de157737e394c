# SPDX-License-Identifier: Apache-2.0
"""``python -m vla_feature_bridge.relays``: the same as ``ros2 run vla_feature_bridge relay``."""

import sys

from vla_feature_bridge.relays.main import main

if __name__ == '__main__':
    sys.exit(main())
