# SPDX-License-Identifier: Apache-2.0
"""The error class for reading dumps and recordings, and common texts of advice."""

from __future__ import annotations

from vla_feature_bridge.errors import SafeError

COPY_AGAIN = 'copy the file from its source again'
LEAVE_OUT = 'leave the episode out with --skip-bad, or record the episode again'
COPY_OR_LEAVE_OUT = f'{COPY_AGAIN}, or leave the episode out with --skip-bad'
RENAMED = (
    'the file was renamed, or belongs to another episode: correct the file name, or leave the '
    'episode out with --skip-bad'
)


class DumpError(SafeError):
    """A file cannot be read.

    The message contains the file name, what was expected, what was found, and what to do.
    """


class CutError(DumpError):
    """A recording ends too early or is damaged. The part before the damage can be read."""
