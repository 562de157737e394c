# SPDX-License-Identifier: Apache-2.0
"""Copies hidden states, actions and token statistics from a running policy, without ROS.

::

    from vla_feature_bridge.taps import FeatureTap

    tap = FeatureTap(policy, 'lerobot_pi0')

The modules; each may import only modules above it:

errors      the error of taps
fields      the values that one field of a preset may have
preset      the schema of a preset: ``Preset``
paths       submodules, methods and numbers of a policy by their paths
presets     loads presets by name or path: ``load_preset``; the folder ``presets`` holds the files
methods     methods of a policy that tell when they begin and end
stack       copies of tensors on their device
inference   what a tap took out of one inference: ``Inference``
capture     copies of tensors at each call of a submodule
results     instruction, actions and tokens in what a method takes and returns
reader      makes an ``Inference`` of what was captured
recorder    notes for each thread when an inference begins, calls and ends
episodes    publishes inferences, and starts and ends episodes
handover    hands inferences from the thread of the policy to another thread
tap         ``FeatureTap``
checking    compares one inference of a policy with a preset: ``check``
lerobot     one inference of a LeRobot policy with a random observation

lerobot_settings  variables of the environment that configure the tap of LeRobot's programs
lerobot_policy    the tap of one policy of LeRobot, and its connection to the bridge
lerobot_plugin    attaches a tap to every policy that a program of LeRobot loads
lerobot_server    starts LeRobot's asynchronous policy server with a tap
openpi_modules    modules of Flax that copy the states of openpi's models
openpi_jax        the tap of openpi's policies in JAX: ``OpenpiJaxTap``

``paths`` and what captures tensors need PyTorch, ``presets`` needs PyYAML. The names of the Python
API load on first use. Therefore ``list`` and ``show`` of the command line load no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_feature_bridge.taps.checking import check
    from vla_feature_bridge.taps.errors import TapError
    from vla_feature_bridge.taps.inference import Inference
    from vla_feature_bridge.taps.preset import Preset
    from vla_feature_bridge.taps.presets import find_preset, load_preset, preset_names
    from vla_feature_bridge.taps.tap import FeatureTap

__all__ = [
    'FeatureTap',
    'Inference',
    'Preset',
    'TapError',
    'check',
    'find_preset',
    'load_preset',
    'preset_names',
]

_MODULES = {
    'FeatureTap': 'tap',
    'Inference': 'inference',
    'Preset': 'preset',
    'TapError': 'errors',
    'check': 'checking',
    'find_preset': 'presets',
    'load_preset': 'presets',
    'preset_names': 'presets',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
