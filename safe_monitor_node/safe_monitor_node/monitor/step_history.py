# SPDX-License-Identifier: Apache-2.0
"""Records missing steps of an episode, and their first cause."""

from __future__ import annotations


class StepHistory:
    """The steps of one episode that are missing, have no score or contradict each other.

    Parameters
    ----------
    allowed : int
        Number of steps that may be missing or have no score.
    """

    def __init__(self, allowed: int = 0) -> None:
        self._allowed = allowed
        self._missing = 0
        self._first = self._contradiction = ''
        self._gap_is_first = False

    def missing(self, count: int, reason: str, hint: str = '') -> None:
        """Record that steps are missing.

        Parameters
        ----------
        count : int
        reason : str
            Which steps are missing.
        hint : str
            Probable reason why steps are often missing, if it is known. It is added to the first
            cause, if the first cause is also a missing step.
        """
        self._missing += count
        if not self._first:
            self._first, self._gap_is_first = reason, True
        if hint and self._gap_is_first:
            self._first, self._gap_is_first = f'{self._first}{hint}', False

    def not_scored(self, reason: str) -> None:
        """Record that a step has no score."""
        self._missing += 1
        self._first = self._first or reason

    def contradict(self, reason: str) -> None:
        """Record that steps contradict each other. No number of such steps is allowed."""
        if not self.cause:
            self._contradiction = reason

    @property
    def cause(self) -> str:
        """First cause why the episode can no longer be scored; empty if it can be scored."""
        if self._contradiction:
            return self._contradiction
        if self._missing <= self._allowed:
            return ''
        if not self._allowed:
            return self._first
        # The text has no number of steps, so that the cause does not change.
        return (
            f'more steps are missing or have no score than max_missing_steps = {self._allowed}; '
            f'the first cause: {self._first}'
        )
