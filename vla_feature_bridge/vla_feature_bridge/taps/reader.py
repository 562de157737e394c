# SPDX-License-Identifier: Apache-2.0
"""Makes an :class:`Inference` from the captured data, and reports its problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_feature_bridge.taps.capture import Running
from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.paths import compiled_parts, find_number
from vla_feature_bridge.taps.preset import COUNTED, Preset
from vla_feature_bridge.taps.results import (
    KeptActions,
    ResultError,
    actions_of,
    end_token_of,
    token_ids_of,
    tokens_until_end,
)
from vla_feature_bridge.taps.stack import TensorStack
from vla_feature_bridge.tokens import TokenError, token_statistics

#: Problems after which the features are not those of a correct inference.
_NO_FEATURES = {'no_calls', 'wrong_calls', 'batch', 'shape', 'dtype', 'graph'}


@dataclass(eq=False)
class Taken:
    """What was taken out of an inference that has ended, before it is read.

    Attributes
    ----------
    running : Running
        What was captured, and the problems up to now.
    seconds : float
        How long the inference took.
    actions : KeptActions or None
    token_ids : TensorStack or None
        The generated tokens.
    end_token : object
        The id that ends them; None for all.
    expected : int or None
        Expected number of calls.
    """

    running: Running
    seconds: float
    actions: KeptActions | None = None
    token_ids: TensorStack | None = None
    end_token: Any = None
    expected: int | None = None


class Reader:
    """Reads captured tensors, results and counts as described by a preset.

    Parameters
    ----------
    policy : object
    preset : Preset
    """

    def __init__(self, policy: Any, preset: Preset) -> None:
        self._policy, self._preset = policy, preset
        self._spec = preset.spec
        self._name = str(preset.spec)
        self._width: int | None = None

    def expected_calls(self) -> int | None:
        """Return how often the submodule is called; None if only the result shows the number."""
        return find_number(self._policy, [s for s in self._preset.calls if s not in COUNTED])

    def take(self, running: Running, result: Any, seconds: float) -> Taken:
        """Return what :meth:`read` needs of an inference; its problems are noted in ``running``.

        Called in the thread of the policy: it looks at the policy, copies results on their device,
        and computes nothing.

        Parameters
        ----------
        running : Running
            What was captured.
        result : object
            What the method of the inference returned.
        seconds : float
            Duration of the inference.
        """
        taken = Taken(running, seconds)
        try:
            taken.actions = actions_of(self._preset, result, running.stacks.keep)
        except ResultError as error:
            running.note('actions', f'{self._preset.ends}: {error}')
        if self._preset.module:
            self._take_calls(taken, result)
        return taken

    def read(self, taken: Taken) -> Inference:
        """Return the inference; further problems are noted in ``taken.running``.

        Called one after the other, in the order of the inferences, in any thread.
        """
        running = taken.running
        actions = None if taken.actions is None else taken.actions.array()
        raw = features = probability = entropy = None
        if self._preset.module:
            kept = self._kept_calls(taken)
            self._compare_kinds(running)
            if not _NO_FEATURES & set(running.problems):
                raw, features = self._features(running, kept)
                probability, entropy = self._statistics(running, kept)
        return Inference(
            features=features,
            feature_name=self._name,
            actions=actions,
            token_probability=probability,
            token_entropy=entropy,
            calls=running.calls,
            expected_calls=taken.expected,
            shape=() if raw is None else raw.shape,
            dtype=running.states.dtype,
            instruction=running.instruction,
            inference_time=taken.seconds,
            stamp=running.stamp,
            thread=running.thread,
            problem='; '.join(running.problems.values()),
        )

    def failed(self, running: Running, seconds: float) -> Inference:
        """Return an inference that could not be read."""
        return Inference(
            feature_name=self._name,
            calls=running.calls,
            instruction=running.instruction,
            inference_time=seconds,
            stamp=running.stamp,
            thread=running.thread,
            problem='; '.join(running.problems.values()),
        )

    def _take_calls(self, taken: Taken, result: Any) -> None:
        """Note a problem if there were other calls than expected, as far as it is known now."""
        preset, running = self._preset, taken.running
        if not running.calls:
            running.note('no_calls', self._why_no_calls())
        if preset.token_ids:
            try:
                taken.token_ids = self._token_ids(running, result)
                taken.end_token = end_token_of(self._policy, preset)
            except ResultError as error:
                running.note('wrong_calls', f'generated tokens: {error}')
                return
        if 'tokens' in preset.calls:
            return  # Their number is known on the host only.
        if 'actions' in preset.calls:
            taken.expected = None if taken.actions is None else taken.actions.action_dim
        else:
            taken.expected = self.expected_calls()
        self._compare_calls(taken)

    def _kept_calls(self, taken: Taken) -> int:
        """Return how many calls belong to the action.

        Notes a problem if only the tokens show that there were other calls.
        """
        calls = taken.running.calls
        if taken.token_ids is None:
            return calls
        ids = taken.token_ids.array(1)[0]
        kept = tokens_until_end(ids, taken.end_token)
        if 'tokens' in self._preset.calls:
            # Decoding stops after the end token, or goes on to the limit.
            taken.expected = kept if calls == kept else len(ids)
            self._compare_calls(taken)
        return min(calls, kept)

    def _compare_calls(self, taken: Taken) -> None:
        module, running, expected = self._preset.module, taken.running, taken.expected
        if expected is None:
            running.note('wrong_calls', f'{module}: {self._unknown_calls()}')
        elif running.calls not in (expected, 0):
            advice = (
                f'set calls={running.calls}'
                if self._preset.is_by_hand
                else 'the preset is for another version or another setting of the policy'
            )
            running.note(
                'wrong_calls',
                f'{module}: expected {expected} calls in one inference, found {running.calls}; '
                f'{advice}',
            )

    def _compare_kinds(self, running: Running) -> None:
        """Note a problem if the inputs of an inference are not alike."""
        if odd := running.states.odd():
            running.note(
                'shape',
                f'{self._preset.module}: expected inputs of one shape, dtype and device in an '
                f'inference, found another at call {odd[0]}: {odd[1]}',
            )

    def _token_ids(self, running: Running, result: Any) -> TensorStack:
        keep = running.stacks.keep
        if self._preset.token_ids == ('returned',):
            return token_ids_of(result, running.prompt, keep)
        if running.token_ids is None:
            raise ResultError(f'expected a call of {" or ".join(self._preset.token_ids)}')
        return token_ids_of(running.token_ids, 0, keep)

    def _unknown_calls(self) -> str:
        if 'actions' in self._preset.calls:
            return 'expected as many calls as action dimensions, which are not known'
        paths = ', '.join(map(str, self._preset.calls))
        return f'expected a number of calls at {paths}, found none; set `calls`'

    def _why_no_calls(self) -> str:
        preset = self._preset
        compiled = compiled_parts(self._policy)
        reason = f'{preset.module} was not called in this inference'
        if compiled:
            return (
                f'{reason}: {", ".join(compiled[:3])} is compiled by torch.compile, and was '
                'compiled before the tap was attached; attach the tap before the first inference, '
                'or call torch._dynamo.reset() once after attaching (the policy then compiles '
                'again)'
            )
        return (
            f'{reason}, or was called in another thread or by its forward(); attach the tap to '
            'the submodule that the policy calls, before anything is compiled'
        )

    def _features(self, running: Running, kept: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the raw and the wanted features; notes a problem if they have another shape."""
        raw = running.states.array(kept)[:, 0]
        raw = raw if self._preset.stacked else raw[0]
        if self._preset.keep == 'channels_first':
            raw = np.swapaxes(raw, -1, -2)
        # A pooled array must not be a view: it would keep the memory of the raw tensor.
        features = np.array(self._spec.apply(raw)) if self._spec.pooled else raw
        if self._width not in (None, features.shape[-1]):
            running.note(
                'shape',
                f'{self._preset.module}: expected a width of {self._width} as before, found '
                f'{features.shape[-1]}',
            )
            return raw, None
        self._width = features.shape[-1]
        return raw, features

    def _statistics(
        self, running: Running, kept: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return probability and entropy of the tokens; notes a problem."""
        if not self._preset.token_logits or 'tokens' in running.problems:
            return None, None
        if len(running.logits) < kept:
            running.note(
                'tokens',
                f'{self._preset.module}: expected {kept} logits, found {len(running.logits)}',
            )
            return None, None
        if odd := running.logits.odd():
            running.note(
                'tokens',
                f'{self._preset.module}: expected logits of one shape, found {odd[1]} at call '
                f'{odd[0]}',
            )
            return None, None
        try:
            return token_statistics(running.logits.array(kept))
        except TokenError as error:
            running.note('tokens', f'{self._preset.module}: {error}')
            return None, None
