# SPDX-License-Identifier: Apache-2.0
"""Reads the scores that a monitor published during a session from a recording of the session."""

from __future__ import annotations

from pathlib import Path

from safe_training.recordings.errors import DumpError
from safe_training.recordings.untrusted.bag import open_bag
from safe_training.recordings.untrusted.bag_budget import Topic
from safe_training.recordings.untrusted.cdr import SCORE, BagMessageError, check_definition
from safe_training.recordings.untrusted.score_cdr import RecordedScore, score_from_cdr

LiveEpisodes = dict[str, list[RecordedScore]]

#: End of the name of the topic of scores. A recording of a replay can also contain the scores of
#: the first recording, below `recorded`.
_TOPIC, _ASIDE = '/safe/score', '/recorded/safe/score'


def read_live_scores(path: Path, topic: str = '') -> LiveEpisodes:
    """Return the scores of each episode, in the order of arrival.

    If an episode was played twice, only its last scores are returned.

    Parameters
    ----------
    path : Path
        A recording with scores: a folder, or an mcap or db3 file.
    topic : str
        Full name of the topic of the scores; empty: the only topic ``.../safe/score``.

    Raises
    ------
    DumpError
        The recording cannot be read, or has no scores, or has scores of several monitors.
    """
    found: dict[str, LiveEpisodes] = {}
    checked: set[Topic] = set()
    bag = open_bag(path)
    for message in bag.messages((SCORE,)):
        name = message.topic.name
        try:
            if message.topic not in checked:
                check_definition(SCORE, message.topic.encoding, message.topic.definition)
                checked.add(message.topic)
            score = score_from_cdr(message.data)
        except BagMessageError as error:
            raise DumpError(f'{path}: topic {name[:200]!r}: {error}') from None
        scores = found.setdefault(name, {}).setdefault(score.episode_id, [])
        if score.step == 0:
            scores.clear()
        scores.append(score)
    return found[_chosen(path, sorted(found), topic)]


def _chosen(path: Path, names: list[str], topic: str) -> str:
    """Return the requested topic, or the only topic of a monitor."""
    if topic:
        wanted = [name for name in names if name == topic]
    else:
        wanted = [n for n in names if n.endswith(_TOPIC) and not n.endswith(_ASIDE)]
    if len(wanted) == 1:
        return wanted[0]
    shown = ', '.join(repr(name[:80]) for name in names[:8])
    raise DumpError(
        where=str(path),
        expected=f'scores on the topic {topic}' if topic else f'scores on one topic ...{_TOPIC}',
        found=f'scores on {shown}' if names else 'no scores',
        advice='choose one of these topics with --live-topic'
        if names
        else 'record safe/score during the session, for example with record.launch.py',
    )
