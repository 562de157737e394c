# SPDX-License-Identifier: Apache-2.0
"""Reads the parameters of detectors from ``--param``."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

from safe_monitor_node.detectors.registry import DETECTORS
from safe_training.cli.parsing import UsageError

# Types of parameters with the default None. In our modules, annotations are strings.
_OPTIONAL: dict[str, type] = {
    'float | None': float,
    'int | None': int,
    'str | None': str,
    'list[int] | None': list,
}


def detector_params(names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each detector.

    Parameters
    ----------
    names : sequence of str
        Registered detectors.
    settings : sequence of str
        ``NAME=VALUE`` sets the parameter of every detector that has this parameter.
        ``DETECTOR.NAME=VALUE`` sets the parameter of one detector.

    Raises
    ------
    UsageError
        A setting does not have the form NAME=VALUE, the value has the wrong type, or no detector
        has this parameter.
    """
    known = {name: inspect.signature(DETECTORS[name]).parameters for name in names}
    params: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition('=')
        if not equals:
            raise UsageError(
                where='--param', expected='NAME=VALUE, such as epochs=100', found=repr(setting)
            )
        detector, _, parameter = key.rpartition('.')
        if detector and detector not in DETECTORS:
            raise UsageError(
                where=f'--param {setting!r}',
                expected=f'a detector of this command: {", ".join(names)}',
                found=repr(detector),
            )
        takers = [n for n in names if parameter in known[n] and detector in ('', n)]
        if not takers:
            raise UsageError(
                where=f'--param {setting!r}',
                expected='a parameter of '
                + '; '.join(f'{n} ({", ".join(p) or "no parameters"})' for n, p in known.items()),
                found=repr(parameter),
            )
        for name in takers:
            params[name][parameter] = _value(setting, text, known[name][parameter])
    return params


def _value(setting: str, text: str, parameter: inspect.Parameter) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    default = parameter.default
    kind = _OPTIONAL.get(str(parameter.annotation), object) if default is None else type(default)
    if value is None and default is None:
        return None
    # An integer is accepted as a float. A boolean is not accepted as a number.
    if kind is float and type(value) is int:
        value = float(text)
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(
            where=f'--param {setting!r}',
            expected=f'a value of type {kind.__name__}, such as {default!r}',
            found=repr(value),
        )
    return value
