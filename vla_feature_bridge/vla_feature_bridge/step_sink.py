# SPDX-License-Identifier: Apache-2.0
"""The base class that sends the steps of a policy: counts, logs, and never raises an error."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vla_feature_bridge.deferred import DeferredCalls, OwnedLock
from vla_feature_bridge.episode_steps import EpisodeEventRecord, EpisodeSteps
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.problem_log import ProblemLog
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.step_checks import StepError, check_seconds, check_success, check_text

#: How often a sink checks whether a monitor listens [s].
_LOOK_AGAIN = 0.01


class EpisodeSink(ABC):
    """Sends the steps and events of :class:`EpisodeSteps`; implements ``StepSink``.

    After its construction it never raises an error, unless ``strict`` is true. Wrong input is
    counted, logged and kept in ``last_error``:

    * A wrong step is not sent. Its number is not used again, so that the reader notices the gap.
    * A START with a wrong text is sent with an empty text.
    * An END with a wrong outcome is sent with an unknown outcome.
    * A step or an END without START is not sent.

    With ``strict``, wrong input raises the error and changes nothing.

    All methods may be called from any thread. In a forked child, a sink refuses every call, because
    the connection belongs to the parent: make a sink after the fork.

    A tap leaves its work to :attr:`deferred`. Methods and counters settle this work first: an END
    comes after the last step.

    Parameters
    ----------
    steps : EpisodeSteps
    log : callable
        Takes the text of one problem.
    strict : bool
        Raise errors: for development and tests.
    wait_for_monitor : float
        How long the first :meth:`start` waits until a monitor listens [s]; 0 does not wait.

    Attributes
    ----------
    deferred : DeferredCalls
        Calls of :meth:`publish`, :meth:`skip` and :meth:`lose` that a thread makes later.
    """

    def __init__(
        self,
        steps: EpisodeSteps,
        log: Callable[[str], None],
        strict: bool = False,
        wait_for_monitor: float = 0.0,
    ) -> None:
        self._published = self._refused = self._lost = 0
        self._last_error = ''
        # The log of a problem may ask for a counter, while this thread is in a call of the sink.
        self.deferred = DeferredCalls('safe_steps', holds=lambda: self._calls.is_mine)
        self._episode_steps = steps
        self._is_strict = strict
        self._problems = ProblemLog(log)
        self._wait_time = check_seconds(wait_for_monitor, 'wait_for_monitor')
        self._calls = OwnedLock()
        self._is_closed = False
        self._owner = os.getpid()

    @property
    def _is_mine(self) -> bool:
        """False in a forked child."""
        return self._owner == os.getpid()

    @property
    def published(self) -> int:
        """Number of steps that were handed over for sending."""
        self.deferred.settle()
        return self._published

    @property
    def refused(self) -> int:
        """Number of calls with wrong input."""
        self.deferred.settle()
        return self._refused

    @property
    def last_error(self) -> str:
        """Text of the last problem; empty if there was none."""
        self.deferred.settle()
        return self._last_error

    @last_error.setter
    def last_error(self, text: str) -> None:
        self._last_error = text

    @property
    def dropped(self) -> int:
        """Number of correct steps that were lost on this side."""
        self.deferred.settle()
        return self._lost

    @property
    def episode_id(self) -> str:
        """Id of the running episode; empty if no episode runs."""
        return self._episode_steps.episode_id

    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str:
        """Begin an episode. If another episode still runs, it is ended first.

        The first call waits until a monitor listens, at most ``wait_for_monitor`` seconds.

        Parameters
        ----------
        task, instruction, episode_id : str
            As in :meth:`EpisodeSteps.start`.

        Returns
        -------
        str
            The ``episode_id``; empty if the sink is closed.

        Raises
        ------
        StepError
            The sink is strict, and an argument is not text or the sink is closed. A running episode
            continues.
        """
        texts = {'task': task, 'instruction': instruction, 'episode_id': episode_id}
        try:
            return self._start(texts)
        except Exception as error:  # a clock that is gone, for example
            if self._is_strict:
                raise
            self._refuse(error)
            return ''

    def publish(
        self, features: Any, actions: Any = None, *, stamp: Any = None, **fields: Any
    ) -> PolicyStep | None:
        """Send the next step of the episode.

        Parameters
        ----------
        features, actions, stamp, **fields
            As in :meth:`EpisodeSteps.step`.

        Returns
        -------
        PolicyStep or None
            The step; None if it was refused or lost.

        Raises
        ------
        StepError
            The sink is strict, and no episode runs or the input is wrong. Nothing is sent, and the
            next step gets the same number and the same signals.
        """
        self.deferred.settle()
        with self._calls:
            if not self._can_send():
                return None
            try:
                step = self._episode_steps.step(features, actions, stamp=stamp, **fields)
            except Exception as error:
                self._refuse(error)
                self._episode_steps.skip()
                return None
            try:
                self._send_step(step)
            except Exception as error:
                if self._is_strict:
                    self._episode_steps.undo()
                self._lose(error)
                return None
            self._published += 1
            return step

    def skip(self, reason: str) -> None:
        """Leave out the step of an inference with wrong data.

        The step number is used, so that the reader notices the gap. The step is counted in
        ``refused``.

        Parameters
        ----------
        reason : str
            What is wrong with the data.

        Raises
        ------
        StepError
            The sink is strict, and no episode runs.
        """
        if self._leave_out('skip', 1):
            self._refused += 1
            self._problem('skip', f'a step is left out: {reason}')

    def lose(self, count: int, reason: str) -> None:
        """Leave out steps that were correct, and are lost on this side.

        Their numbers are used up, so that the reader notices the gap. Counted in ``dropped``.

        Parameters
        ----------
        count : int
            Number of steps.
        reason : str
            Why they are lost.

        Raises
        ------
        StepError
            No episode runs, and the sink is strict.
        """
        if self._leave_out('lose', count):
            self._lost += count
            self._problem('lose', f'steps are lost: {reason}')

    def _leave_out(self, method: str, count: int) -> bool:
        """Use up the numbers of steps. Return False if that was refused."""
        self.deferred.settle()
        with self._calls:
            if not self._can_send():
                return False
            try:
                self._episode_steps.check_running(method)
            except StepError as error:
                self._refuse(error)
                return False
            for _ in range(count):
                self._episode_steps.skip()
            return True

    def end(self, success: bool | None = None, reason: str = '') -> None:
        """End the episode.

        Parameters
        ----------
        success, reason
            As in :meth:`EpisodeSteps.end`.

        Raises
        ------
        StepError
            Only if the sink is strict: no episode runs, or an argument is wrong. After the error,
            a running episode continues.
        """
        try:
            self._end(success, reason)
        except Exception as error:
            if self._is_strict:
                raise
            self._refuse(error)

    @abstractmethod
    def close(self) -> None:
        """Stop sending. A running episode gets no END."""

    @abstractmethod
    def _send_step(self, step: PolicyStep) -> None:
        """Hand a step over for sending."""

    @abstractmethod
    def _send_event(self, event: EpisodeEventRecord) -> None:
        """Hand an event over for sending."""

    @abstractmethod
    def _monitor_listens(self) -> bool:
        """Return True if steps and events that are sent now reach a monitor."""

    def _start(self, texts: dict[str, str]) -> str:
        self.deferred.settle()
        if not self._can_send():
            return ''
        self._wait_for_a_monitor()
        with self._calls:
            for name, value in texts.items():
                try:
                    check_text(value, name, 'start')
                except StepError as error:
                    self._refuse(error)
                    texts[name] = ''
            self._send_events(self._episode_steps.start(**texts))
            return self.episode_id

    def _end(self, success: bool | None, reason: str) -> None:
        self.deferred.settle()
        with self._calls:
            if not self._can_send():
                return
            self._episode_steps.check_running('end')
            try:
                success = check_success(success, 'end')
            except StepError as error:
                self._refuse(error)
                success = None
            try:
                check_text(reason, 'reason', 'end')
            except StepError as error:
                self._refuse(error)
                reason = ''
            self._send_events([self._episode_steps.end(success, reason)])

    def _check_open(self) -> None:
        name = type(self).__name__
        if not self._is_mine:
            raise StepError(
                where=name,
                expected=f'a call in the process {self._owner}, which made the {name}',
                found=f'a call in its child process {os.getpid()}',
                advice=f'make a {name} after the fork',
            )
        if self._is_closed:
            raise StepError(where=name, expected=f'an open {name}', found=f'a closed {name}')

    def _can_send(self) -> bool:
        """Return True if the sink is open; refuse the call otherwise."""
        try:
            self._check_open()
        except StepError as error:
            self._refuse(error)
            return False
        return True

    def _send_events(self, events: list[EpisodeEventRecord]) -> None:
        for number, event in enumerate(events):
            try:
                self._send_event(event)
            except Exception as error:
                if self._is_strict:
                    self._episode_steps.undo()
                    if number:  # The END of the episode before was sent.
                        self._episode_steps.end()
                self._note(error)

    def _wait_for_a_monitor(self) -> None:
        wait_time, self._wait_time = self._wait_time, 0.0
        if not wait_time:
            return
        deadline = time.monotonic() + wait_time
        while not self._monitor_listens():
            if time.monotonic() >= deadline:
                self._problem(
                    'monitor',
                    f'no monitor listens after {wait_time:g} s (wait_for_monitor); the episode '
                    'starts without it, and steps that it does not receive count as missing',
                )
                return
            time.sleep(_LOOK_AGAIN)

    def _refuse(self, error: Exception) -> None:
        self._refused += 1
        self._note(error)

    def _lose(self, error: Exception) -> None:
        if isinstance(error, SafeError):
            self._refused += 1
        else:
            self._lost += 1
        self._note(error)

    def _note(self, error: Exception) -> None:
        """Raise the error if the sink is strict; keep and log it otherwise."""
        if self._is_strict:
            raise error
        kind = (type(error), getattr(error, 'expected', ''))
        self._problem(kind, str(error) if isinstance(error, SafeError) else repr(error))

    def _problem(self, kind: object, text: str) -> None:
        self._last_error = text
        with suppress(Exception):  # A log that fails must not stop the robot.
            self._problems.add(kind, text)
