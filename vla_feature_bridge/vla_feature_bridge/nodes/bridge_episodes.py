# SPDX-License-Identifier: Apache-2.0
"""Three kinds of channels, which number steps and begin episodes in different ways. No ROS.

* ``SenderEpisodes``: the source begins its episodes and numbers its steps. The channel forwards the
steps and checks the numbers for gaps.
* ``GivenEpisodes``: the robot begins the episodes. The channel gives the steps of the source new
  numbers.
* ``JoinedEpisodes``: the data come from topics. The channel makes the steps from the messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vla_feature_bridge.episode_steps import EpisodeEventRecord, EpisodeSteps
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.bridge_boundaries import Boundary, InstructionRule
from vla_feature_bridge.nodes.bridge_channel import Channel, ChannelError, Outputs
from vla_feature_bridge.signals import SignalStream
from vla_feature_bridge.step import PolicyStep


class SenderEpisodes(Channel):
    """Forwards the episodes and the step numbers of a source."""

    def __init__(self, name: str, outputs: Outputs, clock: Callable[[], int]) -> None:
        super().__init__(name, outputs, clock)
        self._next = 0
        self._ended = ''

    def take_step(self, step: PolicyStep) -> None:
        """Publish a step with the number of the source, unless it was already published."""
        self._arrived(step.stamp)
        if not step.episode_id:
            self.counts.refused += 1
            raise ChannelError(
                where=f'step {step.step}', expected='an episode_id', found='an empty text'
            )
        if step.episode_id != self.running:
            if step.episode_id == self._ended and step.step < self._next:
                self.counts.repeated += 1
                return
            self._begin_without_start(step)
        if step.step < self._next:
            self.counts.repeated += 1
            return
        self._lost(step.step - self._next, f'before step {step.step}')
        self._next = step.step + 1
        self._publish(step)

    def take_event(self, event: EpisodeEventRecord) -> None:
        """Publish an event of the source. A START that is sent again changes nothing."""
        if event.kind == 'start':
            if event.episode_id != self.running:
                self._begin_numbered(event)
        elif event.kind == 'end':
            if event.episode_id == self.running:
                self._ended = event.episode_id
                self._finish(event)
            elif event.episode_id != self._ended:
                # Its START was lost, or the episode ended while no bridge ran. The outcome is still
                # published.
                self._outputs.publish_event(event)
        else:
            self._outputs.publish_event(event)

    def end(self, boundary: Boundary) -> bool:
        """End the running episode, because the connection of its source is lost."""
        self._ended = self.running or self._ended
        return super().end(boundary)

    def _begin_without_start(self, step: PolicyStep) -> None:
        again = step.episode_id == self._ended
        event = EpisodeEventRecord(
            kind='start',
            episode_id=step.episode_id,
            task=self._start_record.task if again and self._start_record else '',
            instruction=step.instruction,
            reason='the source came back' if again else 'the START of the source was lost',
            stamp=step.stamp or self._clock(),
        )
        self._begin_numbered(event)
        self.note(f'episode {step.episode_id!r}: {event.reason}')

    def _begin_numbered(self, event: EpisodeEventRecord) -> None:
        # An episode that continues after its END keeps its numbers, so that a gap is still
        # detected.
        if event.episode_id != self._ended:
            self._next = 0
        self._begin(event)


class GivenEpisodes(Channel):
    """Gives the steps of a source new numbers in episodes that the robot begins and ends.

    Parameters
    ----------
    begin_with_step : bool
        True if a step begins an episode when no episode runs.
    instruction_rule : InstructionRule, optional
        Finds boundaries in the instructions of the steps.
    """

    def __init__(
        self,
        name: str,
        outputs: Outputs,
        clock: Callable[[], int],
        begin_with_step: bool = False,
        instruction_rule: InstructionRule | None = None,
    ) -> None:
        super().__init__(name, outputs, clock)
        self._begin_with_step, self._instruction_rule = begin_with_step, instruction_rule
        self._number = 0
        self._source: tuple[str, int] | None = None

    def take_step(self, step: PolicyStep) -> None:
        """Publish a step of the source as the next step of the running episode."""
        self._arrived(step.stamp)
        gap = self._gap(step)
        if gap < 0:
            self.counts.repeated += 1
            return
        if self._instruction_rule is not None:
            self.take_boundary(self._instruction_rule.take(step.instruction))
        if not self.running and self._begin_with_step:
            self.start(Boundary('start', instruction=step.instruction, reason='steps come'))
        if not self.running:
            self._outside()
            return
        self._lost(gap, 'between the source and the bridge')
        self._number += gap
        start = self._start_record
        numbered = replace(
            step,
            episode_id=self.running,
            step=self._number,
            instruction=step.instruction or (start.instruction if start else ''),
        )
        if self._number == 0 and step.actions is not None:
            # The previous chunk belongs to another episode.
            numbered.signals = {**step.signals, **self._first_signals(step)}
        self._number += 1
        self._publish(numbered)

    def _first_signals(self, step: PolicyStep) -> dict[str, float]:
        assert step.actions is not None
        try:
            return SignalStream(step.exec_horizon).step(step.actions)
        except SafeError:
            self.counts.refused += 1
            self._number += 1
            raise

    def take_event(self, event: EpisodeEventRecord) -> None:
        """Handle an event of the source. In this channel, it does not begin or end an episode."""

    def _begin(self, event: EpisodeEventRecord) -> None:
        self._number = 0
        super()._begin(event)

    def _gap(self, step: PolicyStep) -> int:
        """Return the number of steps missing before this step; -1 if it was already received."""
        before, self._source = self._source, (step.episode_id, step.step)
        if before is None:
            return 0
        episode, number = before
        if step.episode_id != episode:
            return step.step
        if step.step <= number:
            self._source = before
            return -1
        return step.step - number - 1


class JoinedEpisodes(Channel):
    """Makes the steps of a policy from features and actions on topics.

    Parameters
    ----------
    steps : EpisodeSteps
        Checks and numbers the steps.
    begin_with_step : bool
        True if a step begins an episode when no episode runs.

    Attributes
    ----------
    on_begin : callable
        Called when an episode begins.
    """

    def __init__(
        self,
        name: str,
        outputs: Outputs,
        clock: Callable[[], int],
        steps: EpisodeSteps,
        begin_with_step: bool = False,
    ) -> None:
        super().__init__(name, outputs, clock)
        self.on_begin: Callable[[], None] = lambda: None
        self._steps = steps
        self._begin_with_step = begin_with_step

    def start(self, boundary: Boundary) -> str:
        """End the running episode, begin a new episode and return the id of the new episode."""
        records = self._steps.start(
            task=boundary.task or self.default_task,
            instruction=boundary.instruction,
            episode_id=boundary.episode_id,
        )
        for record in records[:-1]:
            self._finish(record)
        self._begin(replace(records[-1], reason=boundary.reason))
        self.on_begin()
        return self.running

    def end(self, boundary: Boundary) -> bool:
        """End the running episode. Return False if no episode runs."""
        if not self.running:
            return False
        self._finish(self._steps.end(boundary.success, boundary.reason))
        return True

    def take_joined(
        self,
        features: np.ndarray | None,
        actions: np.ndarray | None,
        stamp: int,
        instruction: str | None,
        missing: int,
    ) -> None:
        """Publish the next step.

        Parameters
        ----------
        features, actions, stamp, instruction
            As in :meth:`EpisodeSteps.step`.
        missing : int
            Number of inferences before this one that could not be joined.

        The number of a refused step is not used again, so that the reader notices the gap.
        """
        self._arrived(stamp)
        if not self.running and self._begin_with_step:
            self.start(Boundary('start', instruction=instruction or '', reason='steps come'))
            missing = 0
        if not self.running:
            self._outside()
            return
        self._skip(missing)
        try:
            step = self._steps.step(features, actions, stamp=stamp, instruction=instruction)
        except SafeError as error:
            self.counts.refused += 1
            self._steps.skip()
            self.note(str(error))
            return
        self._publish(step)

    def refuse(self, problem: str, stamp: int, missing: int) -> None:
        """Count a step whose messages cannot be read. The reader notices the gap in the numbers.

        Parameters
        ----------
        problem : str
            Why.
        stamp, missing
            As in :meth:`take_joined`.
        """
        self._arrived(stamp)
        self.counts.refused += 1
        self.note(problem)
        if self.running:
            self._skip(missing)
            self._steps.skip()

    def _skip(self, missing: int) -> None:
        self._lost(missing, 'because their messages found no partners')
        for _ in range(missing):
            self._steps.skip()
