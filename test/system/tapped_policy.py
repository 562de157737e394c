# SPDX-License-Identifier: Apache-2.0
"""A policy in a process of its own, which knows of the bridge only by its tap.

``python tapped_policy.py KIND OUT [--episodes N] [--seed S] [--disturbed] [--policy FOLDER]``

``lerobot`` runs LeRobot's own evaluation with its plugins, in an environment with LeRobot; ``flow``
a small policy of PyTorch. The address of the bridge is in ``SAFE_BRIDGE``. OUT gets the hidden
states of each episode, recorded by the ``forward`` of the submodule and pooled here: an array
(steps, width) for each episode.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

TICKS = 40


class Recorded:
    """Keeps the mean of the states of each inference, without any hook."""

    def __init__(self, head: torch.nn.Module, calls: int) -> None:
        self.episodes: list[list[np.ndarray]] = []
        self._calls, self._pending = calls, []
        self._forward = head.forward
        head.forward = self._record

    def _record(self, x: torch.Tensor) -> torch.Tensor:
        self._pending.append(x.detach().numpy()[0].astype(np.float64).mean(0))
        if len(self._pending) == self._calls:
            self.episodes[-1].append(np.mean(self._pending, axis=0))
            self._pending.clear()
        return self._forward(x)

    def save(self, path: str) -> None:
        arrays = {f'{number:03}': np.array(states) for number, states in enumerate(self.episodes)}
        np.savez(path, **arrays)


def flow(arguments: argparse.Namespace) -> None:
    """Run the small policy of PyTorch."""
    from flow_policy import FLOW_FIELDS, FlowPolicy

    from vla_feature_bridge.taps import FeatureTap, Preset
    from vla_feature_bridge.wire import StepSender

    torch.manual_seed(0)
    policy = FlowPolicy()
    preset = Preset(name='flow', **FLOW_FIELDS)
    sender = StepSender(
        os.environ['SAFE_BRIDGE'],
        feature_name=str(preset.spec),
        exec_horizon=policy.config.n_action_steps,
        policy='flow',
        action_space='normalized',
        wait_for_monitor=30.0,
    )
    recorded = Recorded(policy.model.action_out_proj, policy.config.num_inference_steps)
    with FeatureTap(policy, preset, sink=sender, episodes='reset'):
        for episode in range(arguments.episodes):
            recorded.episodes.append([])
            torch.manual_seed(arguments.seed + episode)
            policy.reset()
            for tick in range(TICKS):
                batch = policy.observation(1000 * (arguments.seed + episode) + tick)
                if arguments.disturbed:
                    batch['observation.state'] *= 20
                policy.select_action(batch)
    sender.close(10.0)
    recorded.save(arguments.out)


def lerobot(arguments: argparse.Namespace) -> None:
    """Run a policy of LeRobot by ``eval_policy``, as ``lerobot-eval`` does."""
    from lerobot.envs import make_env, make_env_pre_post_processors
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.scripts.lerobot_eval import eval_policy
    from lerobot.utils.import_utils import register_third_party_plugins
    from lerobot.utils.utils import init_logging
    from tiny_lerobot_env import TinyEnv

    init_logging()
    register_third_party_plugins()
    policy = ACTPolicy.from_pretrained(arguments.policy)
    config = TinyEnv(length=TICKS, disturbed=arguments.disturbed)
    (environment,) = make_env(config)['tiny'].values()
    before, after = make_pre_post_processors(policy.config, pretrained_path=arguments.policy)
    recorded = Recorded(policy.model.action_head, 1)
    reset = environment.reset

    def counted_reset(**options: Any) -> Any:
        recorded.episodes.append([])
        return reset(**options)

    environment.reset = counted_reset
    eval_policy(
        environment,
        policy,
        *make_env_pre_post_processors(config, policy.config),
        before,
        after,
        n_episodes=arguments.episodes,
        start_seed=arguments.seed,
    )
    recorded.save(arguments.out)


def save_policy(folder: Path) -> None:
    """Write a tiny ACT policy of LeRobot into a folder."""
    import tiny_lerobot

    tiny_lerobot.save(tiny_lerobot.act(), folder)


def main() -> int:
    """Read the command line and run the policy."""
    parser = argparse.ArgumentParser()
    parser.add_argument('kind', choices=('flow', 'lerobot'))
    parser.add_argument('out')
    parser.add_argument('--episodes', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--disturbed', action='store_true')
    parser.add_argument('--policy', type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.policy is not None and not arguments.policy.exists():
        save_policy(arguments.policy)
    {'flow': flow, 'lerobot': lerobot}[arguments.kind](arguments)
    return 0


if __name__ == '__main__':
    sys.exit(main())
