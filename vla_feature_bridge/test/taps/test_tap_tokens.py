# SPDX-License-Identifier: Apache-2.0
"""States and statistics of generated tokens, with the ``generate`` of transformers."""

import math

import numpy as np
import pytest
import torch
from tap_support import inputs_by_hand
from torch import nn

from vla_feature_bridge.taps import FeatureTap, Preset

transformers = pytest.importorskip(
    'transformers', reason='needs transformers (requirements/dev.txt): pip install transformers'
)

TOKENS = Preset(
    name='tokens',
    module='lm_head',
    calls='tokens',
    keep='[:, -1]',
    axes=['token'],
    feature='hidden_states',
    pooling=['token=last'],
    ends='generate',
    token_logits=True,
    token_ids='returned',
)


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def paligemma():
    torch.manual_seed(0)
    config = transformers.PaliGemmaConfig(
        text_config={
            'model_type': 'gemma',
            'vocab_size': 64,
            'hidden_size': 32,
            'intermediate_size': 64,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 1,
            'head_dim': 16,
        },
        vision_config={
            'model_type': 'siglip_vision_model',
            'hidden_size': 16,
            'intermediate_size': 32,
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'image_size': 28,
            'patch_size': 14,
        },
        image_token_index=60,
        projection_dim=32,
    )
    return transformers.PaliGemmaForConditionalGeneration(config).eval()


PROMPT = torch.tensor([[1, 5, 9, 11]])


def by_hand(logits):
    """Return probability and entropy of one row of logits, in double precision."""
    numbers = [math.exp(float(value) - float(logits.max())) for value in logits]
    probabilities = [number / sum(numbers) for number in numbers]
    return max(probabilities), -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'options',
    [
        {'do_sample': False},
        {'do_sample': True, 'temperature': 1.7, 'top_k': 5},
        {'do_sample': False, 'use_cache': False},
        {'do_sample': False, 'min_new_tokens': 6},
    ],
    ids=['greedy', 'sampled', 'no cache', 'min_new_tokens'],
)
def test_states_and_statistics_are_those_of_generate(dtype, options):
    model = llama(dtype)
    tap = FeatureTap(model, TOKENS, pooling='raw')
    torch.manual_seed(1)
    out = model.generate(
        PROMPT,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_logits=True,
        **options,
    )
    tokens = out.sequences.shape[1] - PROMPT.shape[1]
    assert (tap.last.calls, tap.last.expected_calls, tap.last.problem) == (tokens, tokens, '')
    states = torch.cat([step[-1][:, -1] for step in out.hidden_states]).float()
    np.testing.assert_array_equal(tap.last.features, states.numpy())
    expected = np.array([by_hand(row[0]) for row in out.logits])
    np.testing.assert_allclose(tap.last.token_probability, expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(tap.last.token_entropy, expected[:, 1], rtol=1e-5)
    if options == {'do_sample': False}:
        chosen = torch.cat(out.logits).argmax(dim=1)
        torch.testing.assert_close(chosen, out.sequences[0, PROMPT.shape[1] :])


def test_a_prompt_of_embeddings_and_by_keywords():
    model = llama()
    tap = FeatureTap(model, TOKENS)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(PROMPT)
    first = model.generate(inputs_embeds=embeddings, max_new_tokens=4, do_sample=False)
    assert (tap.last.calls, tap.last.problem) == (first.shape[1], '')
    features = tap.last.features
    model.generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False)
    assert tap.last.problem == ''
    np.testing.assert_allclose(tap.last.features, features, rtol=0, atol=1e-6)
    model.generate(inputs=PROMPT, max_new_tokens=1, do_sample=False)
    assert (tap.last.calls, tap.last.problem) == (1, '')


def test_an_early_end_has_fewer_tokens():
    model = llama()
    tap = FeatureTap(model, TOKENS, pooling='raw')
    said = model.generate(PROMPT, max_new_tokens=8, do_sample=False)[0, 4:]
    stop = int(said[3])
    first = said.tolist().index(stop) + 1
    model.generate(PROMPT, max_new_tokens=8, do_sample=False, eos_token_id=stop)
    assert tap.last.features.shape == (first, 32)
    assert tap.last.problem == ''


@pytest.mark.parametrize('options', [{'num_beams': 3}, {'num_return_sequences': 2}])
def test_several_sequences_are_refused(options):
    model = llama()
    tap = FeatureTap(model, TOKENS)
    model.generate(PROMPT, max_new_tokens=3, do_sample='num_beams' not in options, **options)
    assert tap.last.features is None
    assert tap.problems['batch'] == 1
    assert 'num_beams > 1' in tap.last.problem


def test_a_batch_of_prompts_is_refused():
    model = llama()
    tap = FeatureTap(model, TOKENS)
    model.generate(PROMPT.repeat(2, 1), max_new_tokens=3, do_sample=False)
    assert tap.last.features is None
    assert 'expected a batch of 1, found 2' in tap.last.problem


def test_a_vision_language_model():
    model = paligemma()
    tap = FeatureTap(model, TOKENS, pooling='raw')
    prompt = torch.tensor([[60] * 4 + [1, 7, 9]])
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with inputs_by_hand(model.lm_head, lambda x: x[:, -1]) as states:
        model.generate(input_ids=prompt, pixel_values=pixels, max_new_tokens=5, do_sample=False)
    np.testing.assert_array_equal(tap.last.features, torch.cat(states).numpy())
    assert tap.last.problem == ''
    assert len(tap.last.token_entropy) == tap.last.calls


class ActionTokens(nn.Module):
    """A policy that generates one token for each action dimension, as OpenVLA does."""

    def __init__(self, dimensions=7):
        super().__init__()
        self.language_model, self.dimensions = llama(torch.bfloat16), dimensions

    def predict_action(self, input_ids):
        ids = self.language_model.generate(
            input_ids,
            max_new_tokens=self.dimensions,
            min_new_tokens=self.dimensions,
            do_sample=False,
        )
        return ids[0, -self.dimensions :].numpy() / 64


def test_a_token_for_each_action_dimension():
    policy = ActionTokens()
    tap = FeatureTap(policy, 'openvla')
    head = policy.language_model.lm_head
    with inputs_by_hand(head, lambda x: x[:, -1]) as states:
        action = policy.predict_action(PROMPT)
    assert action.shape == (7,)
    np.testing.assert_array_equal(tap.last.features, states[-1][0].float().numpy())
    np.testing.assert_array_equal(tap.last.actions, action[None, None])
    assert tap.last.shape == (7, 32)
    assert (tap.last.calls, tap.last.expected_calls, tap.last.problem) == (7, 7, '')
    assert tap.last.token_probability.shape == (7,)
    assert tap.feature_name == 'hidden_states[token=last]'


def test_tokens_and_actions_that_differ_in_number_are_a_problem():
    policy = ActionTokens()
    tap = FeatureTap(policy, 'openvla')
    original = policy.language_model.generate
    policy.language_model.generate = lambda ids, **options: original(
        ids, **{**options, 'max_new_tokens': 9, 'min_new_tokens': 9}
    )
    policy.predict_action(PROMPT)
    assert tap.last.features is None
    assert 'expected 7 calls in one inference, found 9' in tap.last.problem
