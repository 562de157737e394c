# SPDX-License-Identifier: Apache-2.0
"""Probability and entropy of each emitted token, from the logits of a step.

Gu et al., SAFE (arXiv 2506.09937), token uncertainty baselines: p = softmax(logits) over the action
vocabulary; the probability of a token is max p, its entropy is -sum p log p.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.tensors import as_float32


class TokenError(SafeError):
    """Token statistics cannot be computed from these logits."""


def token_statistics(logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability and the entropy of every token of one step.

    Parameters
    ----------
    logits : ndarray, shape (tokens, vocabulary), any float dtype
        -inf for tokens that the policy cannot emit.

    Returns
    -------
    probability, entropy : ndarray of float32, shape (tokens,)
        Largest probability of the distribution, and its entropy [nats].

    Raises
    ------
    TokenError
        The logits do not have this shape or dtype, or a token has no finite logit.
    """
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or 0 in logits.shape:
        is_array = isinstance(logits, np.ndarray)
        raise TokenError(
            expected='an array of logits of shape (tokens, vocabulary) that is not empty',
            found=f'shape {logits.shape}' if is_array else f'the type {type(logits).__name__}',
        )
    values = as_float32(logits)
    largest = values.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        token = int(np.argmin(np.isfinite(largest)))
        raise TokenError(
            where=f'token {token}',
            expected='logits that are finite or -inf, and at least one finite logit',
            found=f'logits with the maximum {largest[token, 0]}',
        )
    shifted = values - largest
    weights = np.exp(shifted)
    total = weights.sum(axis=1, dtype=np.float64)
    np.maximum(shifted, np.finfo(np.float32).min, out=shifted)  # 0 * -inf is NaN
    shifted *= weights
    entropy = np.log(total) - shifted.sum(axis=1, dtype=np.float64) / total
    probability = 1 / total
    return probability.astype(np.float32), np.maximum(entropy, 0).astype(np.float32)


def pad_tokens(steps: list[np.ndarray]) -> np.ndarray:
    """Return one float32 array ``(T, longest step)`` of all steps' values, padded by NaN."""
    padded = np.full((len(steps), max(map(len, steps))), np.nan, np.float32)
    for row, values in zip(padded, steps, strict=True):
        row[: len(values)] = values
    return padded
