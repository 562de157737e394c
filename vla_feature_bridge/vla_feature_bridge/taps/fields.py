# SPDX-License-Identifier: Apache-2.0
"""Checks the value of one field of a preset, and returns it in the form that a preset keeps."""

from __future__ import annotations

import re
from typing import Any

from vla_feature_bridge.pooling import PoolingError, parse_pooling
from vla_feature_bridge.taps.errors import TapError

KEEPS = ('all', '[:, -1]', '[:, -action_horizon:]', 'channels_first')

_PATH = re.compile(r'[A-Za-z_]\w*(\.\w+)*')
_MAX_NUMBER = 100_000


def checked(preset: str, name: str, kind: str, value: Any) -> Any:
    """Return the value of a field of this kind in the form in which a preset keeps it.

    Raises
    ------
    TapError
        The value has another type or form.
    """
    try:
        return _CHECKS[kind](value)
    except PoolingError as error:
        raise TapError(f'preset {preset}: {name}: {error}') from error
    except _WrongError as error:
        raise TapError(
            where=f'preset {preset}: {name}', expected=str(error), found=repr(value)
        ) from None


class _WrongError(Exception):
    """A value is wrong; the text says what was expected."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _WrongError('a text of one line')
    return value


def _true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongError('true or false')
    return value


def _list_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise _WrongError('a list of texts')
    return tuple(_text(entry) for entry in value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and _PATH.fullmatch(value) is not None


def _path(value: Any) -> str:
    if value != '' and not _is_path(value):
        raise _WrongError('a path of attributes such as model.head')
    return str(value)


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(_path(entry) for entry in _list_of(value) if entry != '')


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(entry, str) and entry.isidentifier() for entry in value
    ):
        raise _WrongError('a list of names')
    if len(set(value)) != len(value):
        raise _WrongError('different names')
    return tuple(value)


def _numbers(value: Any) -> tuple[int | str, ...]:
    found = tuple(_list_of(value))
    for entry in found:
        whole = isinstance(entry, int) and not isinstance(entry, bool)
        if not (whole and 1 <= entry <= _MAX_NUMBER) and not _is_path(entry):
            raise _WrongError(f'a number from 1 to {_MAX_NUMBER}, a path of one, or a list of both')
    return found


def _argument(value: Any) -> int | str:
    if isinstance(value, str) and value.isidentifier():
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100:
        return value
    raise _WrongError('a position from 0, or the name of a keyword')


def _pooling(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, (list, tuple)):
        raise _WrongError('a list of AXIS=COMMAND')
    entries = []
    for entry in value:
        if isinstance(entry, (list, tuple)) and len(entry) == 2:
            entry = '='.join(map(str, entry))
        if not isinstance(entry, str):
            raise _WrongError('a list of AXIS=COMMAND')
        entries.append(entry)
    return parse_pooling(entries)


def _choice(*choices: str) -> Any:
    def check(value: Any) -> str:
        if value not in choices:
            raise _WrongError(' or '.join(choices))
        return str(value)

    return check


_CHECKS: dict[str, Any] = {
    'text': _text,
    'texts': _texts,
    'path': _path,
    'paths': _paths,
    'names': _names,
    'numbers': _numbers,
    'argument': _argument,
    'pooling': _pooling,
    'keep': _choice(*KEEPS),
    'vocabulary': _choice('all', 'fast'),
    'run or read': _choice('run', 'read'),
    'true or false': _true_or_false,
}
