# SPDX-License-Identifier: Apache-2.0
"""A tiny environment for ``lerobot-eval``: six joints that follow their commands.

``lerobot-eval --env.discover_packages_path=tiny_lerobot_env --env.type=tiny ...``
"""

from __future__ import annotations

from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from tiny_lerobot import ACTION_DIM, CAMERA, STATE_DIM


class JointsEnv(gym.Env):
    """Joints that move to their commands; a disturbed one has states that are much too large."""

    metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}  # noqa: RUF012

    def __init__(self, length: int = 12, disturbed: bool = False, size: int = 56) -> None:
        self._max_episode_steps, self._size = length, size
        self._gain = 20.0 if disturbed else 1.0
        self.render_mode = 'rgb_array'
        self.task = 'reach'
        self.task_description = 'reach the corner'
        self.observation_space = gym.spaces.Dict(
            {
                'pixels': gym.spaces.Dict(
                    {'front': gym.spaces.Box(0, 255, (size, size, 3), np.uint8)}
                ),
                'agent_pos': gym.spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float64),
            }
        )
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (ACTION_DIM,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._joints = self.np_random.normal(size=STATE_DIM)
        self._tick = 0
        return self._observation(), {'is_success': False}

    def step(self, action):
        self._joints[:ACTION_DIM] += 0.1 * np.tanh(np.asarray(action, np.float64))
        self._tick += 1
        done = self._tick >= self._max_episode_steps
        return self._observation(), 0.0, done, False, {'is_success': done and self._gain == 1.0}

    def render(self):
        return self._observation()['pixels']['front']

    def _observation(self):
        shade = np.uint8(127 + 100 * np.tanh(self._joints[0]))
        image = np.full((self._size, self._size, 3), shade, np.uint8)
        return {'pixels': {'front': image}, 'agent_pos': self._gain * self._joints}


gym.register('gym_tiny/Joints-v0', JointsEnv)


@EnvConfig.register_subclass('tiny')
@dataclass
class TinyEnv(EnvConfig):
    """The configuration of :class:`JointsEnv`."""

    task: str | None = 'Joints-v0'
    length: int = 12
    disturbed: bool = False
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            'action': PolicyFeature(FeatureType.ACTION, (ACTION_DIM,)),
            'agent_pos': PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
            'pixels/front': PolicyFeature(FeatureType.VISUAL, (56, 56, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            'action': 'action',
            'agent_pos': 'observation.state',
            'pixels/front': CAMERA,
        }
    )

    @property
    def gym_kwargs(self) -> dict:
        return {'length': self.length, 'disturbed': self.disturbed}
