# SPDX-License-Identifier: Apache-2.0
"""Publishes inferences through a sink, and starts and ends its episodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vla_feature_bridge.deferred import OwnedLock, deferred_of
from vla_feature_bridge.episode_steps import StepSink
from vla_feature_bridge.taps.inference import Inference


class Episodes:
    """Gives inferences, and the start and end of episodes, to a sink. Never raises an error.

    Parameters
    ----------
    sink : StepSink or None
    automatic : bool
        An episode starts at the first inference after :meth:`reset`, and ends at the next reset.
    report : callable
        Takes the kind and the text of a problem.
    """

    def __init__(
        self, sink: StepSink | None, automatic: bool, report: Callable[[str, str], None]
    ) -> None:
        self._sink, self._automatic, self._report = sink, automatic, report
        self._runs = False
        # Policies may be reset in one thread while they infer in another.
        self._lock = OwnedLock()
        # A sink with deferred calls has locks of its own. A thread that ends an episode waits for
        # these calls, which therefore must not wait for it.
        self._sending: AbstractContextManager[Any] = (
            nullcontext() if deferred_of(sink) is not None else self._lock
        )

    @property
    def is_asking(self) -> bool:
        """True if this thread is in a call of the sink that steps wait for."""
        return self._lock.is_mine

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Start an episode and return its id, or an empty text if that is not possible."""
        with self._lock:
            started = self._ask('start', task=task, instruction=instruction, episode_id=episode_id)
            self._runs = True
        return str(started or '')

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode."""
        with self._lock:
            self._ask('end', success, reason)
            self._runs = False

    def before_step(self, instruction: str) -> None:
        """Start an episode if no episode runs and episodes follow the resets of the policy."""
        with self._lock:
            if self._automatic and not self._runs:
                self.start(task=instruction, instruction=instruction)

    def reset(self) -> None:
        """End the running episode, because the policy was reset."""
        self._end_automatic('the policy was reset')

    def close(self) -> None:
        """End the running episode, unless the caller started it."""
        self._end_automatic('the tap was detached')

    def _end_automatic(self, reason: str) -> None:
        with self._lock:
            if self._automatic and self._runs:
                self.end(None, reason)

    def publish(self, inference: Inference, wanted: bool) -> None:
        """Publish one inference, or leave its step out if ``wanted`` features are missing.

        The number of a left-out step is not used again. Therefore the reader notices the gap.
        """
        with self._sending:
            if self._sink is None:
                return
            if wanted and inference.features is None:
                self._ask('skip', inference.problem)
                return
            fields: dict[str, Any] = {'inference_time': inference.inference_time}
            if inference.token_probability is not None:
                fields['token_probability'] = inference.token_probability
                fields['token_entropy'] = inference.token_entropy
            if inference.instruction:
                fields['instruction'] = inference.instruction
            self._ask(
                'publish', inference.features, inference.actions, stamp=inference.stamp, **fields
            )

    def lose(self, count: int, reason: str) -> None:
        """Leave out the steps of inferences that were dropped."""
        with self._sending:
            if deferred_of(self._sink) is not None:
                self._ask('lose', count, reason)

    def _ask(self, method: str, *values: Any, **named: Any) -> Any:
        if self._sink is None:
            self._report('no_sink', f'{method}() needs a sink; give the tap one (sink=...)')
            return None
        try:
            return getattr(self._sink, method)(*values, **named)
        except Exception as error:
            self._report('sink', f'{method} of the sink: {type(error).__name__}: {error}')
            return None
