# SPDX-License-Identifier: Apache-2.0
"""One inference of a LeRobot policy with a random observation, to check a preset."""

from __future__ import annotations

from typing import Any

import torch

from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.paths import unwrapped

_TOKENS = 'observation.language.tokens'
_MASK = 'observation.language.attention_mask'
_FEW_TOKENS = 8


def random_observation(policy: Any) -> dict[str, Any]:
    """Return a batch of one random observation for a LeRobot policy, as its processor makes it.

    Raises
    ------
    TapError
        The policy has no ``config.input_features``.
    """
    policy = unwrapped(policy)
    config = getattr(policy, 'config', None)
    features = getattr(config, 'input_features', None)
    if not features:
        raise TapError(
            where=type(policy).__name__,
            expected='a policy of LeRobot (config.input_features)',
            found='none',
            advice='give a function that makes one inference: --inference MODULE:FUNCTION',
        )
    device = next(policy.parameters()).device
    batch: dict[str, Any] = {
        name: torch.rand(1, *feature.shape, device=device) for name, feature in features.items()
    }
    if hasattr(config, 'tokenizer_max_length'):
        batch[_TOKENS] = torch.ones(1, _FEW_TOKENS, dtype=torch.long, device=device)
        batch[_MASK] = torch.ones(1, _FEW_TOKENS, dtype=torch.bool, device=device)
    return {**batch, 'task': ['check']}


def infer_once(policy: Any) -> None:
    """Make one inference with a random observation: reset, then select one action.

    With real-time chunking, which has no ``select_action``, a chunk is predicted.
    """
    observation = random_observation(policy)
    policy.reset()
    rtc = getattr(unwrapped(policy).config, 'rtc_config', None)
    if rtc is not None and rtc.enabled:
        policy.predict_action_chunk(observation)
    else:
        policy.select_action(observation)
