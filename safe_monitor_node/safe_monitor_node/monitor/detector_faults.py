# SPDX-License-Identifier: Apache-2.0
"""Handles exceptions of a detector: a text for each step, one traceback for the log."""

from __future__ import annotations

import traceback

from safe_monitor_node.detectors import Detector, Stream
from vla_feature_bridge.step import PolicyStep


class DetectorFaults:
    """Unexpected exceptions of one detector, other than refused steps.

    They must not end the monitor.
    """

    def __init__(self) -> None:
        self._said = False
        self._new: list[str] = []

    def stream_of(self, detector: Detector) -> Stream:
        """Return a stream. If the detector cannot make one, its steps raise the exception."""
        try:
            return detector.stream()
        except Exception as error:
            return _NoStream(error)

    def problem(self, detector: Detector, index: int, error: Exception) -> str:
        """Return the text of an exception at a step.

        The traceback of the first exception is kept.
        """
        text = f'step {index}: detector {detector.name} failed with {type(error).__name__}: {error}'
        if not self._said:
            self._said = True
            trace = ''.join(traceback.format_exception(error)).rstrip()
            self._new.append(
                f'{text}; such steps are INVALID, and further tracebacks are not logged:\n{trace}'
            )
        return text

    def take(self) -> list[str]:
        """Return the tracebacks that were not returned before."""
        new, self._new = self._new, []
        return new


class _NoStream(Stream):
    """The stream of a detector that could not make one."""

    def __init__(self, error: Exception) -> None:
        self._error, self._trace = error, error.__traceback__

    def step(self, step: PolicyStep) -> float:
        raise self._error.with_traceback(self._trace)
