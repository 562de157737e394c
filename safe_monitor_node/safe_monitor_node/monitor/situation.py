# SPDX-License-Identifier: Apache-2.0
"""The input of the alarm policy: a state, how long it has lasted, and margins."""

from __future__ import annotations

import math
from collections.abc import Mapping

from safe_monitor_node.monitor.alarm import AlarmState


class Situation:
    """Follows the state of a monitor.

    Attributes
    ----------
    state : AlarmState
    known : bool
        Whether the monitor knows if an episode is running.
    steps : int
        Steps that have come since the step that began the state.
    seconds : float
        Time since the state began [s].
    task : str
        Task of the episode that began the state.
    """

    def __init__(self) -> None:
        self.state = AlarmState.UNKNOWN
        self.known = False
        self.task = ''
        self.forget()

    def forget(self) -> None:
        """Restart the state with the next call of `take`."""
        self.steps, self.seconds = 0, 0.0
        self._began: float | None = None
        self._episode = ''
        self._margins: dict[str, float] = {}

    def take(
        self,
        state: AlarmState,
        now: float,
        *,
        known: bool = True,
        episode: str = '',
        task: str = '',
        stepped: bool = False,
        held: bool = False,
    ) -> None:
        """Store the present state.

        The age and the steps of the state begin at 0 with each episode. An ALARM that lasts beyond
        its episode (`held`) keeps them.

        Parameters
        ----------
        state : AlarmState
        now : float
            Time of a steady clock [s].
        known : bool
            True if it is known whether an episode is running.
        episode, task : str
            Id and task of the running or last episode.
        stepped : bool
            Whether a step has just come.
        held : bool
            Whether an ALARM lasts beyond its episode (latch RESET). Such an ALARM keeps the task of
            its episode.
        """
        self.known = known
        same = episode == self._episode
        lasts = state == self.state and (same or (held and state == AlarmState.ALARM))
        if self._began is None or not lasts:
            self.forget()
            self.state, self._began, self._episode, same = state, now, episode, True
        elif stepped:
            self.steps += 1
        if same:
            # START can arrive after the first steps, and change the task.
            self.task = task
        self.seconds = now - self._began

    def take_margins(self, margins: Mapping[str, float]) -> None:
        """Store score minus threshold of each detector at the present step."""
        for name, margin in margins.items():
            if margin > self._margins.get(name, -math.inf):
                self._margins[name] = margin

    def margin(self, detector: str = '') -> float:
        """Return the largest margin of a detector since the state began; -inf if it had none.

        Parameters
        ----------
        detector : str
            Empty: the only detector.
        """
        if not detector:
            return max(self._margins.values(), default=-math.inf)
        return self._margins.get(detector, -math.inf)
