# SPDX-License-Identifier: Apache-2.0
"""One inference of a policy, as plain NumPy data.

What every detector reads and every bridge produces.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True, eq=False)
class PolicyStep:
    """One inference of the policy; the plain twin of ``safe_msgs/PolicyStep``.

    Attributes
    ----------
    features : ndarray, shape (D,) pooled or (..., D) raw, any float dtype
        The policy's hidden state for this inference.
    feature_name : str
        What the features are and how they were pooled, as ``str(FeatureSpec)``; empty if unknown.
    stamp : int
        Time of the observation that the policy acted on [ns, ROS clock].
    episode_id : str
        Unique name of the episode.
    step : int
        0-based inference index inside the episode.
    policy, instruction : str
        Name of the policy and the language instruction that it follows.
    actions : ndarray, shape (samples, horizon, action_dim), or None
        Sampled action chunks; sample 0 is the executed one.
    exec_horizon : int
        How many actions of the chunk are executed before the next inference.
    token_probability, token_entropy : ndarray, shape (tokens,), or None
        Probability of each emitted token and entropy [nats] of its distribution.
    signals : dict of str to float
        Scalars of this step, see :mod:`vla_feature_bridge.signals`.
    inference_time : float
        How long the inference took [s]; 0 if unknown.
    """

    features: np.ndarray
    feature_name: str = ''
    stamp: int = 0
    episode_id: str = ''
    step: int = 0
    policy: str = ''
    instruction: str = ''
    actions: np.ndarray | None = None
    exec_horizon: int = 1
    token_probability: np.ndarray | None = None
    token_entropy: np.ndarray | None = None
    signals: dict[str, float] = field(default_factory=dict)
    inference_time: float = 0.0
