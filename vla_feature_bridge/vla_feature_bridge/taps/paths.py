# SPDX-License-Identifier: Apache-2.0
"""Finds submodules, methods and numbers of a policy by their paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from vla_feature_bridge.taps.errors import TapError, nearest

_MISSING = object()
_SHOWN = 8


def unwrapped(policy: Any) -> Any:
    """Return the policy inside the wrappers of PEFT, ``torch.compile`` and data parallelism."""
    for _ in range(8):
        names = {cls.__name__ for cls in type(policy).__mro__}
        if 'PeftModel' in names:
            policy = policy.get_base_model()
        elif 'OptimizedModule' in names:
            policy = policy._orig_mod
        elif names & {'DataParallel', 'DistributedDataParallel'}:
            policy = policy.module
        else:
            break
    return policy


def find_module(policy: Any, path: str) -> nn.Module:
    """Return the submodule with this path.

    Raises
    ------
    TapError
        The policy has no such submodule. The text contains the nearest paths.
    """
    for root in (unwrapped(policy), policy):
        found = _follow(root, path)
        if isinstance(found, nn.Module):
            return found
    found = _follow(unwrapped(policy), path)
    raise TapError(
        where=f'{type(policy).__name__}.{path}',
        expected='a submodule (torch.nn.Module)',
        found='nothing' if found is _MISSING else f'an object of class {type(found).__name__}',
        advice=_advice(unwrapped(policy), path),
    )


def find_method(policy: Any, path: str) -> tuple[Any, str]:
    """Return the object that has the method with this path, and the name of the method.

    Raises
    ------
    TapError
        The policy has no such method. The text contains the nearest paths.
    """
    parent, _, name = path.rpartition('.')
    root = unwrapped(policy)
    owner = _follow(root, parent) if parent else root
    method = _MISSING if owner is _MISSING else getattr(owner, name, _MISSING)
    if callable(method):
        return owner, name
    known = [] if owner is _MISSING else _methods(owner)
    raise TapError(
        where=f'{type(policy).__name__}.{path}',
        expected='a method',
        found='nothing' if method is _MISSING else f'an object of class {type(method).__name__}',
        advice=f'nearest: {nearest(name, known) or "none"}',
    )


def find_value(policy: Any, path: str) -> Any:
    """Return the object with this path, or None."""
    found = _follow(unwrapped(policy), path)
    return None if found is _MISSING else found


def find_number(policy: Any, sources: Iterable[int | str]) -> int | None:
    """Return the first of the numbers that exists: numbers themselves, or paths of numbers."""
    for source in sources:
        value = source if isinstance(source, int) else find_value(policy, source)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def compiled_parts(policy: Any) -> list[str]:
    """Return the paths of the parts of a policy that ``torch.compile`` compiles."""
    root = unwrapped(policy)
    found = ['(the policy)'] if root is not policy and _is_compiled(policy) else []
    for prefix, owner in _owners(root):
        for name, value in vars(owner).items():
            if _is_compiled(value):
                found.append(f'{prefix}{name}')
        for name, child in getattr(owner, '_modules', {}).items():
            if child is not None and 'OptimizedModule' in {c.__name__ for c in type(child).__mro__}:
                found.append(f'{prefix}{name}')
    return found


def _is_compiled(value: Any) -> bool:
    inner = getattr(value, '__wrapped__', None)
    return hasattr(value, '_torchdynamo_orig_callable') or (
        inner is not None and hasattr(inner, '_torchdynamo_orig_callable')
    )


def _owners(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield the policy, the modules that are its attributes, and all submodules of these."""
    yield '', root
    tops = (
        {'': root}
        if isinstance(root, nn.Module)
        else {
            f'{name}.': value
            for name, value in getattr(root, '__dict__', {}).items()
            if isinstance(value, nn.Module)
        }
    )
    for prefix, top in tops.items():
        for name, module in top.named_modules():
            if module is not root:
                yield f'{prefix}{name}.' if name else prefix, module


def _follow(root: Any, path: str) -> Any:
    for part in path.split('.'):
        root = _step(root, part)
        if root is _MISSING:
            return _MISSING
    return root


def _step(owner: Any, part: str) -> Any:
    if isinstance(owner, Mapping) and part in owner:
        return owner[part]
    if part.isdecimal() and isinstance(owner, Sequence) and int(part) < len(owner):
        return owner[int(part)]
    try:
        return getattr(owner, part, _MISSING)
    except Exception:  # a property of another class may raise any error
        return _MISSING


def _advice(root: Any, path: str) -> str:
    """Return which submodules have similar paths."""
    known = [
        f'{prefix}'.rstrip('.') for prefix, owner in _owners(root) if isinstance(owner, nn.Module)
    ]
    known = [name for name in known if name]
    if not known:
        return 'the policy has no submodules'
    last = path.rpartition('.')[2]
    alike = [name for name in known if name.rpartition('.')[2] == last]
    found = ', '.join(alike[:_SHOWN]) or nearest(path, known)
    return f'nearest: {found or "none"}'


def _methods(owner: Any) -> list[str]:
    names = [*dir(type(owner)), *getattr(owner, '__dict__', {})]
    return [
        name
        for name in dict.fromkeys(names)
        if not name.startswith('__') and callable(getattr(type(owner), name, None))
    ]
