# SPDX-License-Identifier: Apache-2.0
"""The data that a tap copied from one inference of a policy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Inference:
    """One inference of a policy, as a tap saw it.

    Attributes
    ----------
    features : ndarray, or None
        Pooled, float32 ``(D,)``; or raw, ``(*axes, D)`` in the dtype of the policy (bfloat16 as
        float32, which is exact). None if the policy is a black box, or if the tap could not read
        them: see ``problem``.
    feature_name : str
        Name of the feature and its pooling, as ``str(FeatureSpec)``.
    actions : ndarray, shape (1, horizon, action_dim), or None
        The chunk that the policy returned; None if it returns none.
    token_probability, token_entropy : ndarray of float32, shape (tokens,), or None
        Largest probability of the distribution of each token, and its entropy [nats].
    calls : int
        How often the submodule was called.
    expected_calls : int or None
        Expected number of calls; None if it is not known.
    shape : tuple of int
        Shape of the raw features; empty if there are none.
    dtype : str
        dtype of the raw features in the policy.
    instruction : str
        Language instruction of this inference; empty if it is unknown.
    inference_time : float
        How long the inference took [s].
    stamp : int
        When the inference began [ns, clock of the tap].
    thread : str
        Name of the thread that made the inference.
    problem : str
        Problem of this inference; empty if there is none.
    """

    features: np.ndarray | None = field(default=None, repr=False)
    feature_name: str = ''
    actions: np.ndarray | None = field(default=None, repr=False)
    token_probability: np.ndarray | None = field(default=None, repr=False)
    token_entropy: np.ndarray | None = field(default=None, repr=False)
    calls: int = 0
    expected_calls: int | None = None
    shape: tuple[int, ...] = ()
    dtype: str = ''
    instruction: str = ''
    inference_time: float = 0.0
    stamp: int = 0
    thread: str = ''
    problem: str = ''
