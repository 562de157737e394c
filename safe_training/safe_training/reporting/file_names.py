# SPDX-License-Identifier: Apache-2.0
"""Unique names of output files, which every file system accepts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

#: Largest length of a name without its ending [bytes]. File systems accept 255, and an ending or a
#: mark follows.
_MOST_BYTES = 150
#: Names that Windows reserves for devices, with any ending.
_DEVICES = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE)


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """Return a file name without an ending for each id.

    Characters that a file system may refuse become ``_``. If a name is cut, or if two ids have the
    same name, the id gets a unique mark of eight hex digits. Names that differ only in case or in
    the Unicode form count as the same, because some file systems do not distinguish them.

    Parameters
    ----------
    ids : iterable of str
        Different ids. The name of an id depends on all of them, so give all ids of a set.
    """
    whole = {text: _plain(text) for text in ids}
    count = Counter(_folded(name) for name in whole.values())
    names = {
        text: name if count[_folded(name)] == 1 and _fits(name) else _marked(name, text)
        for text, name in whole.items()
    }
    # The plain name of an id may be the marked name of another id.
    count = Counter(_folded(name) for name in names.values())
    return {
        text: name if count[_folded(name)] == 1 else _marked(name, text)
        for text, name in names.items()
    }


def is_marked(name: str, text: str) -> bool:
    """Return True if the file name of an id ends in its mark."""
    return name.endswith(f'-{_mark(text)}')


def _plain(text: str) -> str:
    name = re.sub(r'[^\w.-]+', '_', text).strip('._') or 'episode'
    return f'_{name}' if _DEVICES.fullmatch(name) else name


def _folded(name: str) -> str:
    return unicodedata.normalize('NFKD', name).casefold()


def _fits(name: str) -> bool:
    return len(name.encode()) <= _MOST_BYTES


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]


def _marked(name: str, text: str) -> str:
    mark = _mark(text)
    head = name.encode()[: _MOST_BYTES - len(mark) - 1].decode(errors='ignore')
    return f'{head}-{mark}'
