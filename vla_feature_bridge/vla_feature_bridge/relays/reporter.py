# SPDX-License-Identifier: Apache-2.0
"""Makes steps for the bridge from the messages of a policy server; runs in the worker thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.relays.arrays import printable
from vla_feature_bridge.relays.episodes import EpisodeRules, Episodes
from vla_feature_bridge.relays.exchanges import Asked, Blocked, Closed, Exchange, Unwatched
from vla_feature_bridge.relays.policies import READERS
from vla_feature_bridge.relays.readings import (
    FEATURE_AXES,
    ErrorReply,
    Inference,
    Keys,
    ReadingError,
    Reset,
    pooled,
)
from vla_feature_bridge.relays.work_queue import Lost
from vla_feature_bridge.step import NO_FEATURE, PolicyStep

#: If clients open a connection for each request, another client is accepted after this time [s].
_OTHER_CLIENT_AFTER = 10.0
#: A problem of the same kind is printed again after this time [s].
_SAY_AGAIN = 10.0


class Sink(Protocol):
    """The methods of a ``StepSender`` that the reporter uses."""

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str: ...

    def publish(
        self, features: Any, actions: Any = None, *, stamp: Any = None, **fields: Any
    ) -> PolicyStep | None: ...

    def skip(self, reason: str) -> None: ...

    def end(self, success: bool | None = None, reason: str = '') -> None: ...

    def image(self, name: str, array: Any, stamp: Any = None) -> None: ...


@dataclass(frozen=True)
class Settings:
    """The settings of the steps from the command line.

    Attributes
    ----------
    policy : str
        ``'openpi'``, ``'groot'`` or ``'openvla'``.
    rules : EpisodeRules
    keys : Keys
    feature : FeatureSpec or None
        Features that every reply must contain; None uses the features of the first reply.
    feature_name : str
        Name of the features in the steps; empty is the name of the specification.
    """

    policy: str
    rules: EpisodeRules
    keys: Keys = field(default_factory=Keys)
    feature: FeatureSpec | None = None
    feature_name: str = ''


@dataclass
class Counts:
    """Counters since the start."""

    inferences: int = 0
    steps: int = 0
    images: int = 0
    errors: int = 0
    unreadable: int = 0
    lost: int = 0
    blocked: int = 0
    unwatched: int = 0
    of_others: int = 0


class Reporter:
    """Sends a step for each inference of one client at a time.

    Parameters
    ----------
    settings : Settings
    make_sink : callable
        Takes the name of the features, or ``'none'``, and returns the sink of the steps.
    say : callable
        Takes a line for people.
    """

    def __init__(
        self, settings: Settings, make_sink: Callable[[str], Sink], say: Callable[[str], None]
    ) -> None:
        self.counts = Counts()
        self.last_seconds = 0.0
        self._settings, self._make_sink, self._say = settings, make_sink, say
        self._read = READERS[settings.policy]
        self._said: dict[str, float] = {}
        self._client: object = None
        self._client_seen = 0.0
        self._sink: Sink | None = None
        self._episodes: Episodes | None = None
        self._spec = settings.feature
        if settings.feature is not None:
            self._open(settings.feature)

    def handle(self, item: object) -> None:
        """Handle one item of the queue; never raises an error."""
        try:
            self._handle(item)
        except SafeError as error:
            self._problem(str(error))
        except Exception as error:  # an error of this code must not end the worker
            self._problem(f'unexpected {error!r}')

    def tick(self) -> None:
        """Handle everything that depends on time."""
        if self._episodes is not None:
            self._episodes.tick(time.monotonic_ns())

    def _handle(self, item: object) -> None:
        if isinstance(item, Asked):
            if self._episodes is not None and self._is_our_client(item, claims=False):
                self._episodes.asked(item.connection, item.clock)
        elif isinstance(item, Exchange):
            self._handle_exchange(item)
        elif isinstance(item, Lost):
            self.counts.lost += 1
            if self._is_our_client(item, claims=False):
                self._skip('the relay was behind and dropped an inference')
        elif isinstance(item, Closed):
            self._handle_end(item)
        elif isinstance(item, Unwatched):
            self.counts.unwatched += 1
            self._problem(f'client {item.peer}: not watched any longer: {item.reason}')
        elif isinstance(item, Blocked):
            self.counts.blocked += 1
            self._problem(f'client {item.peer} asked the server to end (kill): not forwarded')

    def _handle_end(self, item: Closed) -> None:
        if self._episodes is not None:
            self._episodes.closed(item.connection)
        if self._client == item.connection:
            self._client = None

    def _handle_exchange(self, exchange: Exchange) -> None:
        is_ours = self._is_our_client(exchange, claims=False)
        if is_ours and self._episodes is not None:
            self._episodes.answered(exchange.connection, exchange.clock)
        try:
            reading = self._read(exchange, self._settings.keys)
        except SafeError as error:
            self.counts.unreadable += 1
            self.counts.inferences += 1
            if is_ours:
                self._skip(str(error))
            self._problem(f'an inference cannot be read: {error}')
            return
        if isinstance(reading, ErrorReply):
            self.counts.errors += 1
        elif isinstance(reading, Reset):
            if is_ours and self._episodes is not None:
                self._episodes.reset()
        elif reading is not None:
            self.counts.inferences += 1
            if self._is_our_client(exchange, claims=True):
                self._send(exchange, reading)
            else:
                self.counts.of_others += 1
                self._problem(
                    f'a second client {exchange.peer} asks for inferences; its steps are not '
                    'sent, because the steps of two robots would mix; start one relay for each '
                    'client'
                )

    def _is_our_client(self, item: Asked | Exchange | Lost, claims: bool) -> bool:
        """Return True if steps of this client are sent.

        With ``claims``, it may become the watched client.
        """
        one_request = self._settings.policy == 'openvla'
        client: object = item.peer.rpartition(':')[0] if one_request else item.connection
        now = time.monotonic()
        is_free = self._client is None or (
            one_request and now - self._client_seen > _OTHER_CLIENT_AFTER
        )
        if claims and is_free:
            self._client = client
        if client != self._client:
            return False
        self._client_seen = now
        return True

    def _send(self, exchange: Exchange, inference: Inference) -> None:
        if self._sink is None:
            self._open(self._spec_of(inference))
        assert self._sink is not None and self._episodes is not None
        self._episodes.before_step(exchange.connection, inference.instruction)
        self._episodes.answered(exchange.connection, exchange.clock)
        for note in inference.unread:
            self._problem(f'a part of a message cannot be read: {note}')
        try:
            features = self._features(inference)
        except ReadingError as error:
            self.counts.unreadable += 1
            self._skip(str(error))
            self._problem(f'an inference cannot be read: {error}')
            return
        self.last_seconds = exchange.seconds if inference.seconds is None else inference.seconds
        stamp = exchange.request.stamp
        sent = self._sink.publish(
            features,
            inference.actions,
            stamp=stamp,
            instruction=inference.instruction,
            inference_time=self.last_seconds,
        )
        self.counts.steps += sent is not None
        for name, image in inference.images.items():
            self._sink.image(name, image, stamp)
            self.counts.images += 1

    def _spec_of(self, inference: Inference) -> FeatureSpec | None:
        """Return the features of the first reply; None if it has no features."""
        if inference.features is None:
            self._say('replies contain no features: steps have actions and signals only')
            return None
        key = inference.feature_key
        return FeatureSpec(key, 0, FEATURE_AXES.get(key, ()))

    def _open(self, spec: FeatureSpec | None) -> None:
        self._spec = spec
        name = NO_FEATURE if spec is None else self._settings.feature_name or str(spec)
        if spec is not None:
            self._say(f'steps have the features {name}')
        self._sink = self._make_sink(name)
        self._episodes = Episodes(self._settings.rules, self._sink)

    def _features(self, inference: Inference) -> np.ndarray | None:
        if self._spec is None:
            return None
        if inference.features is None or inference.feature_key != self._spec.name:
            raise ReadingError(
                where='reply', expected=f'features under the key {self._spec.name}', found='none'
            )
        return pooled(self._spec, inference.features)

    def _skip(self, reason: str) -> None:
        if self._episodes is not None:
            self._episodes.miss(printable(reason))

    def _problem(self, text: str) -> None:
        text = printable(text)
        now = time.monotonic()
        if now - self._said.get(text, -_SAY_AGAIN) >= _SAY_AGAIN:
            if len(self._said) > 100:
                self._said.clear()
            self._said[text] = now
            self._say(text)
