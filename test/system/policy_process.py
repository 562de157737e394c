# SPDX-License-Identifier: Apache-2.0
"""A policy in a process of its own, without ROS: a small torch network that replays a rollout.

``python policy_process.py ADDRESS ROLLOUT_SET EPISODE [--source S] [--period P] [--again N]``

At each inference the network gives the recorded hidden state and the recorded chunk as tensors. The
process prints one line of JSON for each episode, and one at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.wire import StepSender


class Policy(torch.nn.Module):
    """Gives the hidden state and the action chunk of each step of a rollout."""

    def __init__(self, rollout: Rollout) -> None:
        super().__init__()
        self.trunk = torch.nn.Embedding.from_pretrained(torch.from_numpy(rollout.features.copy()))
        self.chunks = None if rollout.actions is None else torch.from_numpy(rollout.actions.copy())

    @torch.no_grad()
    def forward(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the hidden state and the chunk of a step."""
        hidden = self.trunk(torch.tensor(step))
        return hidden, None if self.chunks is None else self.chunks[step]


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the policy; returns what it counted."""
    rollouts = RolloutSet.open(arguments.rollout_set)
    rollout = rollouts[rollouts.episode_ids.index(arguments.episode)]
    policy = Policy(rollout)
    sender = StepSender(
        arguments.address,
        source=arguments.source,
        feature_name=str(rollouts.feature),
        exec_horizon=rollout.exec_horizon,
        policy='policy_process',
        action_space=rollout.action_space,
        wait_for_monitor=arguments.wait,
    )
    inferences = 0
    for number in range(arguments.again):
        name = arguments.episode if number == 0 else f'{arguments.episode}-{number}'
        sender.start(task=rollout.task, instruction=rollout.instruction, episode_id=name)
        print(json.dumps({'started': name}), flush=True)
        for step in range(len(rollout)):
            hidden, chunk = policy(step)
            sender.publish(hidden, chunk)
            inferences += 1
            time.sleep(arguments.period)
        sender.end(success=rollout.success)
    state = sender.state
    sender.close(timeout=arguments.close)
    return {
        'inferences': inferences,
        'published': sender.published,
        'sent': sender.sent,
        'dropped': sender.dropped,
        'refused': sender.refused,
        'state': state,
        'last_error': sender.last_error,
    }


def main() -> int:
    """Read the command line and run the policy."""
    parser = argparse.ArgumentParser()
    parser.add_argument('address')
    parser.add_argument('rollout_set')
    parser.add_argument('episode')
    parser.add_argument('--source', default='')
    parser.add_argument('--period', type=float, default=0.02)
    parser.add_argument('--again', type=int, default=1)
    parser.add_argument('--wait', type=float, default=30.0)
    parser.add_argument('--close', type=float, default=5.0)
    print(json.dumps(run(parser.parse_args())), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
