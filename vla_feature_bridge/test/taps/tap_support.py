# SPDX-License-Identifier: Apache-2.0
"""What the tests of taps share: taps of a small policy, and inputs recorded by other means."""

from __future__ import annotations

import contextlib

import torch
from flow_policy import FLOW_FIELDS, FlowPolicy

from vla_feature_bridge.taps import FeatureTap, Preset

FLOW = Preset(name='flow', **FLOW_FIELDS)


def flow_tap(flow_policy, /, **changes):
    """Return a tap of a :class:`FlowPolicy`."""
    return FeatureTap(flow_policy, FLOW, **changes)


@contextlib.contextmanager
def inputs_by_hand(module, part=lambda x: x):
    """Record the inputs of a module by its ``forward``, not by a hook.

    Yields the list to which a copy of a part of each input is added.
    """
    forward, found = module.forward, []

    def recording(x, *args, **kwargs):
        found.append(part(x).detach().clone())
        return forward(x, *args, **kwargs)

    module.forward = recording
    try:
        yield found
    finally:
        del module.forward


def recorded(policy, run):
    """Return what a function returns, and the inputs of the head of a policy, (calls, ...)."""
    with inputs_by_hand(policy.model.action_out_proj) as found:
        result = run()
    return result, torch.cat(found)


def infer(policy, seed=0):
    """Make one inference with fixed noise."""
    return policy.predict_action_chunk(policy.observation(seed), policy.noise(seed))


__all__ = ['FLOW', 'FlowPolicy', 'flow_tap', 'infer', 'inputs_by_hand', 'recorded']
