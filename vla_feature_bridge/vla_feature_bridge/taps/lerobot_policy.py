# SPDX-License-Identifier: Apache-2.0
"""The tap of one policy of LeRobot, and its connection to the bridge."""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any

from vla_feature_bridge.deferred import DeferredCalls
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.lerobot_settings import LerobotSettings
from vla_feature_bridge.taps.methods import Listener, WrappedMethod
from vla_feature_bridge.taps.paths import find_number
from vla_feature_bridge.taps.preset import CALLER, Preset
from vla_feature_bridge.taps.presets import find_preset, load_preset, preset_names
from vla_feature_bridge.taps.tap import FeatureTap
from vla_feature_bridge.wire import StepSender
from vla_feature_bridge.wire.link import START_BRIDGE

_LOG = logging.getLogger('vla_feature_bridge.taps')
#: How often the tap checks whether a monitor listens [s].
_LOOK_AGAIN = 0.02
#: Settings of LeRobot policies with the number of actions that are executed before the next
#: inference.
_HORIZONS: tuple[int | str, ...] = (
    'config.n_action_steps',
    'config.action_chunk_size',
    'config.chunk_size',
    'config.horizon',
)


class LerobotSink:
    """Sends the steps of a policy of LeRobot with its present ``exec_horizon`` and task.

    A program can start real-time chunking after it loaded the policy. Therefore ``exec_horizon`` is
    read at each step. With real-time chunking, ``exec_horizon`` is the nominal
    ``execution_horizon``, because the true number depends on the latency and is not known yet.

    Parameters
    ----------
    sender : StepSender
    policy : PreTrainedPolicy
    settings : LerobotSettings
    """

    def __init__(self, sender: StepSender, policy: Any, settings: LerobotSettings) -> None:
        self.sender = sender
        self._policy = weakref.ref(policy)
        self._settings = settings

    @property
    def deferred(self) -> DeferredCalls:
        """Calls that the thread of the sender makes later."""
        return self.sender.deferred

    @property
    def last_error(self) -> str:
        """Text of the last problem."""
        return self.sender.last_error

    @last_error.setter
    def last_error(self, text: str) -> None:
        self.sender.last_error = text

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Begin an episode and return its id."""
        return self.sender.start(
            task=self._settings.task or task, instruction=instruction, episode_id=episode_id
        )

    def publish(
        self, features: Any, actions: Any = None, *, stamp: Any = None, **fields: Any
    ) -> PolicyStep | None:
        """Send the next step and return it, or None if it was refused or lost."""
        if self._settings.exec_horizon is None:
            config = getattr(self._policy(), 'config', None)
            rtc = getattr(config, 'rtc_config', None)
            if rtc is not None and getattr(rtc, 'enabled', False):
                fields = {'exec_horizon': rtc.execution_horizon, **fields}
        return self.sender.publish(features, actions, stamp=stamp, **fields)

    def skip(self, reason: str) -> None:
        """Leave out the step of an inference, so that the reader notices the gap."""
        self.sender.skip(reason)

    def lose(self, count: int, reason: str) -> None:
        """Leave out steps that are lost on this side."""
        self.sender.lose(count, reason)

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode."""
        self.sender.end(success, reason)

    def close(self) -> None:
        """Send the waiting steps, and close the connection."""
        self.sender.close()


class PolicyTap:
    """The tap of one policy of LeRobot, and its connection to the bridge.

    Attributes
    ----------
    tap : FeatureTap
    sink : LerobotSink

    Raises
    ------
    SafeError
        The preset does not fit the policy, or a setting is wrong. The policy is unchanged.
    """

    def __init__(self, policy: Any, settings: LerobotSettings) -> None:
        preset = _preset_of(policy, settings)
        horizon = settings.exec_horizon or find_number(
            policy, [source for source in preset.exec_horizon if source != CALLER]
        )
        if horizon is None:
            raise TapError(
                where=f'policy of class {type(policy).__name__}',
                expected='config.n_action_steps',
                found='none',
                advice='set SAFE_EXEC_HORIZON to the number of actions that are executed before '
                'the next inference',
            )
        sender = StepSender(
            settings.address,
            source=settings.source,
            feature_name=str(preset.spec),
            exec_horizon=horizon,
            policy=preset.policy,
            action_space=preset.action_space,
            wait_for_monitor=0.0,
        )
        self.sink = LerobotSink(sender, policy, settings)
        try:
            self.tap = FeatureTap(policy, preset, sink=self.sink, episodes='reset')
        except BaseException:
            sender.close(0.0)
            raise
        limit = 1 + (find_number(policy, _HORIZONS[1:]) or horizon)
        watch = _Watch(type(policy).__name__, self.tap, limit)
        self._select = WrappedMethod(policy, 'select_action', watch)
        _LOG.info(
            'tap of %s: preset %s, features %s, exec_horizon %d, to %s',
            type(policy).__name__,
            preset.name,
            sender.feature_name,
            horizon,
            settings.address,
        )
        _wait(sender, settings)

    def close(self, reason: str) -> None:
        """End the running episode, remove the tap, and close the connection."""
        if self.sink.sender.episode_id:
            self.tap.end(None, reason)
        self._select.restore()
        self.tap.detach()
        self.sink.close()


class _Watch(Listener):
    """Warns once if a policy returns actions, but the tap notices no inference."""

    def __init__(self, name: str, tap: FeatureTap, limit: int) -> None:
        self._name, self._tap, self._limit = name, tap, limit
        self._actions, self._seen, self._said = 0, 0, False

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._tap.inferences != self._seen:
            self._actions, self._seen = 0, self._tap.inferences
        self._actions += 1
        if self._actions > self._limit and not self._said:
            self._said = True
            _LOG.warning(
                'tap of %s: %d actions were selected, but no inference was seen, and no step is '
                'sent; select_action does not use the method that the preset names (ends): write '
                'a preset of your own, and set SAFE_PRESET to its file',
                self._name,
                self._actions - 1,
            )


def _preset_of(policy: Any, settings: LerobotSettings) -> Preset:
    """Return the preset of the settings; the black box if no preset fits and none was named."""
    name = settings.preset
    if name not in ('auto', 'black_box'):
        if name not in preset_names() and not name.endswith(('.yaml', '.yml')):
            raise TapError(
                where='variable SAFE_PRESET of the environment',
                expected=f'auto, the path of a .yaml file, or one of {", ".join(preset_names())}',
                found=repr(name),
                advice='python -m vla_feature_bridge.taps list shows the presets',
            )
        return load_preset(name)
    if name == 'auto':
        try:
            return find_preset(policy)
        except TapError:
            _LOG.warning(
                'no preset for %s: it is a black box, of which only actions and times are sent',
                type(policy).__name__,
            )
    return load_preset('black_box').with_changes(
        policy=str(policy.name),
        action_space='normalized',
        instruction='task',
        reset='reset',
        exec_horizon=list(_HORIZONS),
    )


def _wait(sender: StepSender, settings: LerobotSettings) -> None:
    """Wait until a monitor listens, before the robot moves; warn if no monitor listens."""
    deadline = time.monotonic() + settings.wait
    while settings.wait and not sender.monitor_listens:
        if time.monotonic() >= deadline:
            _LOG.warning(
                '%s: %s after %g s (SAFE_WAIT); the policy goes on without a monitor. Start the '
                'bridge (%s) and a monitor, or set SAFE_TAP=0',
                settings.address,
                'no monitor listens' if sender.state == 'connected' else 'no bridge answers',
                settings.wait,
                START_BRIDGE,
            )
            return
        time.sleep(_LOOK_AGAIN)
