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
    """A kind of file, and the texts for its error messages.

    Attributes
    ----------
    name : str
        Value of the file's entry ``format``.
    version : int
        Value of the file's entry ``version``.
    error : type of SafeError
        Raised when a file is refused.
    repair : str
        What to do about a damaged file.
    renew : str
        How to get a file of this version.
    other_format : str
        What to do when the file is of another kind.
    """

    name: str
    version: int
    error: type[SafeError]
    repair: str
    renew: str
    other_format: str


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
        raise error(f'{path}: expected at most {LARGEST_FILE} bytes, found {size}; {repair}')
    try:
        text = path.read_bytes().decode('utf-8')
        content = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(f'{path}: not readable as JSON ({cause}); {repair}') from cause
    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if found != file_format.name:
        raise error(
            f'{path}: expected format {file_format.name!r}, found {found!r}; '
            f'{file_format.other_format}'
        )
    if content.get('version') != file_format.version:
        raise error(
            f'{path}: expected version {file_format.version}, found {content.get("version")!r}; '
            f'{file_format.renew}, or use the software version that wrote it'
        )
    content.pop(_ENTRY, None)
    if not _is_text_of(content, text):
        raise error(
            f'{path}: the checksum does not match the content, so the file was changed or '
            f'damaged; {repair}'
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
