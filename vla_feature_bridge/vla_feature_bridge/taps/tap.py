# SPDX-License-Identifier: Apache-2.0
"""Copies the hidden states, actions and token statistics of each inference of a policy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from vla_feature_bridge.episode_steps import StepSink
from vla_feature_bridge.taps.episodes import Episodes
from vla_feature_bridge.taps.errors import TapError, nearest
from vla_feature_bridge.taps.handover import Handover
from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.methods import Listener
from vla_feature_bridge.taps.paths import find_module, find_number
from vla_feature_bridge.taps.preset import CALLER, Preset
from vla_feature_bridge.taps.presets import find_preset, load_preset, preset_names
from vla_feature_bridge.taps.recorder import Recorder


class FeatureTap:
    """Copies the data of every inference that a detector reads, without changing the policy.

    ::

        tap = FeatureTap(policy, 'lerobot_pi0', sink='auto')
        tap.start(task='open_drawer')
        ...  # the policy runs as always, and each inference is sent
        tap.end(success=True)

    The thread of the policy only copies. Another thread, that of the sink or of the tap, pools the
    copies, checks the step and sends it. :attr:`last` and :attr:`problems`, a callback
    (:meth:`on_inference`), and a sink that has no ``deferred`` calls wait for this work.

    After construction, a tap never raises an error into the policy. It writes a problem to
    ``problem`` of the inference, counts the problem in :attr:`problems`, and logs the first problem
    of each kind. Features with a problem are never sent.

    Attach a tap before the first inference, because code that ``torch.compile`` has compiled never
    calls a hook that is added later.

    Parameters
    ----------
    policy : object
        A ``torch.nn.Module``, or an object that has one. It may be wrapped by PEFT.
    preset : str, Path or Preset
        Name of a preset (``python -m vla_feature_bridge.taps list``), path of a YAML file, path of
        a submodule of the policy whose input is the hidden state, such as ``'model.head'``, or
        ``'auto'``: the preset that names the class of the policy.
    sink : StepSink or str, optional
        Where each inference is published: a sink such as ``vla_feature_bridge.wire.StepSender``, or
        the address of the bridge, for which a sender is made: ``'unix:/path'``,
        ``'tcp://host:port'``, or ``'auto'`` for its default address. None: nowhere.
    episodes : 'caller' or 'reset'
        Who starts and ends the episodes of the sink: the caller by :meth:`start` and :meth:`end`,
        or the ``reset`` method of the policy. With 'reset', an episode starts at the first
        inference after a reset, and ends at the next reset.
    clock : callable
        Returns the time of a stamp [ns]; the wall clock by default.
    **changes
        Fields of the preset that differ: ``axes``, ``keep``, ``pooling``, ``calls``, ``ends``, ...
        With ``pooling='raw'`` the features are the raw tensor.

    Attributes
    ----------
    preset : Preset
    sink : StepSink or None

    Raises
    ------
    TapError
        The preset does not fit the policy, or an option is wrong. The policy is unchanged.
    """

    def __init__(
        self,
        policy: Any,
        preset: str | Path | Preset,
        /,
        *,
        sink: StepSink | str | None = None,
        episodes: str = 'caller',
        clock: Callable[[], int] = time.time_ns,
        **changes: Any,
    ) -> None:
        if episodes not in ('caller', 'reset'):
            raise TapError(where='episodes', expected="'caller' or 'reset'", found=repr(episodes))
        if episodes == 'reset' and sink is None:
            raise TapError(where="episodes='reset'", expected='a sink', found='none')
        self.preset = _preset_of(policy, preset, changes)
        self._policy, self._closed = policy, False
        self._owns_sink = isinstance(sink, str)
        self.sink = self._sender(sink) if isinstance(sink, str) else sink
        self._handover = Handover(self.preset, self.sink, episodes == 'reset')
        self._episodes = self._handover.episodes
        try:
            self._attach(clock, episodes)
        except BaseException:
            self._close_sink()
            raise

    def _sender(self, address: str) -> StepSink:
        from vla_feature_bridge.wire import StepSender

        return StepSender(address, **self.sink_options())

    def _close_sink(self) -> None:
        if self._owns_sink and self.sink is not None:
            self.sink.close()

    def _attach(self, clock: Callable[[], int], episodes: str) -> None:
        self._recorder = Recorder(
            self._policy,
            self.preset,
            clock=clock,
            owner=self._handover,
        )
        if episodes == 'reset':
            self._follow_resets()

    def _follow_resets(self) -> None:
        try:
            if not self.preset.reset:
                raise TapError(
                    where=f'preset {self.preset.name}',
                    expected="a reset method for episodes='reset'",
                    found='none',
                    advice="name it (reset='...'), or call start() and end() of the tap",
                )
            self._recorder.listen(self.preset.reset, _Resets(self._episodes))
        except TapError:
            self._recorder.detach()
            raise

    @property
    def last(self) -> Inference | None:
        """The newest inference; None before the first."""
        return self._handover.last

    @last.setter
    def last(self, inference: Inference | None) -> None:
        self._handover.last = inference

    @property
    def problems(self) -> Counter[str]:
        """How often each kind of problem occurred."""
        return self._handover.problems

    @property
    def inferences(self) -> int:
        """Number of inferences that have ended."""
        return self._handover.inferences

    @property
    def feature_name(self) -> str:
        """Name of the feature and its pooling, by which a detector knows it."""
        return str(self.preset.spec)

    @property
    def exec_horizon(self) -> int | None:
        """How many actions are executed before the next inference; None if the caller knows it."""
        return find_number(self._policy, [s for s in self.preset.exec_horizon if s != CALLER])

    def sink_options(self) -> dict[str, Any]:
        """Return the keywords that a ``StepSender`` or ``StepPublisher`` needs for this policy.

        Raises
        ------
        TapError
            Only the caller knows the ``exec_horizon``, and did not give it.
        """
        if self.exec_horizon is None:
            raise TapError(
                where=f'preset {self.preset.name}',
                expected='an exec_horizon from the caller',
                found='none',
                advice='say how many actions the robot executes before the next inference: '
                'FeatureTap(..., exec_horizon=8)',
            )
        return {
            'feature_name': self.feature_name,
            'exec_horizon': self.exec_horizon,
            'policy': self.preset.policy,
            'action_space': self.preset.action_space,
        }

    @property
    def unfinished(self) -> int:
        """Calls of the submodule in inferences that have not ended."""
        return self._recorder.unfinished

    def on_inference(self, callback: Callable[[Inference], Any]) -> Callable[[Inference], Any]:
        """Call a function with each :class:`Inference`, in the thread of the policy.

        This thread then does all the work of the tap. An exception of the function is counted and
        logged. Returns the function.
        """
        self._handover.callbacks.append(callback)
        return callback

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Start an episode with ``start`` of the sink and return the id of the episode."""
        if self._is_closed('start'):
            return ''
        self._recorder.drop_unfinished('start')
        return self._episodes.start(task=task, instruction=instruction, episode_id=episode_id)

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode of the sink, as its ``end`` does."""
        if not self._is_closed('end'):
            self._recorder.drop_unfinished('end')
            self._episodes.end(success, reason)

    def detach(self) -> None:
        """Remove the tap and restore the policy. Close the sink if the tap made the sink."""
        if self._closed:
            return
        self._closed = True
        self._recorder.detach()
        self._recorder.drop_unfinished('detach')
        self._handover.settle()
        self._episodes.close()
        self._close_sink()

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _is_closed(self, method: str) -> bool:
        if self._closed:
            self._handover.report(
                'closed', f'{method}() of a tap that was detached; nothing is sent'
            )
        return self._closed


class _Resets(Listener):
    """Listens to the reset of a policy."""

    def __init__(self, episodes: Episodes) -> None:
        self._episodes = episodes

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._episodes.reset()


def _preset_of(policy: Any, preset: str | Path | Preset, changes: dict[str, Any]) -> Preset:
    """Return the preset that a name, a file or the path of a submodule means, with changes."""
    if changes.get('pooling') == 'raw':
        changes = {**changes, 'pooling': ()}
    if isinstance(preset, str) and preset == 'auto':
        preset = find_preset(policy)
    if isinstance(preset, Preset):
        return preset.with_changes(**changes)
    if isinstance(preset, Path) or preset in preset_names() or preset.endswith(('.yaml', '.yml')):
        return load_preset(preset).with_changes(**changes)
    try:
        find_module(policy, preset)
    except TapError as error:
        names = preset_names()
        raise TapError(
            where=error.where,
            expected='the name of a preset, the path of a YAML file, or a submodule of the policy',
            found='none of them',
            advice=f'{error.advice}; presets: {nearest(preset, names) or ", ".join(names)}',
        ) from None
    return Preset.from_dict({'name': preset, 'module': preset, **changes}, f'tap of {preset}')
