# SPDX-License-Identifier: Apache-2.0
"""Data of a robot policy at each inference: policy steps, rollouts, their files and messages.

::

    from vla_feature_bridge import PolicyStep, Rollout, RolloutSet, FeatureSpec, SignalStream
    from vla_feature_bridge.ros import StepPublisher
    from vla_feature_bridge.wire import StepSender, StepReceiver
    from vla_feature_bridge.taps import FeatureTap

The modules; each may import only modules above it:

errors             the base class of all errors of the suite
progress           the type of progress callbacks
atomic             files and folders that are written completely or not at all
mcap_writer        messages in an mcap file, without ROS
tensors            dtypes, bytes and arrays; NaN in arrays
pooling            hidden states reduced to one feature vector: ``FeatureSpec``
tokens             probability and entropy of emitted tokens
signals            scalars from action chunks: ``SignalStream``
step               one inference of a policy: ``PolicyStep``, and the table of its fields
rollout            the steps of one episode, stacked: ``Rollout``
rollout_set/       many rollouts in one folder: ``RolloutSet``, ``RolloutSetWriter``
step_checks        checks of what a policy gives for a step or an event
episode_steps      steps and events of a policy's episodes: ``EpisodeSteps``
deferred           calls that a thread makes later, in their order
problem_log        logs each kind of problem once, and then from time to time
step_sink          the base of what sends them: counts, logs, never raises
wire/              steps over a socket: ``StepSender``, ``StepReceiver``; NumPy only
taps/              copies hidden states of PyTorch policies: ``FeatureTap``; needs PyTorch
relays/            forwards data between a policy server and its client, and sends steps
ros/               messages, quality of service, parameters, ``StepPublisher``; needs ROS 2
nodes/             the bridge node and the replay node; needs ROS 2

The names of the Python API load on first use, so that ``import vla_feature_bridge`` loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_feature_bridge.errors import SafeError
    from vla_feature_bridge.pooling import FeatureSpec
    from vla_feature_bridge.rollout import Rollout
    from vla_feature_bridge.rollout_set import RolloutSet, RolloutSetWriter
    from vla_feature_bridge.signals import SignalStream
    from vla_feature_bridge.step import PolicyStep

__all__ = [
    'FeatureSpec',
    'PolicyStep',
    'Rollout',
    'RolloutSet',
    'RolloutSetWriter',
    'SafeError',
    'SignalStream',
]

_MODULES = {
    'FeatureSpec': 'pooling',
    'PolicyStep': 'step',
    'Rollout': 'rollout',
    'RolloutSet': 'rollout_set',
    'RolloutSetWriter': 'rollout_set',
    'SafeError': 'errors',
    'SignalStream': 'signals',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
