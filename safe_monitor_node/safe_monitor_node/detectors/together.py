# SPDX-License-Identifier: Apache-2.0
"""Scores the next steps of several streams together.

With one matrix product for all steps, a detector reads its arrays only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from safe_monitor_node.detectors.base import Stream
    from vla_feature_bridge.step import PolicyStep

Answer = float | Exception
"""The score of a step, or the reason why the step has no score."""


def one_by_one(streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
    """Return the results of `Stream.step`, one stream after another."""
    answers: list[Answer] = []
    for stream, step in zip(streams, steps, strict=True):
        try:
            answers.append(stream.step(step))
        except Exception as error:  # The other streams belong to other robots.
            answers.append(error)
    return answers


def in_one_batch(
    steps: Sequence[PolicyStep],
    vector_of: Callable[[PolicyStep], np.ndarray],
    score: Callable[[np.ndarray, list[int]], Sequence[float]],
) -> list[Answer]:
    """Return the results of several steps whose vectors are scored in one call.

    Parameters
    ----------
    steps : sequence of PolicyStep
    vector_of : callable
        Returns the checked features of a step as float32, shape (dim,); raises if there are none.
    score : callable
        Called with the vectors, float32 of shape (n, dim), and the positions of their steps.
        Returns n scores.
    """
    answers: list[Answer] = []
    vectors, good = [], []
    for position, step in enumerate(steps):
        try:
            vectors.append(vector_of(step))
        except Exception as error:  # The other steps belong to other robots.
            answers.append(error)
        else:
            answers.append(np.nan)
            good.append(position)
    if good:
        for position, value in zip(good, score(np.stack(vectors), good), strict=True):
            answers[position] = value
    return answers
