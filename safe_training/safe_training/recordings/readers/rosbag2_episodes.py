# SPDX-License-Identifier: Apache-2.0
"""Facts about the episodes of a recording, and metadata that is not in messages.

The facts are known before the arrays are read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import Label
from safe_training.recordings.untrusted.cdr import KIND_LABEL, KIND_START, Event
from vla_feature_bridge.step import PolicyStep

#: Key in ``custom_data`` of our recordings for metadata that messages cannot contain.
CUSTOM_KEY = 'safe_rollout_set'
CUSTOM_VERSION = 1
#: Reason in the events of our recordings.
CONVERTED = 'converted from a rollout set'
#: The problem of the last episode before a lost part of a recording.
CUT = (
    'expected the event of the end of the episode after its last step, found a recording that is '
    'cut or incomplete during the episode'
)
_CONVERT_AGAIN = 'convert the rollout set to a recording again with this version of the software'

#: Fields stored for each episode, with their types.
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
    """Facts about an episode from the first pass over a recording: everything except its arrays.

    Attributes
    ----------
    steps : set of int
        Numbers of the steps that the recording holds.
    problem : str
        The first problem that makes the episode unusable; empty if there is no problem.
    events : list of (int, Event)
        Its events in the order of the time at which they were recorded [ns].
    feature : tuple of (name, number of axes, width)
        Feature name, number of axes and width; equal for all steps.
    action_space : str
        Name of the space of the actions; equal for all steps.
    first, last : int
        Times at which the first and the last step were recorded [ns].
    label : Label
        Label of the episode; its outcome is None if it is unknown.
    """

    episode_id: str
    instruction: str = ''
    policy: str = ''
    feature: tuple[str, int, int] = ('', 0, 0)
    action_space: str = ''
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
            step.episode_id,
            step.instruction,
            step.policy,
            _feature_of(step),
            step.action_space,
            first=time,
            last=time,
        )

    def add(self, step: PolicyStep, time: int) -> None:
        """Record a step with its recording time ``time`` [ns]."""
        feature = _feature_of(step)
        if step.step in self.steps:
            self.problem = self.problem or (
                f'expected each step once, found step {step.step} twice; two recordings or two '
                'policies used the same episode_id'
            )
        elif feature != self.feature:
            self.problem = self.problem or (
                f'expected the feature {self.feature[0]!r} (axes: {self.feature[1]}, width: '
                f'{self.feature[2]}) at all steps, found the feature {step.feature_name!r} (axes: '
                f'{feature[1]}, width: {feature[2]}) at step {step.step}'
            )
        elif step.action_space != self.action_space:
            self.problem = self.problem or (
                f'expected the action space {self.action_space!r} at all steps, found '
                f'{step.action_space!r} at step {step.step}'
            )
        self.steps.add(step.step)
        self.last = max(self.last, time)

    def check(self) -> str:
        """Return the problem of the episode; empty if there is none."""
        if self.problem:
            return self.problem
        if self.steps != set(range(len(self.steps))):
            missing = next(n for n in range(len(self.steps)) if n not in self.steps)
            return (
                f'expected all steps from 0 to {max(self.steps)}, found {len(self.steps)} steps '
                f'without step {missing}; the recording started after the start of the episode, '
                'or messages were lost'
            )
        return ''

    @property
    def task(self) -> str:
        """The task in the last event that has a task, otherwise the instruction."""
        tasks = [event.task for _, event in self.events if event.task]
        return tasks[-1] if tasks else self.instruction

    @property
    def stated_success(self) -> bool | None:
        """The last outcome in the events."""
        success: bool | None = None
        for _, event in self.events:
            # An END without an outcome does not withdraw an earlier label. A LABEL without an
            # outcome does.
            if event.kind != KIND_START and (event.success is not None or event.kind == KIND_LABEL):
                success = event.success
        return success


def _feature_of(step: PolicyStep) -> tuple[str, int, int]:
    return step.feature_name, step.features.ndim, step.features.shape[-1]


def unlabelled_note(path: Path, names: list[str]) -> str:
    """Return the note about episodes without an outcome, with the command that labels them."""
    listed = ', '.join(map(repr, names[:8]))
    more = f' and {len(names) - 8} more' if len(names) > 8 else ''
    return (
        f'{len(names)} episodes have no outcome: {listed}{more}; label the episodes with: '
        f'python -m safe_training label {shlex.quote(str(path))}'
    )


def read_extras(path: Path, text: str | None) -> dict[str, Any]:
    """Read the metadata of :mod:`safe_training.recordings.write_bag`.

    Returns
    -------
    dict
        ``episodes``: for an id of an episode, its values; ``feature``: as ``FeatureSpec.to_dict``.
        Empty for recordings that were not written by this software.

    Raises
    ------
    DumpError
        The metadata does not have the form that ``convert`` writes.
    """
    if text is None:
        return {'episodes': {}}
    where = str(path)
    expected = f'the custom data {CUSTOM_KEY!r} in the form that convert writes'
    try:
        extras = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DumpError(
            where=where,
            expected=expected,
            found=f'text that is not JSON ({str(error)[:160]})',
            advice=_CONVERT_AGAIN,
        ) from None
    if type(extras) is not dict or extras.get('version') != CUSTOM_VERSION:
        raise DumpError(
            where=where,
            expected=expected,
            found='a different version',
            advice=_CONVERT_AGAIN,
        )
    episodes = extras.get('episodes')
    if type(episodes) is not dict or type(extras.get('feature')) not in (dict, type(None)):
        raise DumpError(
            where=where,
            expected=expected,
            found='a different layout',
            advice=_CONVERT_AGAIN,
        )
    for name, extra in episodes.items():
        if type(extra) is not dict or not all(
            type(value) is _EXTRAS.get(key) and (type(value) is not int or abs(value) < 2**62)
            for key, value in extra.items()
        ):
            raise DumpError(
                where=where,
                expected=expected,
                found=f'fields with a wrong type for episode {name[:200]!r}',
                advice=_CONVERT_AGAIN,
            )
    return extras


def lost_extras(episodes: Mapping[str, Episode], named: Container[str]) -> list[str]:
    """Return a note if convert wrote the recording, but its metadata is lost.

    Parameters
    ----------
    episodes : mapping of str to Episode
    named : container of str
        Names of the episodes in the ``custom_data`` of the recording.
    """
    lost = [
        name
        for name, episode in episodes.items()
        if name not in named and any(event.reason == CONVERTED for _, event in episode.events)
    ]
    if not lost:
        return []
    return [
        f'convert wrote {len(lost)} of these episodes, but the custom_data of the '
        'recording does not name them: unseen tasks count as seen, failure steps and '
        'videos are lost, and tasks and episodes get new numbers; convert the rollout '
        'set to a recording again'
    ]
