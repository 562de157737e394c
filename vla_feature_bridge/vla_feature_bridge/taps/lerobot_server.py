# SPDX-License-Identifier: Apache-2.0
"""Starts LeRobot's asynchronous policy server with a tap on its policies.

``python -m vla_feature_bridge.taps.lerobot_server --host=127.0.0.1 --port=8080``

The options are those of ``python -m lerobot.async_inference.policy_server``, which loads no plugins
by itself. Variables of the environment configure the tap:
:class:`~vla_feature_bridge.taps.lerobot_settings.LerobotSettings`.
"""

from __future__ import annotations

import logging
import runpy
import signal
import sys
from importlib.util import find_spec

from vla_feature_bridge.taps.lerobot_plugin import install

_SERVER = 'lerobot.async_inference.policy_server'


def main() -> int:
    """Install the tap, then run the server with the same command line."""
    missing = [name for name in ('lerobot', 'grpc') if find_spec(name) is None]
    if missing:
        print(
            f'lerobot_server: expected a Python with lerobot[async], found no {missing[0]}; '
            "pip install 'lerobot[async]'",
            file=sys.stderr,
        )
        return 1
    # The server sets no level; the tap says at INFO what it is attached to.
    logging.getLogger('vla_feature_bridge').setLevel(logging.INFO)
    install()
    # SIGTERM ends the server like Ctrl+C: the running episode is ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runpy.run_module(_SERVER, run_name='__main__', alter_sys=True)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
