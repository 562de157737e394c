# SPDX-License-Identifier: Apache-2.0
"""Hands inferences from the thread of the policy to the thread that reads and publishes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from vla_feature_bridge.deferred import Deferred, DeferredCalls, OwnedLock, deferred_of
from vla_feature_bridge.episode_steps import StepSink
from vla_feature_bridge.taps.capture import Running
from vla_feature_bridge.taps.episodes import Episodes
from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.preset import Preset

_LOG = logging.getLogger('vla_feature_bridge.taps')
_TOO_FAST = 'inferences come faster than their thread can work on them; the oldest is dropped'


class Handover:
    """Owns the results of a tap; the ``Owner`` of its recorder.

    The work is done in the thread of the sink, if it has ``deferred`` calls. Otherwise, without a
    sink, in a thread of its own. Another sink is called before the inference returns.

    Parameters
    ----------
    preset : Preset
    sink : StepSink or None
    automatic : bool
        As for :class:`Episodes`.

    Attributes
    ----------
    episodes : Episodes
    callbacks : list of callable
        Functions that take each inference, in the thread of the policy.
    inferences : int
        Number of inferences that have ended.
    """

    def __init__(self, preset: Preset, sink: StepSink | None, automatic: bool) -> None:
        self._preset = preset
        self.episodes = Episodes(sink, automatic, self.report)
        self.callbacks: list[Callable[[Inference], Any]] = []
        self.inferences = 0
        self._last: Inference | None = None
        self._problems: Counter[str] = Counter()
        self._lock = OwnedLock()
        deferred = deferred_of(sink)
        self._at_once = sink is not None and deferred is None
        # A sink may ask the tap, for example for its problems.
        self._calls = deferred or DeferredCalls('safe_tap', holds=lambda: self.episodes.is_asking)

    @property
    def last(self) -> Inference | None:
        """The newest inference."""
        self._calls.settle()
        return self._last

    @last.setter
    def last(self, inference: Inference | None) -> None:
        self._calls.settle()
        self._last = inference

    @property
    def problems(self) -> Counter[str]:
        """How often each kind of problem occurred."""
        self._calls.settle()
        return self._problems

    def settle(self) -> None:
        """Finish the work on all inferences that have ended."""
        self._calls.settle()

    def begins(self, instruction: str) -> None:
        """Start an episode if one is due."""
        self.episodes.before_step(instruction)

    def hand_over(self, call: Deferred, running: Running) -> None:
        """Make a call that reads an inference: later, or now if somebody waits for it."""
        with self._lock:
            self.inferences += 1
        can_wait = running.stacks.may_wait
        self._calls.put(call, now=bool(self.callbacks) or self._at_once or not can_wait)
        for callback in self.callbacks:
            try:
                if running.inference is not None:
                    callback(running.inference)
            except Exception as error:
                self.report('callback', f'a callback failed: {type(error).__name__}: {error}')

    def ended(self, inference: Inference) -> None:
        """Publish an inference that was read."""
        self._last = inference
        self.episodes.publish(inference, bool(self._preset.module))

    def dropped(self, count: int) -> None:
        """Count inferences that waited too long."""
        for _ in range(count):
            self.report('dropped', _TOO_FAST)
        self.episodes.lose(count, _TOO_FAST)

    def report(self, kind: str, text: str) -> None:
        """Count a problem, and log the first of each kind."""
        with self._lock:
            self._problems[kind] += 1
            first = self._problems[kind] == 1
        if first:
            _LOG.warning('tap %s: %s (further ones are only counted)', self._preset.name, text)
