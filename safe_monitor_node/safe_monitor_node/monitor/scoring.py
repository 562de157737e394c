# SPDX-License-Identifier: Apache-2.0
"""Scores waiting steps: one step alone, or the steps of many robots together. No ROS.

A monitor handles a step in a generator: the generator yields a request for a score, and continues
when it gets the score. Therefore the same code is used for one step alone and for the steps of many
robots together.
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
    """A request for the score of the next step of a stream of a detector."""

    detector: Detector
    stream: Stream
    step: PolicyStep


Scoring = Generator[Wanted, float, T]
"""Yields requests for scores, gets the score or the exception of the detector, and returns T."""


def scored_alone(scoring: Scoring[T]) -> T:
    """Run a scoring to its end; each score is computed when it is requested."""
    try:
        wanted = next(scoring)
        while True:
            try:
                score = wanted.stream.step(wanted.step)
            except Exception as error:  # The scoring handles the error.
                wanted = scoring.throw(error)
            else:
                wanted = scoring.send(score)
    except StopIteration as end:
        result: T = end.value
        return result


def scored_together(scorings: Sequence[Scoring[T]]) -> list[T | Exception]:
    """Run scorings to their ends; simultaneous requests are scored together.

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
        except Exception as error:  # The other scorings belong to other robots.
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
    """Return the results by index; each detector scores all its steps in one call."""
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
