# SPDX-License-Identifier: Apache-2.0
"""Makes tiny, random policies of the real classes of LeRobot, without any download."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import torch
from lerobot.configs.types import FeatureType, PolicyFeature

STATE_DIM, ACTION_DIM = 8, 6
CAMERA = 'observation.images.front'
TOKENS, MASK = 'observation.language.tokens', 'observation.language.attention_mask'
#: Tokens of the tiny tokenizers: words of the prompt, then the action tokens of FAST.
VOCABULARY, SKIPPED, FAST = 512, 16, 256


def features(size=56):
    """Return input and output features: a state, one camera, an action."""
    inputs = {
        'observation.state': PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
        CAMERA: PolicyFeature(FeatureType.VISUAL, (3, size, size)),
    }
    return {
        'input_features': inputs,
        'output_features': {'action': PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    }


def observation(batch=1, size=56, words=7, seed=0):
    """Return a batch as the processor of a policy makes it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        'observation.state': torch.randn(batch, STATE_DIM, generator=generator),
        CAMERA: torch.rand(batch, 3, size, size, generator=generator),
        TOKENS: torch.randint(3, 40, (batch, words), generator=generator),
        MASK: torch.ones(batch, words, dtype=torch.bool),
        'task': ['fold the towel'] * batch,
    }


# -- policies that need nothing but their configuration


def act(**changes):
    """Return an ACT policy."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    options = {
        'chunk_size': 12,
        'n_action_steps': 5,
        'dim_model': 32,
        'n_heads': 2,
        'dim_feedforward': 64,
        'n_encoder_layers': 1,
        'n_vae_encoder_layers': 1,
        'pretrained_backbone_weights': None,
        'device': 'cpu',
    }
    torch.manual_seed(0)
    return ACTPolicy(ACTConfig(**features(), **{**options, **changes})).eval()


def diffusion(**changes):
    """Return a Diffusion Policy."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    options = {
        'horizon': 16,
        'n_action_steps': 4,
        'down_dims': (32, 64),
        'num_train_timesteps': 6,
        'crop_shape': None,
        'pretrained_backbone_weights': None,
        'device': 'cpu',
    }
    torch.manual_seed(0)
    return DiffusionPolicy(DiffusionConfig(**features(), **{**options, **changes})).eval()


# -- SmolVLA, whose vision-language model comes from a folder


def write_tiny_smolvlm(folder: Path) -> Path:
    """Write the configuration and the processor of a tiny SmolVLM."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    text = {
        'model_type': 'llama',
        'vocab_size': 128,
        'hidden_size': 64,
        'intermediate_size': 128,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'head_dim': 16,
        'pad_token_id': 0,
        'bos_token_id': 1,
        'eos_token_id': 2,
    }
    vision = {
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_hidden_layers': 1,
        'num_attention_heads': 2,
        'image_size': 64,
        'patch_size': 16,
    }
    SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=5
    ).save_pretrained(folder)
    special = ('<image>', '<fake_token_around_image>', '<global-img>', '<row_1_col_1>')
    tokenizer = word_tokenizer(
        128,
        special,
        extra_special_tokens={
            'image_token': '<image>',
            'fake_image_token': '<fake_token_around_image>',
            'global_image_token': '<global-img>',
        },
    )
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=4,
    ).save_pretrained(folder)
    return folder


def smolvla(folder: Path, **changes):
    """Return a SmolVLA policy; ``folder`` is that of :func:`write_tiny_smolvlm`."""
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    options = {
        'vlm_model_name': str(folder),
        'num_vlm_layers': 2,
        'chunk_size': 10,
        'n_action_steps': 10,
        'num_steps': 4,
        'resize_imgs_with_padding': (64, 64),
        'device': 'cpu',
    }
    torch.manual_seed(0)
    return SmolVLAPolicy(SmolVLAConfig(**features(), **{**options, **changes})).eval()


def word_tokenizer(size, special=(), **options):
    """Return a tokenizer of ``size`` words: special ones, some of a prompt, and numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ['<pad>', '<bos>', '<eos>', '<unk>', *special, 'Action', ':', '|']
    words += [f'w{number}' for number in range(size - len(words))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token='<unk>')
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        bos_token='<bos>',
        eos_token='<eos>',
        unk_token='<unk>',
        **options,
    )


# -- pi0, pi0.5 and pi0-FAST, whose configuration allows no tiny model


@contextlib.contextmanager
def tiny_gemma(module, width=64):
    """Make a module of LeRobot build small versions of its own classes."""
    config = module.GemmaConfig(
        width=width, depth=2, mlp_dim=2 * width, num_heads=2, num_kv_heads=1, head_dim=32
    )
    large = module.PaliGemmaForConditionalGenerationWithPiGemma

    def small(config):
        config._vocab_size = config.text_config.vocab_size = VOCABULARY
        config.image_token_index = VOCABULARY
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size = 32, 64
        vision.num_hidden_layers, vision.num_attention_heads = 1, 2
        vision.image_size = 56
        vision.projection_dim = config.projection_dim = width
        return large(config=config)

    with (
        mock.patch.object(module, 'get_gemma_config', lambda variant: config),
        mock.patch.object(module, 'PaliGemmaForConditionalGenerationWithPiGemma', small),
    ):
        yield


def pi0(**changes):
    """Return a pi0 policy."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi0.configuration_pi0 import PI0Config

    with tiny_gemma(modeling_pi0):
        return _policy(modeling_pi0.PI0Policy, PI0Config, changes, num_inference_steps=3)


def pi05(**changes):
    """Return a pi0.5 policy."""
    from lerobot.policies.pi05 import modeling_pi05
    from lerobot.policies.pi05.configuration_pi05 import PI05Config

    with tiny_gemma(modeling_pi05):
        return _policy(modeling_pi05.PI05Policy, PI05Config, changes, num_inference_steps=3)


def pi0_fast(**changes):
    """Return a pi0-FAST policy with tiny tokenizers."""
    from lerobot.policies.pi0_fast import modeling_pi0_fast
    from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig

    tokenizer = word_tokenizer(VOCABULARY)
    with (
        tiny_gemma(modeling_pi0_fast),
        mock.patch.object(
            modeling_pi0_fast.AutoProcessor, 'from_pretrained', lambda *a, **k: FastTokenizer()
        ),
        mock.patch.object(
            modeling_pi0_fast.AutoTokenizer, 'from_pretrained', lambda *a, **k: tokenizer
        ),
    ):
        return _policy(
            modeling_pi0_fast.PI0FastPolicy,
            PI0FastConfig,
            changes,
            fast_skip_tokens=SKIPPED,
            max_decoding_steps=9,
        )


class FastTokenizer:
    """The part of the FAST tokenizer that LeRobot uses: one character for each coefficient."""

    vocab_size, min_token, scale = FAST, -100, 10

    class bpe_tokenizer:
        @staticmethod
        def decode(token):
            return ''.join(chr(100 + int(number) % 3) for number in token)


def _policy(policy_class, config_class, changes, **own):
    options = {
        'chunk_size': 8,
        'n_action_steps': 8,
        'image_resolution': (56, 56),
        'device': 'cpu',
        'dtype': 'float32',
        **own,
    }
    torch.manual_seed(0)
    return policy_class(config_class(**features(), **{**options, **changes})).eval()


def say(policy, words):
    """Make a pi0-FAST policy generate these words: its logits of them become the largest."""
    tokenizer = policy._paligemma_tokenizer
    ids = [tokenizer.convert_tokens_to_ids(word) for word in words]
    said = []

    def force(module, args, output):
        output = output.clone()
        wanted = ids[len(said) % len(ids)]
        output[..., wanted] = output.amax() + 5
        said.append(wanted)
        return output

    head = policy.model.paligemma_with_expert.paligemma.lm_head
    head.register_forward_hook(force)
    return said


# -- GR00T N1.7


def groot(**changes):
    """Return a GR00T N1.7 policy; needs the package dm-tree."""
    from lerobot.policies.groot import groot_n1_7, modeling_groot
    from lerobot.policies.groot.configuration_groot import GrootConfig

    config = groot_n1_7.GR00TN17Config(
        model_dtype='float32',
        dtype='float32',
        backbone_embedding_dim=32,
        select_layer=2,
        max_state_dim=STATE_DIM,
        max_action_dim=ACTION_DIM,
        action_horizon=10,
        hidden_size=24,
        input_embedding_dim=32,
        max_num_embodiments=2,
        diffusion_model_cfg={
            'positional_embeddings': None,
            'num_layers': 4,
            'num_attention_heads': 2,
            'attention_head_dim': 16,
            'norm_type': 'ada_norm',
            'output_dim': 24,
            'interleave_self_attention': True,
        },
        vl_self_attention_cfg={'num_layers': 0},
        num_inference_timesteps=4,
    )
    torch.manual_seed(0)
    with mock.patch.object(groot_n1_7, '_cosmos_reason2_qwen3_vl_config', _tiny_qwen):
        model = groot_n1_7.GR00TN17(config, load_backbone_weights=False).eval()
    options = {'chunk_size': 10, 'n_action_steps': 6, 'device': 'cpu', 'use_bf16': False, **changes}
    with mock.patch.object(modeling_groot.GR00TN17, 'from_pretrained', lambda **kwargs: model):
        return modeling_groot.GrootPolicy(GrootConfig(**features(), **options)).eval()


def _tiny_qwen():
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
        text_config={
            'hidden_size': 32,
            'intermediate_size': 64,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 1,
            'head_dim': 16,
            'vocab_size': 64,
            'rope_scaling': {
                'mrope_interleaved': True,
                'mrope_section': [4, 2, 2],
                'rope_type': 'default',
            },
        },
        vision_config={
            'depth': 1,
            'hidden_size': 16,
            'intermediate_size': 32,
            'num_heads': 2,
            'out_hidden_size': 32,
            'patch_size': 4,
            'spatial_merge_size': 2,
            'temporal_patch_size': 2,
            'num_position_embeddings': 16,
            'deepstack_visual_indexes': [0],
        },
    )


def groot_observation(seed=0):
    """Return a batch as the processor of GR00T makes it: tokens, patches of one image, a state."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[5, 62, 60, 63, 7, 9]])
    return {
        'input_ids': ids,
        'attention_mask': torch.ones_like(ids),
        'pixel_values': torch.randn(4, 3 * 2 * 4 * 4, generator=generator),
        'image_grid_thw': torch.tensor([[1, 2, 2]]),
        'state': torch.randn(1, 1, STATE_DIM, generator=generator),
        'embodiment_id': torch.tensor([1]),
        'task': ['fold the towel'],
    }


# -- policies in a folder, as LeRobot's programs load them


def save(policy, folder: Path) -> Path:
    """Write a policy and its processors into a folder."""
    from lerobot.policies import make_pre_post_processors

    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=_statistics()):
        processor.save_pretrained(folder)
    return folder


def _statistics():
    def of(*shape):
        return {'mean': torch.full(shape, 0.1), 'std': torch.full(shape, 2.0)}

    return {
        'observation.state': of(STATE_DIM),
        CAMERA: of(3, 1, 1),
        'action': of(ACTION_DIM),
    }
