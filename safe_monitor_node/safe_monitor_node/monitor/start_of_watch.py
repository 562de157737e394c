# SPDX-License-Identifier: Apache-2.0
"""Finds out whether an episode was already running when the monitor became active. No ROS."""

from __future__ import annotations

import math

from safe_monitor_node.monitor.alarm import AlarmState, Verdict

LISTENING = 3.0
"""Time after which no episode is running if no step and no event has come [s]."""


class StartOfWatch:
    """Finds out whether an episode is running when the monitor becomes active.

    The monitor receives a START that was published before, because the topic of events is latched.
    The next step also shows that an episode is running. Until then, the monitor does not know
    whether an episode is running.

    Attributes
    ----------
    earlier : tuple of str or None
        Id and task of the episode that began before the monitor was active and has not ended.
    """

    def __init__(self) -> None:
        self.earlier: tuple[str, str] | None = None
        self._ended_id = ''
        self._active_since: float | None = None

    def activate(self, now: float) -> None:
        """Start to listen."""
        self._active_since = now

    def began(self, episode_id: str, task: str = '') -> None:
        """Handle the START of an episode that began before the monitor was active."""
        self.earlier, self._ended_id = (episode_id, task), ''

    def stepped(self, episode_id: str) -> None:
        """Handle a step from before the activation. The step may arrive after the END."""
        if episode_id != self._ended_id and (self.earlier is None or self.earlier[0] != episode_id):
            self.began(episode_id)

    def ended(self, episode_id: str) -> None:
        """Handle the END of an episode."""
        self._ended_id = episode_id
        if self.earlier is not None and self.earlier[0] == episode_id:
            self.earlier = None
            self.know()

    def forget(self, episode_id: str = '') -> str:
        """Forget the earlier episode, because a new episode has begun or the monitor knows it.

        Returns its task if it has this id, otherwise an empty text.
        """
        earlier, self.earlier = self.earlier, None
        return earlier[1] if earlier is not None and earlier[0] == episode_id else ''

    def know(self) -> None:
        """Record that a step or an event has shown whether an episode is running."""
        self._active_since = None

    def tick(self, now: float) -> None:
        """Check the time: after some time without steps and events, no episode is running."""
        if self._active_since is not None and now - self._active_since >= LISTENING:
            self.know()

    @property
    def knows(self) -> bool:
        """True if it is known whether an episode is running."""
        return self._active_since is None

    def applied_to(self, verdict: Verdict) -> Verdict:
        """Return the verdict; if it is not known whether an episode runs, the reason says so.

        A latched ALARM stays.
        """
        if self.knows or verdict.state == AlarmState.ALARM:
            return verdict
        reason = (
            f'it is not known whether an episode is running: the monitor has been active for less '
            f'than {LISTENING:g} s, and no step and no event has come'
        )
        return Verdict(AlarmState.UNKNOWN, reason, 0, math.nan, math.nan)
