# SPDX-License-Identifier: Apache-2.0
"""Attaches hooks to a policy, and records begin, calls and end of each inference by thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from vla_feature_bridge.deferred import Deferred
from vla_feature_bridge.taps.capture import CallHook, Running, keep_logits, keep_state
from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.methods import Listener, WrappedMethod
from vla_feature_bridge.taps.paths import find_module, find_number, find_value
from vla_feature_bridge.taps.preset import AFTER_CALLS, RETURNED, Preset
from vla_feature_bridge.taps.reader import Reader, Taken
from vla_feature_bridge.taps.results import (
    ResultError,
    instruction_of,
    kept_vocabulary,
    prompt_length,
)
from vla_feature_bridge.taps.stack import Stacks


class Owner(Protocol):
    """Receives the inferences and the problems of a recorder."""

    def report(self, kind: str, text: str) -> None:
        """Take the kind and the text of a problem."""

    def begins(self, instruction: str) -> None:
        """Take the instruction of an inference that begins; in the thread of the policy."""

    def hand_over(self, call: Deferred, running: Running) -> None:
        """Make a call later that reads an inference; in the thread of the policy."""

    def ended(self, inference: Inference) -> None:
        """Take an inference that has ended; inside the call that was handed over."""

    def dropped(self, count: int) -> None:
        """Take the number of inferences whose calls were dropped, in their place."""


class Recorder:
    """Records every inference of a policy. After construction it never raises into the policy.

    Parameters
    ----------
    policy : object
    preset : Preset
    clock : callable
        Returns the time [ns].
    owner : Owner

    Raises
    ------
    TapError
        The preset does not fit the policy, which is unchanged.
    """

    def __init__(
        self,
        policy: Any,
        preset: Preset,
        *,
        clock: Callable[[], int],
        owner: Owner,
    ) -> None:
        self._policy, self._preset = policy, preset
        self._clock, self._owner, self._report = clock, owner, owner.report
        self._reader = Reader(policy, preset)
        self._by_thread: dict[int, Running] = {}
        self._closed = False
        self._hooks: list[Any] = []
        self._methods: list[WrappedMethod] = []
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        preset = self._preset
        self._horizon = find_number(self._policy, preset.action_horizon)
        if preset.action_horizon and self._horizon is None:
            raise TapError(
                where=f'preset {preset.name}: action_horizon',
                expected='a number',
                found=f'none at {", ".join(map(str, preset.action_horizon))}',
            )
        if preset.has and find_value(self._policy, preset.has) is None:
            raise TapError(
                where=f'preset {preset.name}',
                expected=f'{preset.title or "a policy"}, which has {preset.has}',
                found=f'an object of class {type(self._policy).__name__} without it',
                advice='use the preset of this policy',
            )
        if preset.module:
            module = find_module(self._policy, preset.module)
            hook = CallHook(self._on_input)
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if preset.token_logits:
                self._vocabulary = self._find_vocabulary()
                self._hooks.append(module.register_forward_hook(CallHook(self._on_output)))
        if preset.ends != AFTER_CALLS:
            self.listen(preset.ends, _Inferences(self))
        for path in preset.token_ids:
            if path != RETURNED:
                self.listen(path, _Tokens(self))

    def _find_vocabulary(self) -> slice:
        try:
            return kept_vocabulary(self._policy, self._preset)
        except ResultError as error:
            raise TapError(f'preset {self._preset.name}: vocabulary: {error}') from None

    def listen(self, path: str, listener: Listener) -> None:
        """Wrap a method of the policy until :meth:`detach`; raises TapError if there is none."""
        self._methods.append(WrappedMethod(self._policy, path, listener))

    def detach(self) -> None:
        """Restore the policy."""
        self._closed = True
        while self._hooks:
            self._hooks.pop().remove()
        while self._methods:
            method = self._methods.pop()
            if not method.restore():
                self._report(
                    'replaced',
                    f'{method.path} was replaced after the tap was attached; the tap is detached, '
                    'but what replaced it may still call it',
                )

    @property
    def unfinished(self) -> int:
        """Calls of the submodule in inferences that have not ended."""
        return sum(running.calls for running in list(self._by_thread.values()))

    def drop_unfinished(self, why: str) -> None:
        """Discard the unfinished inferences.

        An unfinished inference ends only with its last call, and this call will not come.
        """
        if self._preset.ends != AFTER_CALLS:
            return
        dropped, self._by_thread = self._by_thread, {}
        for running in dropped.values():
            self._report(
                'unfinished',
                f'{why}: an inference had only {running.calls} calls of {self._preset.module}, and '
                'is not sent; name the method that makes one inference (ends=...)',
            )

    def guarded(self, function: Callable[[], Any]) -> Any:
        """Call a function of the tap; an exception is reported, and None returned."""
        try:
            return function()
        except Exception as error:
            self._report_defect(error)
            return None

    def _report_defect(self, error: Exception) -> None:
        self._report('internal', f'the tap failed: {type(error).__name__}: {error}')

    # -- what the policy calls

    def _on_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:  # Not guarded(): this runs at each call, and each function costs time.
            self._input(args, kwargs)
        except Exception as error:
            self._report_defect(error)

    def _input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running = self._by_thread.get(threading.get_ident())
        by_calls = self._preset.ends == AFTER_CALLS
        if running is None and by_calls and not self._closed:
            running = self.begin((), {})
        if running is None:
            return
        keep_state(running, self._preset, self._horizon, (args, kwargs))
        if by_calls and not self._preset.token_logits:
            self._finish_if_complete(running)

    def _on_output(self, args: Any, output: Any) -> None:
        self.guarded(lambda: self._output(output))

    def _output(self, output: Any) -> None:
        running = self._by_thread.get(threading.get_ident())
        if running is None:
            return
        keep_logits(running, self._vocabulary, output)
        if self._preset.ends == AFTER_CALLS:
            self._finish_if_complete(running)

    def _finish_if_complete(self, running: Running) -> None:
        expected = self._reader.expected_calls()
        if expected is None or running.calls >= expected:
            self.finish(running, None)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Running | None:
        """Begin an inference in this thread, or enter a nested call of the running inference."""
        if self._closed:
            return None
        running = self._by_thread.get(threading.get_ident())
        if running is not None:
            running.depth += 1
            return running
        running = Running(int(self._clock()), Stacks())
        running.instruction = instruction_of(self._preset, args, kwargs)
        if RETURNED in self._preset.token_ids:
            running.prompt = prompt_length(args, kwargs)
        self._owner.begins(running.instruction)
        self._by_thread[threading.get_ident()] = running
        return running

    def finish(self, running: Running, result: Any) -> None:
        """End an inference of this thread: take what it returned, and leave the rest for later."""
        running.depth -= 1
        if running.depth > 0:
            return
        self._by_thread.pop(threading.get_ident(), None)
        if self._closed:
            return
        seconds = time.perf_counter() - running.began
        try:
            taken = self._reader.take(running, result, seconds)
        except Exception as error:  # The step must not be missing without a notice.
            running.note('internal', f'the tap failed: {type(error).__name__}: {error}')
            taken = None
        self._report_new(running, 0)
        read = partial(self._read, running, taken, seconds)
        size = running.stacks.size
        self._owner.hand_over(Deferred(read, self._owner.dropped, self._report, size), running)

    def _read(self, running: Running, taken: Taken | None, seconds: float) -> None:
        """Read an inference that was taken, and hand it on."""
        known = len(running.problems)
        try:
            inference = (
                self._reader.failed(running, seconds) if taken is None else self._reader.read(taken)
            )
        except Exception as error:  # The step must not be missing without a notice.
            running.note('internal', f'the tap failed: {type(error).__name__}: {error}')
            inference = self._reader.failed(running, seconds)
        running.stacks = Stacks()  # frees the memory
        self._report_new(running, known)
        running.inference = inference
        self._owner.ended(inference)

    def _report_new(self, running: Running, known: int) -> None:
        for kind, text in list(running.problems.items())[known:]:
            self._report(kind, text)

    def fail(self, running: Running) -> None:
        """Forget an inference of this thread that raised an exception."""
        running.depth -= 1
        if running.depth <= 0:
            self._by_thread.pop(threading.get_ident(), None)
            self._report('raised', 'an inference raised an exception, and is not sent')

    def note_tokens(self, result: Any) -> None:
        """Keep the tokens that a method returned for the inference of this thread."""
        running = self._by_thread.get(threading.get_ident())
        if running is not None:
            running.token_ids = result


class _Inferences(Listener):
    """Listens to the method that makes one inference."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._recorder.guarded(lambda: self._recorder.begin(args, kwargs))

    def finish(self, mark: Any, result: Any) -> None:
        if mark is not None:
            self._recorder.guarded(lambda: self._recorder.finish(mark, result))

    def fail(self, mark: Any) -> None:
        if mark is not None:
            self._recorder.guarded(lambda: self._recorder.fail(mark))


class _Tokens(Listener):
    """Listens to a method that returns the generated tokens."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def finish(self, mark: Any, result: Any) -> None:
        self._recorder.guarded(lambda: self._recorder.note_tokens(result))
