# SPDX-License-Identifier: Apache-2.0
"""Copies the hidden states of each inference of openpi's JAX policies (pi0, pi0.5, pi0-FAST).

::

    from vla_feature_bridge.taps.openpi_jax import OpenpiJaxTap

    policy = policy_config.create_trained_policy(config, checkpoint)
    tap = OpenpiJaxTap(policy, exec_horizon=5, sink='auto')

The tap needs JAX and Flax, as openpi does. It needs no PyTorch and no change of openpi.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vla_feature_bridge.episode_steps import StepSink
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.taps.episodes import Episodes
from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.openpi_modules import tapped_head, tapped_language_model

_LOG = logging.getLogger('vla_feature_bridge.taps')
#: Default number of denoising steps of openpi's ``sample_actions``.
_DENOISING_STEPS = 10
#: The token at which pi0-FAST stops decoding.
_END_OF_SEQUENCE = 1
_FLOW_POOLING = (('horizon', 'mean'), ('denoise', 'mean'))
_TOKEN_POOLING = (('token', 'mean'),)


class OpenpiJaxTap:
    """Copies the hidden states of each inference of an openpi policy in JAX.

    A module that forwards all calls replaces ``model.action_out_proj`` (pi0, pi0.5) or
    ``model.PaliGemma.llm`` (pi0-FAST). ``Policy`` freezes and compiles the model in its
    constructor. Therefore the tap makes ``policy._sample_actions`` again, and the next inference
    compiles again.

    Actions do not change. After construction, the tap never raises into the policy: see ``problem``
    of an inference, and :attr:`problems`.

    Parameters
    ----------
    policy : openpi.policies.policy.Policy
        Or an object that holds it as ``_policy``, such as ``PolicyRecorder``.
    exec_horizon : int
        Number of actions that the robot executes before the next inference.
    sink : StepSink or str, optional
        Where each inference is published: a sink, or the address of the bridge; ``'auto'`` for its
        default address.
    episodes : 'caller' or 'instruction'
        Who starts the episodes of the sink: the caller by :meth:`start` and :meth:`end`, or each
        change of the prompt.
    pooling : sequence of (axis, command) pairs, optional
        Default: the mean over all axes. ``()`` keeps the raw tensor.
    module_jit : callable, optional
        Compiles the method of a model; default: ``openpi.shared.nnx_utils.module_jit``.

    Attributes
    ----------
    last : Inference or None
        The newest inference.
    problems : collections.Counter
        How often each kind of problem occurred.

    Raises
    ------
    TapError
        The policy is not an openpi policy in JAX, or an option is wrong. The policy is unchanged.
    """

    def __init__(
        self,
        policy: Any,
        *,
        exec_horizon: int,
        sink: StepSink | str | None = None,
        episodes: str = 'caller',
        pooling: tuple[tuple[str, str], ...] | None = None,
        module_jit: Callable[[Any], Any] | None = None,
    ) -> None:
        if episodes not in ('caller', 'instruction'):
            raise TapError(
                where='episodes', expected="'caller' or 'instruction'", found=repr(episodes)
            )
        self._policy = _policy_of(policy)
        self._model = self._policy._model
        self._is_fast = not hasattr(self._model, 'action_out_proj')
        self._spec = _spec_of(self._is_fast, pooling)
        self._by_instruction, self._instruction = episodes == 'instruction', ''
        self._jit = module_jit or _openpi_jit()
        self.last: Inference | None = None
        self.problems: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._states: list[np.ndarray] = []
        self._tokens: int | None = None
        self._running = 0
        self._owns_sink = isinstance(sink, str)
        self.sink = self._sender(sink, exec_horizon) if isinstance(sink, str) else sink
        self._episodes = Episodes(self.sink, False, self._count)
        self._attach()

    @property
    def feature_name(self) -> str:
        """Name of the feature and its pooling, by which a detector knows it."""
        return str(self._spec)

    @property
    def policy_name(self) -> str:
        """Name of the policy in the steps that are sent."""
        if self._is_fast:
            return 'pi0_fast'
        return 'pi05' if getattr(self._model, 'pi05', False) else 'pi0'

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Start an episode of the sink and return its id."""
        return self._episodes.start(task=task, instruction=instruction, episode_id=episode_id)

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode of the sink."""
        self._episodes.end(success, reason)

    def detach(self) -> None:
        """Restore the policy. Close the sink if the tap made the sink."""
        if vars(self._policy).get('infer') is self._infer:
            del self._policy.infer
        owner, name = self._place()
        if getattr(owner, name) is self._module:
            setattr(owner, name, self._inner)
        self._policy._sample_actions = self._original_sample
        if self._owns_sink and self.sink is not None:
            self.sink.close()

    def _sender(self, address: str, exec_horizon: int) -> StepSink:
        from vla_feature_bridge.wire import StepSender

        return StepSender(
            address,
            feature_name=self.feature_name,
            exec_horizon=exec_horizon,
            policy=self.policy_name,
            action_space='robot',
        )

    def _place(self) -> tuple[Any, str]:
        return (self._model.PaliGemma, 'llm') if self._is_fast else (self._model, 'action_out_proj')

    def _attach(self) -> None:
        owner, name = self._place()
        self._inner = getattr(owner, name)
        make = tapped_language_model if self._is_fast else tapped_head
        self._module = make(self._inner, self._note)
        setattr(owner, name, self._module)
        self._original_sample = self._policy._sample_actions
        try:
            compiled = self._jit(self._model.sample_actions)
        except BaseException:
            setattr(owner, name, self._inner)
            raise
        self._policy._sample_actions = self._counting(compiled) if self._is_fast else compiled
        self._original_infer = self._policy.infer
        self._infer = self._wrapped_infer
        self._policy.infer = self._infer

    # -- what the policy calls

    def _note(self, state: Any) -> None:
        """Keep a copy of the state of one call; called by JAX in a thread of its own."""
        try:
            array = np.array(state)
            with self._lock:
                self._states.append(array)
        except Exception as error:
            self._report('internal', f'the tap failed: {type(error).__name__}: {error}')

    def _counting(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def sample_actions(*args: Any, **kwargs: Any) -> Any:
            tokens = compiled(*args, **kwargs)
            try:
                self._tokens = _token_count(np.asarray(tokens))
            except Exception as error:
                self._report('internal', f'the tap failed: {type(error).__name__}: {error}')
            return tokens

        return sample_actions

    def _wrapped_infer(self, obs: Any, *args: Any, **kwargs: Any) -> Any:
        stamp, began = time.time_ns(), time.perf_counter()
        self._begin(obs)
        try:
            result = self._original_infer(obs, *args, **kwargs)
        except BaseException:
            with self._lock:
                self._running -= 1
            self._report('raised', 'an inference raised an exception, and is not sent')
            raise
        seconds = time.perf_counter() - began
        try:
            self._finish(obs, result, stamp, seconds)
        except Exception as error:
            self._report('internal', f'the tap failed: {type(error).__name__}: {error}')
            self._episodes.publish(Inference(problem=f'the tap failed: {error}'), True)
        return result

    def _begin(self, obs: Any) -> None:
        with self._lock:
            self._running += 1
            self._states, self._tokens = [], None
        instruction = _instruction_of(obs)
        if self._by_instruction and (not self.last or instruction != self._instruction):
            self._instruction = instruction
            self.start(task=instruction, instruction=instruction)

    def _finish(self, obs: Any, result: Any, stamp: int, seconds: float) -> None:
        import jax

        jax.effects_barrier()
        with self._lock:
            others = self._running - 1
            self._running -= 1
            states, self._states = self._states, []
        problem, raw = '', None
        expected = self._expected_calls()
        if others:
            problem = self._report(
                'concurrent', 'two inferences ran at the same time in one policy'
            )
        elif not states:
            problem = self._report('no_calls', self._why_no_calls())
        elif expected != len(states):
            problem = self._report(
                'wrong_calls',
                f'expected {expected} calls in one inference, found {len(states)}; this tap is '
                'for another version or other settings of openpi',
            )
        elif len(states[0]) != 1:
            problem = self._report('batch', f'expected a batch of 1, found {len(states[0])}')
        else:
            raw = self._raw(states)
        actions = self._actions(result)
        self.last = Inference(
            features=None if raw is None else np.array(self._spec.apply(raw)),
            feature_name=self.feature_name,
            actions=actions,
            calls=len(states),
            expected_calls=expected,
            shape=() if raw is None else raw.shape,
            dtype=str(states[0].dtype) if states else '',
            instruction=_instruction_of(obs),
            inference_time=seconds,
            stamp=stamp,
            thread=threading.current_thread().name,
            problem=problem,
        )
        self._episodes.publish(self.last, True)

    def _expected_calls(self) -> int | None:
        if self._is_fast:
            return None if self._tokens is None else self._tokens + 1
        return int(self._policy._sample_kwargs.get('num_steps', _DENOISING_STEPS))

    def _raw(self, states: list[np.ndarray]) -> np.ndarray:
        # pi0-FAST calls once more after its last token.
        kept = states[:-1] if self._is_fast else states
        return np.stack([state[0] for state in kept]).astype(np.float32)

    def _actions(self, result: Any) -> np.ndarray | None:
        value = result.get('actions') if isinstance(result, Mapping) else None
        array = np.asarray(value)
        if array.ndim != 2 or array.dtype.kind not in 'fiu':
            self._report(
                'actions', f'infer: expected actions [horizon, action], found {array.shape}'
            )
            return None
        return np.array(array[None])

    def _why_no_calls(self) -> str:
        name = 'PaliGemma.llm' if self._is_fast else 'action_out_proj'
        return (
            f'{name} was not called: the policy infers with a function that was compiled before '
            'the tap was attached; attach the tap to the Policy that infers, and let nothing keep '
            'its _sample_actions of before'
        )

    def _report(self, kind: str, text: str) -> str:
        """Count a problem, log the first of each kind, and return the text."""
        self._count(kind, text)
        return text

    def _count(self, kind: str, text: str) -> None:
        with self._lock:
            self.problems[kind] += 1
            first = self.problems[kind] == 1
        if first:
            _LOG.warning('tap of openpi: %s (further ones are only counted)', text)


def _policy_of(policy: Any) -> Any:
    """Return the Policy itself; raises TapError if there is none in JAX."""
    for _ in range(5):
        if hasattr(policy, '_model') and hasattr(policy, '_sample_actions'):
            break
        policy = getattr(policy, '_policy', None)
    model = getattr(policy, '_model', None)
    if getattr(policy, '_is_pytorch_model', False):
        raise TapError(
            where='policy of openpi',
            expected='a model of JAX',
            found='a model of PyTorch',
            advice="FeatureTap(policy, 'openpi_pi0') taps it",
        )
    if not (hasattr(model, 'action_out_proj') or hasattr(getattr(model, 'PaliGemma', 0), 'llm')):
        raise TapError(
            where='policy of openpi',
            expected='a Policy that has _model and _sample_actions, and whose model is pi0, pi0.5 '
            'or pi0-FAST',
            found=f'a model of class {type(model).__name__}',
            advice='give the object that create_trained_policy returns',
        )
    return policy


def _openpi_jit() -> Callable[[Any], Any]:
    try:
        from openpi.shared import nnx_utils
    except ImportError as error:
        raise TapError(
            where='openpi_jax',
            expected='the package openpi',
            found=str(error),
            advice='run it in the environment of openpi, or give module_jit',
        ) from error
    jit: Callable[[Any], Any] = nnx_utils.module_jit
    return jit


def _spec_of(is_fast: bool, pooling: tuple[tuple[str, str], ...] | None) -> FeatureSpec:
    if is_fast:
        return FeatureSpec(
            'pre_logits', 0, ('token',), _TOKEN_POOLING if pooling is None else pooling
        )
    return FeatureSpec(
        'pre_velocity', 0, ('denoise', 'horizon'), _FLOW_POOLING if pooling is None else pooling
    )


def _token_count(tokens: np.ndarray) -> int:
    """Return how many tokens were generated: up to the end of the sequence, or all."""
    ends = np.flatnonzero(np.any(tokens == _END_OF_SEQUENCE, axis=0))
    return int(ends[0]) + 1 if len(ends) else int(tokens.shape[-1])


def _instruction_of(obs: Any) -> str:
    value = obs.get('prompt') if isinstance(obs, Mapping) else None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, str) else ''
