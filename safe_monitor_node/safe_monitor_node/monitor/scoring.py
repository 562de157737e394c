# SPDX-License-Identifier: Apache-2.0
"""Steps that wait for their scores: one step alone, or the steps of many robots together. No ROS.

What a monitor does with a step is a generator: it yields the step of the detector that it wants a
score of, and goes on when it gets the score. Therefore the same code judges a step, whether it is
scored alone or together with the steps of other robots.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from safe_monitor_node.detectors import Detector, Stream
from safe_monitor_node.detectors.together import Answer
from vla_feature_bridge.step import PolicyStep

T = TypeVar('T')


@dataclass(frozen=True, slots=True)
class Wanted:
    """The next step of a stream of a detector, whose score is wanted."""

    detector: Detector
    stream: Stream
    step: PolicyStep


Scoring = Generator[Wanted, float, T]
"""Yields what it wants a score of, gets the score or the exception of the detector; returns T."""


def scored_alone(scoring: Scoring[T]) -> T:
    """Run a scoring to its end; each score is computed when it is wanted."""
    try:
        wanted = next(scoring)
        while True:
            try:
                score = wanted.stream.step(wanted.step)
            except Exception as error:  # The scoring says what the error means.
                wanted = scoring.throw(error)
            else:
                wanted = scoring.send(score)
    except StopIteration as end:
        result: T = end.value
        return result


def scored_together(scorings: Sequence[Scoring[T]]) -> list[T | Exception]:
    """Run scorings to their ends; what they want at the same time is scored together.

    The scorings must not share streams.

    Returns
    -------
    list
        The result of each scoring, or the exception that it raised. Such an exception has no effect
        on the other scorings.
    """
    results: dict[int, T | Exception] = {}
    waiting: dict[int, Wanted] = {}

    def go_on(index: int, resume: Callable[[], Wanted]) -> None:
        try:
            waiting[index] = resume()
        except StopIteration as end:
            results[index] = end.value
        except Exception as error:  # The other scorings are of other robots.
            results[index] = error

    for index, scoring in enumerate(scorings):
        go_on(index, partial(next, scoring))
    while waiting:
        now = dict(waiting)
        waiting.clear()
        for index, answer in _answers(now).items():
            scoring = scorings[index]
            if isinstance(answer, Exception):
                go_on(index, partial(scoring.throw, answer))
            else:
                go_on(index, partial(scoring.send, answer))
    return [results[index] for index in range(len(scorings))]


def _answers(wanted: Mapping[int, Wanted]) -> dict[int, Answer]:
    """Return the answers by index; each detector scores all its steps in one call."""
    groups: dict[int, list[int]] = {}
    for index, one in wanted.items():
        groups.setdefault(id(one.detector), []).append(index)
    answers: dict[int, Answer] = {}
    for indices in groups.values():
        several = [wanted[index] for index in indices]
        answers.update(zip(indices, _answers_of(several), strict=True))
    return answers


def _answers_of(several: Sequence[Wanted]) -> list[Answer]:
    streams, steps = [one.stream for one in several], [one.step for one in several]
    try:
        answers = list(several[0].detector.step_many(streams, steps))
        if len(answers) != len(several):
            raise ValueError(f'{len(answers)} scores of {len(several)} steps')
        return answers
    except Exception as error:  # A detector's fault: none of its steps has a score.
        return [error] * len(several)
