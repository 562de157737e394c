# SPDX-License-Identifier: Apache-2.0
"""Attaches a tap to every policy that a program of LeRobot loads. LeRobot is not changed.

:func:`install` replaces ``train`` and ``from_pretrained`` of LeRobot's policies: the tap is
attached when a policy is loaded or put into evaluation mode, before its first inference. The
distribution ``lerobot_policy_safe`` calls it; LeRobot's programs import it by its name.
"""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.lerobot_policy import PolicyTap
from vla_feature_bridge.taps.lerobot_settings import LerobotSettings

_LOG = logging.getLogger('vla_feature_bridge.taps')


class LerobotPlugin:
    """Attaches a tap to the newest policy of a process.

    If a new policy is loaded, the tap moves to this policy, because LeRobot's policy server loads a
    new policy for each client. The earlier policy gets no tap again.

    Parameters
    ----------
    settings : LerobotSettings

    Attributes
    ----------
    current : PolicyTap or None
        The tap that sends now.
    """

    def __init__(self, settings: LerobotSettings) -> None:
        from lerobot.policies.pretrained import PreTrainedPolicy

        self._base: type = PreTrainedPolicy
        self.current: PolicyTap | None = None
        self._settings = settings
        self._lock = threading.RLock()
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._calls = threading.local()
        self._replaced: list[tuple[type, str, Any]] = []

    def install(self) -> None:
        """Replace the methods by which policies are loaded and put into evaluation mode."""
        for cls in _with_subclasses(self._base):
            self._replace(cls)
        original = self._base.__dict__['__init_subclass__']

        def init_subclass(cls: Any, **options: Any) -> None:
            original.__func__(cls, **options)
            self._replace(cls)

        self._set(self._base, '__init_subclass__', classmethod(init_subclass))

    def uninstall(self) -> None:
        """Put the methods back, and remove the tap."""
        while self._replaced:
            cls, name, original = self._replaced.pop()
            if original is None:  # it inherited the method
                delattr(cls, name)
            else:
                setattr(cls, name, original)
        self._close('the tap was uninstalled')

    def _set(self, cls: type, name: str, value: Any) -> None:
        self._replaced.append((cls, name, cls.__dict__.get(name)))
        setattr(cls, name, value)

    def _replace(self, cls: type) -> None:
        """Replace methods that a class defines itself.

        An inherited method is replaced in its own class.
        """
        train = cls.__dict__.get('train')
        if callable(train) or cls is self._base:
            self._set(cls, 'train', self._train(train or cls.train))  # type: ignore[attr-defined]
        load = cls.__dict__.get('from_pretrained')
        if isinstance(load, classmethod):
            self._set(cls, 'from_pretrained', classmethod(self._load(load.__func__)))

    def _train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def train(policy: Any, mode: bool = True) -> Any:
            with _Nested(self._calls) as nested:
                result = original(policy, mode)
            if not mode and not nested.inside:
                self.attach(policy)
            return result

        return train

    def _load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            with _Nested(self._calls) as nested:
                policy = original(cls, *args, **kwargs)
            if not nested.inside and isinstance(policy, self._base):
                self.attach(policy)
            return policy

        return from_pretrained

    def attach(self, policy: Any) -> None:
        """Attach a tap to a policy that never had one. Never raises: an error is logged."""
        try:
            with self._lock:
                if policy in self._seen:
                    return
                self._seen.add(policy)
                self._close('another policy was loaded')
                self.current = PolicyTap(policy, self._settings)
                # Before the connections close: what was registered last runs first.
                atexit.register(self._close, 'the program ended')
        except Exception as error:
            _LOG.error(
                'the policy goes on without a tap: %s',
                error if isinstance(error, TapError) else f'{type(error).__name__}: {error}',
            )

    def _close(self, reason: str) -> None:
        with self._lock:
            current, self.current = self.current, None
            atexit.unregister(self._close)
            if current is not None:
                current.close(reason)


class _Nested:
    """Detects nested calls of one thread: a policy inside a policy."""

    def __init__(self, calls: threading.local) -> None:
        self._calls = calls
        self.inside = getattr(calls, 'depth', 0) > 0

    def __enter__(self) -> _Nested:
        self._calls.depth = getattr(self._calls, 'depth', 0) + 1
        return self

    def __exit__(self, *error: Any) -> None:
        self._calls.depth -= 1


def _with_subclasses(cls: type) -> list[type]:
    found = [cls]
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        found += [other for other in _with_subclasses(subclass) if other not in found]
    return found


_installed: LerobotPlugin | None = None


def install(settings: LerobotSettings | None = None) -> LerobotPlugin | None:
    """Attach a tap to the policies of this process from now on. Never raises.

    Parameters
    ----------
    settings : LerobotSettings, optional
        Default: the settings of the environment variables.

    Returns
    -------
    LerobotPlugin or None
        None if the settings switch it off or are wrong; an error is logged.
    """
    global _installed
    if _installed is None:
        try:
            settings = LerobotSettings.read() if settings is None else settings
            if not settings.enabled:
                return None
            plugin = LerobotPlugin(settings)
            plugin.install()
            _installed = plugin
        except Exception as error:
            _LOG.error('no policy is tapped: %s', error)
    return _installed


def uninstall() -> None:
    """Undo :func:`install`: restore LeRobot's classes and the policy."""
    global _installed
    if _installed is not None:
        _installed.uninstall()
        _installed = None
