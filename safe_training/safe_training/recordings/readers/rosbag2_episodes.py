# SPDX-License-Identifier: Apache-2.0
"""The episodes of a recording before their arrays are read, and what messages cannot carry."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import Label
from safe_training.recordings.untrusted.cdr import KIND_LABEL, KIND_START, Event
from vla_feature_bridge.step import PolicyStep

#: Key of ``custom_data`` under which a recording that we wrote keeps what messages cannot carry.
CUSTOM_KEY = 'safe_rollout_set'
CUSTOM_VERSION = 1

#: What is kept there for an episode, and its type.
_EXTRAS = {
    'task_id': int,
    'episode_index': int,
    'failure_step': int,
    'video': str,
    'stamps': bool,
    'unseen': bool,
}


@dataclass
class Episode:
    """What the first pass over a recording finds of an episode: everything but its arrays.

    Attributes
    ----------
    steps : set of int
        Numbers of the steps that the recording holds.
    problem : str
        The first thing that makes it unusable; empty if nothing does.
    events : list of (int, Event)
        Its events in the order of the time at which they were recorded [ns].
    feature : tuple of (name, number of axes, width)
        As in every step.
    first, last : int
        When its first and last step were recorded [ns].
    label : Label
        Its outcome, None while nobody has said it.
    """

    episode_id: str
    instruction: str = ''
    policy: str = ''
    feature: tuple[str, int, int] = ('', 0, 0)
    first: int = 0
    last: int = 0
    problem: str = ''
    steps: set[int] = field(default_factory=set)
    events: list[tuple[int, Event]] = field(default_factory=list)
    label: Label = field(default_factory=lambda: Label(None))

    @classmethod
    def begun_by(cls, step: PolicyStep, time: int) -> Episode:
        """Return the episode of a step that was recorded at ``time`` [ns]."""
        return cls(
            step.episode_id, step.instruction, step.policy, _feature_of(step), first=time, last=time
        )

    def add(self, step: PolicyStep, time: int) -> None:
        """Take note of a step that was recorded at ``time`` [ns]."""
        feature = _feature_of(step)
        if step.step in self.steps:
            self.problem = self.problem or (
                f'expected each step once, found step {step.step} twice; two recordings or two '
                'policies share this episode_id'
            )
        elif feature != self.feature:
            self.problem = self.problem or (
                f'expected features {self.feature[0]!r} of width {self.feature[2]} at every '
                f'step, found {step.feature_name!r} of width {feature[2]} at step {step.step}'
            )
        self.steps.add(step.step)
        self.last = max(self.last, time)

    def check(self) -> str:
        """Return what is wrong with the episode; empty if nothing is."""
        if self.problem:
            return self.problem
        if self.steps != set(range(len(self.steps))):
            missing = next(n for n in range(len(self.steps)) if n not in self.steps)
            return (
                f'expected all steps from 0 to {max(self.steps)}, found {len(self.steps)}, '
                f'without {missing}; the recording began late, or lost messages'
            )
        return ''

    @property
    def task(self) -> str:
        """The last task that an event names, otherwise the instruction."""
        tasks = [event.task for _, event in self.events if event.task]
        return tasks[-1] if tasks else self.instruction

    @property
    def stated_success(self) -> bool | None:
        """The outcome that the events state last."""
        success: bool | None = None
        for _, event in self.events:
            # An END without an outcome takes no earlier label back, a LABEL without one does.
            if event.kind != KIND_START and (event.success is not None or event.kind == KIND_LABEL):
                success = event.success
        return success


def _feature_of(step: PolicyStep) -> tuple[str, int, int]:
    return step.feature_name, step.features.ndim, step.features.shape[-1]


def read_extras(path: Path, text: str | None) -> dict[str, Any]:
    """Read what :mod:`safe_training.recordings.write_bag` wrote into the metadata.

    Returns
    -------
    dict
        ``episodes``: for an id of an episode, its values; ``feature``: as
        ``FeatureSpec.to_dict``. Empty for recordings of others.

    Raises
    ------
    DumpError
        It is not what ``convert`` writes.
    """
    if text is None:
        return {'episodes': {}}
    problem = f'{path}: expected custom data {CUSTOM_KEY!r} as convert writes it, found'
    try:
        extras = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DumpError(f'{problem} {str(error)[:160]}') from None
    if type(extras) is not dict or extras.get('version') != CUSTOM_VERSION:
        raise DumpError(f'{problem} another version')
    episodes = extras.get('episodes')
    if type(episodes) is not dict or type(extras.get('feature')) not in (dict, type(None)):
        raise DumpError(f'{problem} another layout')
    for name, extra in episodes.items():
        if type(extra) is not dict or not all(
            type(value) is _EXTRAS.get(key) and (type(value) is not int or abs(value) < 2**62)
            for key, value in extra.items()
        ):
            raise DumpError(f'{problem} other values for episode {name[:200]!r}')
    return extras
