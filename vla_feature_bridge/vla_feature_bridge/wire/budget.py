# SPDX-License-Identifier: Apache-2.0
"""The memory that all connections of a receiver may use together for frames."""

from __future__ import annotations

import threading

from vla_feature_bridge.wire.frame import FrameError


class Budget:
    """Memory that all connections of a receiver may use together.

    Parameters
    ----------
    size : int
        Number of bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Reserve memory.

        Raises
        ------
        FrameError
            The remaining memory is too small.
        """
        with self._lock:
            if self.used + count > self.size:
                raise FrameError(
                    where='payload of a frame',
                    expected=f'at most {self.size - self.used} bytes, because other frames are '
                    'being read',
                    found=f'{count} bytes',
                )
            self.used += count

    def give_back(self, count: int) -> None:
        """Free reserved memory."""
        with self._lock:
            self.used -= count
