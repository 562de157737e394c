# SPDX-License-Identifier: Apache-2.0
"""A policy of LeRobot that infers at a fixed pace, in a process of its own, without ROS.

``python paced_policy.py CLASS OUT FOLDER``

CLASS is a function of ``tiny_lerobot``. The process first infers without a tap. A line ``tap`` on
the standard input makes a second, equal policy, which the plugin of LeRobot taps; a line ``reset``
resets this policy, and a line ``end`` ends the process. Each inference prints ``[began, seconds]``,
with the monotonic clock. At the end, OUT gets the hidden states of each episode, recorded without
a hook, and the counts of the sender are printed.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

import tiny_lerobot
import torch
from tapped_policy import Recorded

from vla_feature_bridge.taps import lerobot_plugin

PERIOD = 0.1


def make(kind: str, folder: Path) -> Any:
    """Return a policy that makes an inference for each action."""
    arguments = [tiny_lerobot.write_tiny_smolvlm(folder)] if kind == 'smolvla' else []
    return getattr(tiny_lerobot, kind)(*arguments, n_action_steps=1)


def infer_until_told(policy: Any) -> str:
    """Infer at a fixed pace until a line comes on the standard input, and return this line."""
    tick = 0
    while True:
        observation = tiny_lerobot.observation(seed=tick)
        began = time.monotonic()
        with torch.inference_mode():
            policy.select_action(observation)
        took = time.monotonic() - began
        print(json.dumps([began, took]), flush=True)
        tick += 1
        if select.select([sys.stdin], [], [], max(0.0, PERIOD - took))[0]:
            return sys.stdin.readline().strip()


def main() -> int:
    """Run the two policies and print what was counted."""
    kind, out, folder = sys.argv[1:]
    torch.set_num_threads(1)
    assert infer_until_told(make(kind, Path(folder))) == 'tap'
    plugin = lerobot_plugin.install()
    policy = make(kind, Path(folder))
    assert plugin is not None and plugin.current is not None
    sender = plugin.current.sink.sender
    calls = {'smolvla': 'num_steps', 'pi0': 'num_inference_steps'}[kind]
    recorded = Recorded(policy.model.action_out_proj, getattr(policy.config, calls))
    line = 'reset'
    while line == 'reset':
        policy.reset()
        recorded.episodes.append([])
        line = infer_until_told(policy)
    lerobot_plugin.uninstall()
    recorded.save(out)
    counts = ('published', 'sent', 'dropped', 'dropped_events', 'refused')
    print(json.dumps({name: getattr(sender, name) for name in counts}), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
