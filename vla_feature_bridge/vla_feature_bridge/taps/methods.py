# SPDX-License-Identifier: Apache-2.0
"""Wraps methods of a policy object, so that a tap is notified when an inference begins and ends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.paths import find_method

_NOTHING = object()


def outside_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that ``torch.compile`` calls and does not trace.

    A traced function would run once, while the graph is made: it could not read a clock.
    """
    compiler = getattr(torch, 'compiler', None)
    disable = getattr(compiler, 'disable', None)
    if disable is None:
        return function
    wrapped: Callable[..., Any] = disable(function)
    return wrapped


class Listener:
    """The functions that a wrapped method calls. They must not raise an error.

    A subclass overrides those that it needs.
    """

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the beginning of a call, and return a mark of this call."""

    def finish(self, mark: Any, result: Any) -> None:
        """Note the return of the call with this mark."""

    def fail(self, mark: Any) -> None:
        """Note that the call with this mark raised an exception."""


class WrappedMethod:
    """Calls the method of a policy, and notifies a listener when the call begins and ends.

    It replaces the method as an attribute of the object, until :meth:`restore`. The arguments, the
    result and exceptions pass unchanged. A copy of the policy (``copy.deepcopy``, pickle) has the
    original method.

    Parameters
    ----------
    policy : object
    path : str
        Path of the method in the policy.
    listener : Listener

    Raises
    ------
    TapError
        The policy has no such method, or its attributes cannot be set.
    """

    def __init__(self, policy: Any, path: str, listener: Listener) -> None:
        self.path = path
        self._owner, self._name = find_method(policy, path)
        self._original = getattr(self._owner, self._name)
        # Not the attributes of a compiled function: torch.compile would look for it behind them.
        functools.update_wrapper(self, self._original, updated=())
        self._before = self._own_attribute()
        self._begin = outside_graphs(listener.begin)
        self._finish = outside_graphs(listener.finish)
        self._fail = outside_graphs(listener.fail)
        try:
            setattr(self._owner, self._name, self)
        except Exception as error:
            raise TapError(
                where=f'{type(policy).__name__}.{path}',
                expected='an attribute that can be set',
                found=f'{type(error).__name__}: {error}',
            ) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mark = self._begin(args, kwargs)
        try:
            result = self._original(*args, **kwargs)
        except BaseException:
            self._fail(mark)
            raise
        self._finish(mark, result)
        return result

    def restore(self) -> bool:
        """Restore the method. Return False if the attribute was replaced in the meantime."""
        outer = self._own_attribute()
        while isinstance(outer, WrappedMethod) and outer is not self:
            if outer._original is self:  # another tap came later, and stays
                outer._original, outer._before = self._original, self._before
                return True
            outer = outer._original
        if outer is not self:
            return False
        if self._before is _NOTHING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)
        return True

    def _own_attribute(self) -> Any:
        return getattr(self._owner, '__dict__', {}).get(self._name, _NOTHING)

    def __reduce__(self) -> tuple[Any, ...]:
        # The owner is copied at the same time, and still has the method of its class.
        if self._before is _NOTHING:
            return getattr, (self._owner, self._name)
        return _same, (self._before,)


def _same(value: Any) -> Any:
    return value
