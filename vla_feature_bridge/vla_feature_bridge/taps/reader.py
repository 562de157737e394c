# SPDX-License-Identifier: Apache-2.0
"""Makes an :class:`Inference` from the captured data, and reports its problems."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_feature_bridge.taps.capture import Running
from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.paths import compiled_parts, find_number
from vla_feature_bridge.taps.preset import COUNTED, Preset
from vla_feature_bridge.taps.results import (
    ResultError,
    actions_of,
    token_ids_of,
    tokens_until_end,
)
from vla_feature_bridge.tokens import TokenError, token_statistics

#: Problems that make the features of an inference wrong.
_NO_FEATURES = {'no_calls', 'wrong_calls', 'batch', 'shape', 'dtype'}


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

    def read(self, running: Running, result: Any, seconds: float) -> Inference:
        """Return the inference that has ended; its problems are noted in ``running``.

        Parameters
        ----------
        running : Running
            What was captured.
        result : object
            What the method of the inference returned.
        seconds : float
            Duration of the inference.
        """
        actions = self._actions(running, result)
        raw = features = probability = entropy = expected = None
        if self._preset.module:
            expected, kept = self._counted(running, result, actions)
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
            expected_calls=expected,
            shape=() if raw is None else raw.shape,
            dtype=running.states.dtype,
            instruction=running.instruction,
            inference_time=seconds,
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

    def _actions(self, running: Running, result: Any) -> np.ndarray | None:
        try:
            return actions_of(self._preset, result)
        except ResultError as error:
            running.note('actions', f'{self._preset.ends}: {error}')
            return None

    def _counted(
        self, running: Running, result: Any, actions: np.ndarray | None
    ) -> tuple[int | None, int]:
        """Return the expected number of calls, and how many of them belong to the action.

        Notes a problem if there were other calls.
        """
        preset, calls = self._preset, running.calls
        if not calls:
            running.note('no_calls', self._why_no_calls())
        ids = kept = None
        if preset.token_ids:
            try:
                ids = self._token_ids(running, result)
                kept = tokens_until_end(self._policy, preset, ids)
            except ResultError as error:
                running.note('wrong_calls', f'generated tokens: {error}')
                return None, 0
        if 'tokens' in preset.calls:
            assert ids is not None and kept is not None
            # Decoding stops after the end token, or goes on to the limit.
            expected: int | None = kept if calls == kept else len(ids)
        elif 'actions' in preset.calls:
            expected = None if actions is None else actions.shape[-1]
        else:
            expected = self.expected_calls()
        if expected is None:
            running.note('wrong_calls', f'{preset.module}: {self._unknown_calls()}')
        elif calls != expected and calls:
            running.note(
                'wrong_calls',
                f'{preset.module}: expected {expected} calls in one inference, found {calls}; '
                'the preset is for another version or another setting of the policy',
            )
        return expected, min(calls, calls if kept is None else kept)

    def _token_ids(self, running: Running, result: Any) -> np.ndarray:
        if self._preset.token_ids == ('returned',):
            return token_ids_of(result, running.prompt)
        if running.token_ids is None:
            raise ResultError(f'expected a call of {" or ".join(self._preset.token_ids)}')
        return token_ids_of(running.token_ids, 0)

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
        # A pooled array must not stay a view of the memory that the next inference will use.
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
        try:
            return token_statistics(running.logits.array(kept))
        except TokenError as error:
            running.note('tokens', f'{self._preset.module}: {error}')
            return None, None
