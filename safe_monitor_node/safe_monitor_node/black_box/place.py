# SPDX-License-Identifier: Apache-2.0
"""Reads episode id and index of a serialized ``PolicyStep``, without reading its arrays."""

from __future__ import annotations

import struct

_AFTER_STAMP = 12


def step_place(data: bytes) -> tuple[str, int] | None:
    """Return episode id and index of a step; None if the bytes are not a step.

    Parameters
    ----------
    data : bytes
        A ``safe_msgs/PolicyStep`` as CDR. Only its first fields are read: header, episode_id, step.
    """
    try:
        order = '<' if data[1] & 1 else '>'
        _, at = _text(data, _AFTER_STAMP, order)
        episode, at = _text(data, at, order)
        (step,) = struct.unpack_from(f'{order}I', data, _aligned(at))
    except (IndexError, struct.error):
        return None
    return episode, step


def _aligned(at: int) -> int:
    # The alignment counts from the end of the 4 bytes of encapsulation: the same multiples of 4.
    return -(-at // 4) * 4


def _text(data: bytes, at: int, order: str) -> tuple[str, int]:
    at = _aligned(at)
    (length,) = struct.unpack_from(f'{order}I', data, at)
    end = at + 4 + length
    if end > len(data):
        raise struct.error('the text ends after the message')
    return data[at + 4 : max(at + 4, end - 1)].decode('utf-8', 'replace'), end
