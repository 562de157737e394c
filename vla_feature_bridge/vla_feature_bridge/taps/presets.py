# SPDX-License-Identifier: Apache-2.0
"""Loads presets: presets of this package by name, and other presets by the path of the file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from vla_feature_bridge.taps.errors import TapError, nearest
from vla_feature_bridge.taps.preset import Preset

_ENDINGS = ('.yaml', '.yml')
#: Largest size of a preset file.
_MAX_BYTES = 1 << 16


def preset_names() -> list[str]:
    """Return the names of the presets of this package, sorted."""
    return sorted(
        entry.name[: -len('.yaml')] for entry in _folder().iterdir() if entry.name.endswith('.yaml')
    )


def load_preset(name_or_path: str | Path) -> Preset:
    """Return a preset by its name, or by the path of its YAML file.

    Raises
    ------
    TapError
        No preset has the name, or the file cannot be read, is not YAML, or is not a preset.
    """
    if isinstance(name_or_path, Path) or str(name_or_path).endswith(_ENDINGS):
        return _parse(_read(Path(name_or_path)), str(name_or_path))
    if name_or_path in preset_names():
        file = _folder() / f'{name_or_path}.yaml'
        return _parse(file.read_text(encoding='utf-8'), f'preset {name_or_path}')
    raise TapError(
        where=f'preset {name_or_path!r}',
        expected=f'one of {", ".join(preset_names())}, or the path of a .yaml file',
        found='none of them',
        advice=f'nearest: {nearest(str(name_or_path), preset_names()) or "none"}',
    )


def find_preset(policy: Any) -> Preset:
    """Return the preset of this package for the class of a policy.

    Wrappers of PEFT, ``torch.compile`` and data parallelism are ignored.

    Raises
    ------
    TapError
        No preset, or more than one, names the class.
    """
    from vla_feature_bridge.taps.paths import unwrapped

    classes = [cls.__name__ for cls in type(unwrapped(policy)).__mro__]
    presets = [load_preset(name) for name in preset_names()]
    for cls in classes:  # the class itself before its bases
        found = [p for p in presets if p.policy_class == cls]
        if len(found) == 1:
            return found[0]
        if found:
            raise TapError(
                where=f'policy of class {cls}',
                expected='one preset',
                found=', '.join(p.name for p in found),
                advice='give the name of one of them',
            )
    known = sorted({p.policy_class for p in presets if p.policy_class})
    raise TapError(
        where=f'policy of class {classes[0]}',
        expected=f'a class that a preset names ({", ".join(known)})',
        found='none',
        advice='give the name of a preset, or write one',
    )


def _folder() -> Any:
    return resources.files('vla_feature_bridge.taps') / 'presets'


def _read(path: Path) -> str:
    try:
        with path.open('rb') as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise TapError(
                where=str(path), expected=f'at most {_MAX_BYTES} bytes', found='a larger file'
            )
        return data.decode('utf-8')
    except OSError as error:
        raise TapError(
            where=str(path), expected='a readable file', found=str(error.strerror)
        ) from error
    except UnicodeDecodeError as error:
        raise TapError(where=str(path), expected='UTF-8 text', found='other bytes') from error


def _parse(text: str, where: str) -> Preset:
    try:
        import yaml
    except ImportError as error:
        raise TapError(
            where=where,
            expected='the package PyYAML, which reads presets',
            found='none',
            advice="pip install 'PyYAML>=6'",
        ) from error
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TapError(f'{where}: expected YAML, found text that is not valid: {error}') from error
    return Preset.from_dict(values, where)
