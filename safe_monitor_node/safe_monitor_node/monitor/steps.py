# SPDX-License-Identifier: Apache-2.0
"""The identity and the result of a step, and counts of steps."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field

import numpy as np

from safe_monitor_node.monitor.alarm import Verdict
from vla_feature_bridge.step import PolicyStep

_READ_OF_FEATURES = 4096


@dataclass(frozen=True, slots=True)
class Publication:
    """Information of the middleware about the publication of a message.

    Attributes
    ----------
    number : int or None
        Number that the publisher gave to the message; None if it is not known.
    time : int
        Time of publication [ns]; 0 if it is not known.
    """

    number: int | None = None
    time: int = 0


@dataclass(frozen=True, slots=True)
class StepId:
    """Identity of a step: episode and index.

    Attributes
    ----------
    episode_id : str
    index : int
        Position in the episode, from 0.
    stamp : int
        Time of the step [ns].
    content : int
        What :func:`content_of` returns; 0 if the content is not known.
    publication : Publication
    """

    episode_id: str
    index: int
    stamp: int
    content: int = field(default=0, compare=False)
    publication: Publication = field(default_factory=Publication, compare=False)

    @classmethod
    def of(cls, step: PolicyStep, publication: Publication | None = None) -> StepId:
        """Return the identity of a policy step."""
        content = content_of(step)
        return cls(step.episode_id, step.step, step.stamp, content, publication or Publication())


def content_of(step: PolicyStep) -> int:
    """Return a number that differs for steps with different content; never 0.

    The number is a checksum of the signals and of at most 4096 numbers of the features, because raw
    features can be large.
    """
    flat = step.features.reshape(-1)
    some = np.ascontiguousarray(flat[:: max(1, flat.size // _READ_OF_FEATURES)])
    signals = np.fromiter(step.signals.values(), np.float32)
    return zlib.crc32(signals.tobytes(), zlib.crc32(some.tobytes())) + 1


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes
    ----------
    score : float
        The detector's score; NaN if the step could not be scored.
    threshold : float
        Threshold at this step. NaN if there is no threshold; +inf if the adaptive threshold is not
        finite.
    verdict : Verdict
        State of the alarm after the step.
    problem : str
        Reason why the step could not be scored or compared; empty if there was no problem.
    probability : float
        Probability that the episode fails, in [0, 1]; NaN if the step was not scored, or if the
        detector folder holds no probability map.
    """

    score: float
    threshold: float
    verdict: Verdict
    problem: str = ''
    probability: float = math.nan


@dataclass
class Counts:
    """Steps and episodes since the monitor was configured.

    Attributes
    ----------
    scored : int
    invalid : int
        Steps that could not be scored.
    missing : int
        Steps that were not received.
    repeated : int
        Steps that came again, or that came after a later step or after END. They are ignored.
    misplaced : int
        Steps that belong to no episode, or that contradict an earlier step.
    episodes : int
    """

    scored: int = 0
    invalid: int = 0
    missing: int = 0
    repeated: int = 0
    misplaced: int = 0
    episodes: int = 0
