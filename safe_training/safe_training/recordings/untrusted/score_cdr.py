# SPDX-License-Identifier: Apache-2.0
"""Failure scores as the bytes of a bag (CDR), without ROS 2 installed. See :mod:`.cdr`."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from safe_training.recordings.untrusted.cdr import BagMessageError, own_definition

SCORE = 'safe_msgs/msg/FailureScore'

_USED = ('builtin_interfaces/msg/Time', 'std_msgs/msg/Header', SCORE)
#: Our own definition has 2500 characters, including comments.
_MAX_DEFINITION_CHARACTERS = 1 << 16


class RecordedScore(NamedTuple):
    """What a monitor published for one step; the plain Python form of ``safe_msgs/FailureScore``.

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


@cache
def _typestore() -> Any:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.EMPTY)
    types: dict[str, Any] = {}
    for name in _USED:
        types |= get_types_from_msg(own_definition(name), name)
    store.register(types)
    return store


def check_score_definition(encoding: str, text: str) -> None:
    """Compare the definition of scores in a bag with ours; comments are ignored.

    A bag without a definition in a known language passes.

    Raises
    ------
    BagMessageError
        The definitions differ: the bag was recorded with other messages of the same name.
    """
    from rosbags.typesys import TypesysError, get_types_from_msg

    if not text or encoding != 'ros2msg':
        return
    found: dict[str, Any] = {}
    if len(text) <= _MAX_DEFINITION_CHARACTERS:
        # For manipulated text, the parser can raise other exceptions than its own error class.
        try:
            found = dict(get_types_from_msg(text, SCORE))
        except (TypesysError, RecursionError, ValueError, LookupError, TypeError):
            found = {}
    ours = _typestore().fielddefs
    if any(name not in found or found[name][1] != ours[name][1] for name in _USED):
        raise BagMessageError(
            expected=f'the definition of {SCORE} in this software',
            found='another definition',
            advice='the scores were recorded with another version of this software: record them '
            'again, or compare them with that version',
        )


def score_from_cdr(data: bytes | memoryview) -> RecordedScore:
    """Return the score of these bytes.

    Raises
    ------
    BagMessageError
        The bytes are not a score.
    """
    from rosbags.serde import SerdeError

    try:
        message = _typestore().deserialize_cdr(data, SCORE)
    except SerdeError as error:
        text = ' '.join(str(error).split())[:160]
        raise BagMessageError(
            expected=f'a message of type {SCORE}', found=f'bytes of a different form ({text})'
        ) from None
    return RecordedScore(
        episode_id=message.episode_id,
        step=int(message.step),
        detector=message.detector,
        score=float(message.score),
        threshold=float(message.threshold),
        alarm=bool(message.alarm),
        state=int(message.state),
    )
