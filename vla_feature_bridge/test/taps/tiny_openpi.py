# SPDX-License-Identifier: Apache-2.0
"""Makes tiny, random policies of the real classes of openpi, without any download.

A policy has the transforms of openpi's LIBERO policy, from the request to the actions of the
reply. Only the tokenizer of the prompt is another one, because that of openpi is a download.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

# The checks of types in openpi read the source of each function on the stack: that takes minutes.
os.environ['JAXTYPING_DISABLE'] = '1'

from openpi.models.pi0_config import Pi0Config
from openpi.policies.libero_policy import LiberoInputs, LiberoOutputs
from openpi.policies.policy import Policy
from openpi.shared.normalize import NormStats
from openpi.transforms import Normalize, Unnormalize

HORIZON, STATE_DIM, ACTION_DIM, WORDS = 6, 8, 7, 16
#: Width of the small variant of Gemma that openpi names 'dummy'.
WIDTH = 64
VOCABULARY = 512


def observation(prompt='fold the towel', seed=0):
    """Return a request as a client of the LIBERO policy sends it."""
    random = np.random.default_rng(seed)
    return {
        'observation/state': random.normal(size=STATE_DIM).astype(np.float32),
        'observation/image': random.integers(256, size=(224, 224, 3), dtype=np.uint8),
        'observation/wrist_image': random.integers(256, size=(224, 224, 3), dtype=np.uint8),
        'prompt': prompt,
    }


def statistics():
    """Return the statistics by which state and actions are normalized."""
    return {
        'state': NormStats(mean=np.full(STATE_DIM, 0.1), std=np.full(STATE_DIM, 2.0)),
        'actions': NormStats(mean=np.full(ACTION_DIM, 5.0), std=np.full(ACTION_DIM, 2.0)),
    }


def tokens(data):
    """Replace the prompt with tokens, as the transform ``TokenizePrompt`` does; pad the state."""
    prompt = str(np.asarray(data.pop('prompt')).item())
    ids = [3 + sum(map(ord, word)) % (VOCABULARY - 3) for word in prompt.split()][:WORDS]
    state = np.asarray(data['state'], np.float32)
    return {
        **data,
        'state': np.pad(state, (0, 32 - len(state))),
        'tokenized_prompt': np.array(ids + [0] * (WORDS - len(ids)), np.int32),
        'tokenized_prompt_mask': np.arange(WORDS) < len(ids),
        'token_ar_mask': np.ones(WORDS, np.int32),
        'token_loss_mask': np.zeros(WORDS, bool),
    }


def policy_of(model, model_type, *, is_pytorch=False, outputs=None, **sample_kwargs):
    """Return the Policy of a model, with the transforms that ``create_trained_policy`` gives it."""
    statistic = statistics()
    return Policy(
        model,
        transforms=[LiberoInputs(model_type=model_type), Normalize(statistic), tokens],
        output_transforms=outputs or [Unnormalize(statistic), LiberoOutputs()],
        sample_kwargs=sample_kwargs,
        is_pytorch=is_pytorch,
    )


def config(**changes):
    """Return the configuration of a small pi0 or pi0.5."""
    small = {
        'paligemma_variant': 'dummy',
        'action_expert_variant': 'dummy',
        'action_horizon': HORIZON,
        'max_token_len': WORDS,
        'pytorch_compile_mode': None,
        'dtype': 'float32',
    }
    return Pi0Config(**{**small, **changes})


# -- PyTorch


def pytorch_policy(*, sample_kwargs=None, **changes):
    """Return the Policy of a tiny pi0 or pi0.5 (``pi05=True``) in PyTorch."""
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch

    changed = config(**changes)
    torch.manual_seed(0)
    with _tiny_classes():
        model = PI0Pytorch(changed)
    return policy_of(model, changed.model_type, is_pytorch=True, **(sample_kwargs or {}))


@contextlib.contextmanager
def _tiny_classes():
    """Make openpi build small versions of the classes of transformers, with one layer each."""
    from openpi.models import gemma
    from openpi.models_pytorch import gemma_pytorch

    paligemma = gemma_pytorch.PaliGemmaForConditionalGeneration
    causal = gemma_pytorch.GemmaForCausalLM
    one_layer = replace(gemma.get_config('dummy'), depth=1)

    def small_paligemma(config):
        config._vocab_size = config.text_config.vocab_size = VOCABULARY
        config.image_token_index = VOCABULARY
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size = 32, 64
        vision.num_hidden_layers, vision.num_attention_heads = 1, 2
        vision.projection_dim = config.projection_dim = config.text_config.hidden_size
        return paligemma(config=config)

    def small_gemma(config):
        config.vocab_size = VOCABULARY
        return causal(config=config)

    with (
        mock.patch.object(gemma_pytorch, 'PaliGemmaForConditionalGeneration', small_paligemma),
        mock.patch.object(gemma_pytorch, 'GemmaForCausalLM', small_gemma),
        mock.patch.object(gemma, 'get_config', lambda variant: one_layer),
    ):
        yield


# -- JAX


def jax_policy(*, sample_kwargs=None, **changes):
    """Return the Policy of a tiny pi0 or pi0.5 (``pi05=True``) in JAX."""
    import jax
    from openpi.models import pi0

    changed = config(**{'dtype': 'bfloat16', **changes})
    with _tiny_vision(pi0):
        model = changed.create(jax.random.key(0))
    return policy_of(model, changed.model_type, **(sample_kwargs or {}))


def jax_fast_model():
    """Return a tiny pi0-FAST in JAX; all weights of its language model are random."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from openpi.models import gemma_fast, pi0_fast

    small = gemma_fast.get_config('gemma_2b')
    small.update(width=WIDTH, depth=2, mlp_dim=128, head_dim=16, vocab_size=VOCABULARY)
    with _tiny_vision(pi0_fast), mock.patch.object(gemma_fast, 'get_config', lambda name: small):
        model = pi0_fast.Pi0FASTConfig(max_token_len=WORDS).create(jax.random.key(0))
    random, llm = np.random.default_rng(0), model.PaliGemma.llm
    # openpi makes the embedding of zeros: each word would be as likely as any other.
    nnx.update(
        llm,
        jax.tree.map(
            lambda x: jnp.asarray(random.normal(scale=0.2, size=x.shape), x.dtype), nnx.state(llm)
        ),
    )
    return model


def jax_fast_policy(model):
    """Return a Policy of pi0-FAST whose actions are its tokens, (256, 1).

    The transform of openpi that makes actions of tokens needs a tokenizer, which is a download.
    """
    from openpi.models.model import ModelType

    def tokens_as_actions(data):
        return {'actions': np.asarray(data['actions'])[:, None]}

    return policy_of(model, ModelType.PI0_FAST, outputs=[tokens_as_actions])


@contextlib.contextmanager
def _tiny_vision(module):
    """Make a module of openpi build a small SigLIP."""
    siglip = module._siglip.Module

    @functools.wraps(siglip)
    def small(num_classes, *, variant, **options):
        return siglip(num_classes, variant='mu/14', **options)

    with mock.patch.object(module._siglip, 'Module', small):
        yield
