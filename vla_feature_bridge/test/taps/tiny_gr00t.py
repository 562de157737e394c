# SPDX-License-Identifier: Apache-2.0
"""Makes a tiny, random policy of the real classes of Isaac GR00T N1.6, without any download.

Policy, action head, processor and server are those of Isaac GR00T. Only the vision-language model,
which needs a GPU, is another one: it gives a random state for each token.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn


def _without_training():
    """Let ``gr00t.model`` be imported without its programs of training and their packages."""
    (folder,) = importlib.util.find_spec('gr00t').submodule_search_locations
    package = types.ModuleType('gr00t.model')
    package.__path__ = [str(Path(folder) / 'model')]
    sys.modules.setdefault('gr00t.model', package)


_without_training()

from gr00t.configs.data.embodiment_configs import MODALITY_CONFIGS  # noqa: E402
from gr00t.data.embodiment_tags import EmbodimentTag  # noqa: E402
from gr00t.model.gr00t_n1d6 import gr00t_n1d6, processing_gr00t_n1d6  # noqa: E402
from gr00t.policy import gr00t_policy  # noqa: E402
from transformers.feature_extraction_utils import BatchFeature  # noqa: E402

TAG = EmbodimentTag.LIBERO_PANDA
MODALITIES = MODALITY_CONFIGS[TAG.value]
#: Positions of the action head; the robot of LIBERO uses the first of them.
HEAD_HORIZON, HIDDEN, STEPS = 20, 24, 4
HORIZON = len(MODALITIES['action'].delta_indices)
LANGUAGE = MODALITIES['language'].modality_keys[0]


class RandomBackbone(nn.Module):
    """Has the calls and the results of the vision-language model: a state for each token."""

    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(200_000, 32)

    def prepare_input(self, batch):
        return BatchFeature(data=batch)

    def forward(self, inputs):
        ids = inputs['input_ids']
        return BatchFeature(
            data={
                'backbone_features': self.embedding(ids),
                'backbone_attention_mask': inputs['attention_mask'] == 1,
                'image_mask': ids % 2 == 0,
            }
        )


def policy(*, strict=True):
    """Return a Gr00tPolicy."""
    config = gr00t_n1d6.Gr00tN1d6Config(
        backbone_embedding_dim=32,
        max_state_dim=29,
        max_action_dim=29,
        action_horizon=HEAD_HORIZON,
        hidden_size=HIDDEN,
        input_embedding_dim=32,
        num_inference_timesteps=STEPS,
        diffusion_model_cfg={
            'positional_embeddings': None,
            'num_layers': 4,
            'num_attention_heads': 2,
            'attention_head_dim': 16,
            'norm_type': 'ada_norm',
            'output_dim': HIDDEN,
            'interleave_self_attention': True,
        },
    )
    torch.manual_seed(0)
    with mock.patch.object(gr00t_n1d6, 'get_backbone_cls', lambda config: RandomBackbone):
        model = gr00t_n1d6.Gr00tN1d6(config)
    processor = processing_gr00t_n1d6.Gr00tN1d6Processor(
        {TAG.value: MODALITIES},
        statistics={TAG.value: _statistics()},
        use_albumentations=True,
        shortest_image_edge=56,
    )
    with (
        mock.patch.object(gr00t_policy.AutoModel, 'from_pretrained', lambda folder: model),
        mock.patch.object(gr00t_policy.AutoProcessor, 'from_pretrained', lambda folder: processor),
    ):
        return gr00t_policy.Gr00tPolicy(TAG, 'tiny', device='cpu', strict=strict)


def _statistics():
    def of(keys):
        return {
            key: {
                'min': [-2.0],
                'max': [4.0],
                'mean': [1.0],
                'std': [1.5],
                'q01': [-2.0],
                'q99': [4.0],
            }
            for key in keys
        }

    return {name: of(MODALITIES[name].modality_keys) for name in ('state', 'action')}


def observation(prompt='fold the towel', seed=0):
    """Return an observation as a client of Isaac GR00T sends it."""
    random = np.random.default_rng(seed)
    shape = (1, len(MODALITIES['video'].delta_indices), 64, 64, 3)
    state = (1, len(MODALITIES['state'].delta_indices), 1)
    return {
        'video': {
            key: random.integers(256, size=shape, dtype=np.uint8)
            for key in MODALITIES['video'].modality_keys
        },
        'state': {
            key: random.normal(size=state).astype(np.float32)
            for key in MODALITIES['state'].modality_keys
        },
        'language': {LANGUAGE: [[prompt]]},
    }
