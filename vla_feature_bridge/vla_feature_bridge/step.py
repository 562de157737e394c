# SPDX-License-Identifier: Apache-2.0
"""One inference of a policy as plain NumPy data, and the table of its fields.

Every detector reads :class:`PolicyStep`; policies, rollouts and recordings produce it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

#: Usual names of action spaces. NORMALIZED: as the network emits actions. ROBOT: un-normalised, in
#: the unit that the robot executes.
NORMALIZED = 'normalized'
ROBOT = 'robot'

#: Name of the features of a step or a recording without features (a black box); their shape is
#: (0,). Detectors that read only signals, actions or token statistics need no features.
NO_FEATURE = 'none'


@dataclass(slots=True, eq=False)
class PolicyStep:
    """One inference of the policy; the plain Python form of ``safe_msgs/PolicyStep``.

    Attributes
    ----------
    features : ndarray, shape (D,) pooled or (..., D) raw, any float dtype
        The policy's hidden state for this inference.
    feature_name : str
        Name of the features and how they were pooled, as ``str(FeatureSpec)``; empty if unknown.
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
        How many actions of the chunk are executed before the next inference. Under real-time
        chunking (RTC), this is the nominal number: see :class:`~.signals.SignalStream`.
    token_probability, token_entropy : ndarray, shape (tokens,), or None
        Probability of each emitted token and entropy [nats] of its distribution.
    signals : dict of str to float
        Scalars of this step, see :mod:`vla_feature_bridge.signals`.
    inference_time : float
        How long the inference took [s]; 0 if unknown.
    action_space : str
        Name of the space of ``actions``: :data:`NORMALIZED`, :data:`ROBOT` or another name; empty
        if unknown.
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
    action_space: str = ''


@dataclass(frozen=True)
class StepField:
    """One optional field with a separate value for every step of an episode.

    Attributes
    ----------
    name : str
        Attribute of :class:`PolicyStep`, and field of ``safe_msgs/PolicyStep``.
    kind : str
        How one step stores the field:

        * ``'tensor'``: an array of fixed shape and any dtype, finite; a ``Tensor`` in messages.
        * ``'values'``: a float32 vector whose length may change from step to step; ``float32[]``
          in messages, padded by NaN in rollouts.
        * ``'number'``: one float; NaN in a message if the number is unknown.
        * ``'stamp'``: the time of the step, int64 [ns]; ``header.stamp`` in messages.
    axes : tuple of str
        Names of the axes of one step. In a rollout, the axis of steps comes before these axes.
    doc : str
        One phrase, with the unit in brackets.
    default : None, float or int
        Value in a :class:`PolicyStep` if the rollout does not have this field.
    stacked : str
        Attribute of ``Rollout``, and array in a rollout set; ``name`` if empty.
    """

    name: str
    kind: Literal['tensor', 'values', 'number', 'stamp']
    axes: tuple[str, ...]
    doc: str
    default: float | int | None = None
    stacked: str = ''

    def __post_init__(self) -> None:
        if not self.stacked:
            object.__setattr__(self, 'stacked', self.name)


#: All optional fields of a step, except ``signals`` (numbers with names that the policy chooses).
#: Messages, recordings, rollouts, rollout sets and the publisher iterate over this table.
STEP_FIELDS: tuple[StepField, ...] = (
    StepField(
        'actions',
        'tensor',
        ('samples', 'horizon', 'action_dim'),
        'sampled action chunks; sample 0 is the executed one',
    ),
    StepField('token_probability', 'values', ('tokens',), 'probability of each emitted token'),
    StepField(
        'token_entropy',
        'values',
        ('tokens',),
        "entropy of each emitted token's distribution [nats]",
    ),
    StepField('stamp', 'stamp', (), 'time of the observation [ns]', default=0, stacked='stamps'),
    StepField('inference_time', 'number', (), 'how long the inference took [s]', default=0.0),
)
