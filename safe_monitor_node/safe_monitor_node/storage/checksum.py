# SPDX-License-Identifier: Apache-2.0
"""JSON files that contain their own checksum, so that every change is detected.

The checksum is the SHA-256 of the file's text without the entry ``sha256``. The text always has the
same format: two spaces of indentation and sorted keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_feature_bridge.errors import SafeError

LARGEST_FILE = 64 << 20
"""Size [bytes] up to which a file is read."""

_ENTRY = 'sha256'


@dataclass(frozen=True)
class FileFormat:
    """One format of files, and the texts for its error messages.

    Attributes
    ----------
    name : str
        Value of the entry ``format`` in the file.
    version : int
        Value of the entry ``version`` in the file.
    error : type of SafeError
        Raised when a file is refused.
    repair : str
        Advice for a damaged file.
    renew : str
        Advice for a file of another version.
    other_format : str
        Advice for a file of another format.
    earlier : tuple of int
        Earlier versions that can be read.
    """

    name: str
    version: int
    error: type[SafeError]
    repair: str
    renew: str
    other_format: str
    earlier: tuple[int, ...] = ()


def with_checksum(content: Mapping[str, Any]) -> str:
    """Return the text of a file with this content and its checksum.

    Raises
    ------
    TypeError, ValueError
        A value is not JSON, or is NaN or infinite.
    """
    digest = hashlib.sha256(_text(content).encode()).hexdigest()
    return _text({**content, _ENTRY: digest})


def read_with_checksum(path: Path, file_format: FileFormat) -> dict[str, Any]:
    """Return the content of a file that :func:`with_checksum` made, without the checksum.

    Raises
    ------
    SafeError
        The file is too large or is not JSON, or its format, version or checksum is wrong.
        ``file_format.error`` is the class of the error.
    OSError
        The file cannot be read.
    """
    error, repair = file_format.error, file_format.repair
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise error(
            where=str(path),
            expected=f'a file of at most {LARGEST_FILE} bytes',
            found=f'{size} bytes',
            advice=repair,
        )
    try:
        text = path.read_bytes().decode('utf-8')
        content = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(
            where=str(path),
            expected='JSON',
            found=f'text that is not valid JSON ({cause})',
            advice=repair,
        ) from cause
    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if found != file_format.name:
        raise error(
            where=str(path),
            expected=f'the format {file_format.name!r}',
            found=f'{found!r}',
            advice=file_format.other_format,
        )
    if content.get('version') not in (file_format.version, *file_format.earlier):
        raise error(
            where=str(path),
            expected=f'version {file_format.version} of the format',
            found=f'{content.get("version")!r}',
            advice=f'{file_format.renew}, or use the version of the software that wrote the file',
        )
    content.pop(_ENTRY, None)
    if not _is_text_of(content, text):
        raise error(
            where=str(path),
            expected='content that matches the checksum in the file',
            found='other content',
            advice=f'the file was changed or damaged: {repair}',
        )
    return content


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + '\n'


def _is_text_of(content: Mapping[str, Any], text: str) -> bool:
    try:
        return with_checksum(content) == text
    # The file contains NaN or is nested too deeply. This software writes neither.
    except (ValueError, RecursionError):
        return False
