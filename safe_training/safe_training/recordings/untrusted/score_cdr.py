# SPDX-License-Identifier: Apache-2.0
"""Failure scores as the bytes of a bag (CDR), without ROS 2 installed. See :mod:`.cdr`."""

from __future__ import annotations

from typing import NamedTuple

from safe_training.recordings.untrusted.cdr import SCORE, unpack


class RecordedScore(NamedTuple):
    """The score message of one step; the plain Python form of ``safe_msgs/FailureScore``.

    The score is NaN if the step could not be scored. ``alarm`` is true from the step that raised
    the alarm. ``state`` is the number of the state after this step.
    """

    episode_id: str
    step: int
    detector: str
    score: float
    threshold: float
    alarm: bool
    state: int


def score_from_cdr(data: bytes | memoryview) -> RecordedScore:
    """Return the score of these bytes.

    Raises
    ------
    BagMessageError
        The bytes are not a score.
    """
    message = unpack(data, SCORE)
    return RecordedScore(
        episode_id=message.episode_id,
        step=int(message.step),
        detector=message.detector,
        score=float(message.score),
        threshold=float(message.threshold),
        alarm=bool(message.alarm),
        state=int(message.state),
    )
