# SPDX-License-Identifier: Apache-2.0
"""Reads text files of editors and spreadsheets: UTF-8, with or without a BOM.

Other encodings are refused, and the error contains the encoding. They are never guessed, because a
wrong guess changes names.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from safe_training.recordings.errors import DumpError
from safe_training.recordings.untrusted.foreign_file import HEAD_BYTES, foreign_kind

_SAVE_AS_UTF8 = 'save the file as UTF-8 (in Excel: CSV UTF-8)'
#: A BOM of UTF-32 begins like a BOM of UTF-16, so it is tried first.
_BOMS = (
    (codecs.BOM_UTF32_LE, 'UTF-32'),
    (codecs.BOM_UTF32_BE, 'UTF-32'),
    (codecs.BOM_UTF16_LE, 'UTF-16'),
    (codecs.BOM_UTF16_BE, 'UTF-16'),
)


def read_text(file: Path, most_bytes: int, what: str) -> str:
    """Return the text of a file, without a BOM; line ends are not changed.

    Parameters
    ----------
    file : Path
    most_bytes : int
        The largest size of such a file.
    what : str
        What the file should be, for messages: 'a csv file'.

    Raises
    ------
    DumpError
        The file cannot be read, is too large, has zero bytes, or is not UTF-8.
    """
    try:
        with file.open('rb') as stream:
            size = os.fstat(stream.fileno()).st_size
            # Reading most_bytes would allocate this memory, also for a small file.
            data = stream.read(size) if size <= most_bytes else b''
    except OSError as error:
        raise DumpError(
            where=str(file),
            expected=f'{what} that can be read',
            found=str(error.strerror),
            advice='check the path and the permissions of the file',
        ) from error
    if size > most_bytes:
        raise DumpError(
            where=str(file),
            expected=f'{what} with at most {most_bytes} bytes',
            found=f'{size} bytes',
            advice='check the path',
        )
    return decode_text(data, str(file), what)


def decode_text(data: bytes, where: str, what: str) -> str:
    """Return bytes as text; see :func:`read_text`, which calls this function."""
    if kind := foreign_kind(data[:HEAD_BYTES], len(data)):
        raise DumpError(where=where, expected=what, found=kind.found, advice=kind.advice)
    coding = next((name for bom, name in _BOMS if data.startswith(bom)), None)
    if coding is None and b'\0' in data:
        coding = 'bytes that are zero, as in UTF-16 or in a damaged file'
    elif coding is not None:
        coding = f'text in {coding}'
    if coding is None:
        try:
            return data.removeprefix(codecs.BOM_UTF8).decode('utf-8')
        except UnicodeDecodeError as error:
            # The position counts from the end of the BOM, and a BOM has no line end.
            line = data.removeprefix(codecs.BOM_UTF8)[: error.start].count(b'\n') + 1
            byte = error.object[error.start]
            coding = f'the byte 0x{byte:02x} in line {line}, as in Windows-1252 or Latin-1'
    raise DumpError(where=where, expected=f'{what} in UTF-8', found=coding, advice=_SAVE_AS_UTF8)
