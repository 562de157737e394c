# SPDX-License-Identifier: Apache-2.0
"""A small flow-matching policy of PyTorch, with the names and shapes of a large one."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import torch
from torch import nn


class FlowModel(nn.Module):
    """Denoises a chunk of actions; ``action_out_proj`` is called once at each denoising step."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(config.state_dim, config.width)
        self.action_in_proj = nn.Linear(config.action_dim, config.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, 2, 2 * config.width, dropout=0.0, batch_first=True
            )
            for _ in range(config.layers)
        )
        self.action_out_proj = nn.Linear(config.width, config.action_dim)

    def sample_actions(self, state, noise=None):
        shape = (len(state), self.config.horizon, self.config.action_dim)
        x = torch.randn(shape, dtype=state.dtype) if noise is None else noise
        prefix = self.encoder(state)[:, None]
        steps = self.config.num_inference_steps
        for _ in range(steps):
            hidden = torch.cat([prefix, self.action_in_proj(x)], dim=1)
            for layer in self.layers:
                hidden = layer(hidden)
            x = x - self.action_out_proj(hidden[:, 1:]) / steps
        return x


class FlowPolicy(nn.Module):
    """The policy object: ``select_action`` calls ``predict_action_chunk`` when it needs actions.

    Parameters
    ----------
    **changes
        Numbers of the configuration that differ.
    """

    def __init__(self, **changes: int) -> None:
        super().__init__()
        numbers = {
            'state_dim': 6,
            'action_dim': 7,
            'width': 16,
            'layers': 2,
            'horizon': 8,
            'num_inference_steps': 5,
            'n_action_steps': 4,
        }
        self.config = SimpleNamespace(**{**numbers, **changes})
        self.model = FlowModel(self.config)
        self.reset()
        self.eval()

    def reset(self):
        self._queue = deque()

    @torch.no_grad()
    def predict_action_chunk(self, batch, noise=None):
        """Return a chunk of actions (batch, horizon, action_dim)."""
        return self.model.sample_actions(batch['observation.state'], noise)

    def select_action(self, batch):
        if not self._queue:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()

    def observation(self, seed=0, batch=1):
        """Return a random observation."""
        generator = torch.Generator().manual_seed(seed)
        state = torch.randn(batch, self.config.state_dim, generator=generator)
        return {'observation.state': state, 'task': ['pour the tea']}

    def noise(self, seed=0, batch=1):
        """Return the noise from which a chunk starts."""
        shape = (batch, self.config.horizon, self.config.action_dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


#: Fields of a preset for :class:`FlowPolicy`.
FLOW_FIELDS = {
    'module': 'model.action_out_proj',
    'calls': 'config.num_inference_steps',
    'axes': ['denoise', 'horizon'],
    'feature': 'pre_velocity',
    'pooling': ['horizon=mean', 'denoise=mean'],
    'ends': 'predict_action_chunk',
    'actions': ['batch', 'horizon', 'action'],
    'action_space': 'normalized',
    'exec_horizon': 'config.n_action_steps',
    'instruction': 'task',
    'reset': 'reset',
}
