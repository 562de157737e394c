# SPDX-License-Identifier: Apache-2.0
"""Labels of episodes, and the labels that the node itself has published. No ROS."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_KEPT = 100


@dataclass(frozen=True)
class EpisodeLabel:
    """The outcome of an episode in a label on ``vla/episode``.

    Attributes
    ----------
    episode_id : str
    success : bool or None
        None: unknown; it withdraws an earlier label.
    stamp : int
        Time of the label [ns].
    reason : str
        Who set the label, and why.
    """

    episode_id: str
    success: bool | None
    stamp: int = 0
    reason: str = ''


class OwnLabels:
    """The labels that the node itself has published and will receive."""

    def __init__(self) -> None:
        self._labels: deque[EpisodeLabel] = deque(maxlen=_KEPT)

    def expect(self, label: EpisodeLabel) -> None:
        """Record that the node itself published this label and will receive it."""
        self._labels.append(label)

    def take(self, label: EpisodeLabel) -> bool:
        """Return True if the node itself published this received label.

        True only once for each label.

        Such a label had its effect when the node published the label. The label must not have a
        second effect when the node receives the label, possibly after a label from another node.
        """
        if label not in self._labels:
            return False
        self._labels.remove(label)
        return True
