# SPDX-License-Identifier: Apache-2.0
"""The episodes of a rollout set or a recording, with their labels.

The labels of a rollout set are in its index. The labels of a recording are in a csv file beside the
recording. The recording itself is never changed.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.label_files import store_labels
from safe_training.recordings.labels import (
    Label,
    check_step,
    set_labels,
    write_set_labels,
)
from safe_training.recordings.readers.base import ReadOptions
from safe_training.recordings.readers.rosbag2 import RosbagSource
from safe_training.recordings.untrusted.bag import detect_bag
from vla_feature_bridge.rollout_set.layout import MANIFEST
from vla_feature_bridge.rollout_set.reader import RolloutSet


class Labelled(ABC):
    """Episodes that can be labelled.

    Attributes
    ----------
    path : Path
        The rollout set or the recording.
    labels : dict of str to Label
        The label of each episode, by its identifier.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: dict[str, Label] = {}
        #: Reasons why parts of the recording and episodes cannot be read. These episodes cannot be
        #: labelled.
        self.left_out: list[str] = []

    @abstractmethod
    def describe(self, episode: str) -> dict[str, Any]:
        """Return facts by which a person can recognise an episode.

        The entry ``steps`` is the length of the episode.
        """

    @abstractmethod
    def _write(self, labels: dict[str, Label]) -> None: ...

    @property
    def unlabelled(self) -> list[str]:
        """Episodes without an outcome."""
        return [name for name, label in self.labels.items() if label.success is None]

    def set(self, labels: dict[str, Label]) -> None:
        """Check all labels, then write all labels.

        Raises
        ------
        DumpError
            An episode does not exist, or a failure step lies outside its episode. Nothing is
            written.
        """
        for name, label in labels.items():
            where = f'{self.path}: episode {name!r}'
            if name not in self.labels:
                raise DumpError(
                    where=where,
                    expected=f'the name of one of the {len(self.labels)} episodes',
                    found='no episode with this name',
                    advice='print the names of all episodes with: python -m safe_training label '
                    f'{shlex.quote(str(self.path))} --list --all',
                )
            check_step(label, int(self.describe(name)['steps']), where)
        self._write(labels)
        self.labels |= labels


class _LabelledSet(Labelled):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.labels = set_labels(path)
        self._rollouts = RolloutSet.open(path)
        self._positions = {name: n for n, name in enumerate(self._rollouts.episode_ids)}

    def describe(self, episode: str) -> dict[str, Any]:
        position = self._positions[episode]
        return {
            'task': self._rollouts.tasks[position],
            'steps': int(self._rollouts.lengths[position]),
        }

    def _write(self, labels: dict[str, Label]) -> None:
        write_set_labels(self.path, labels)


class _LabelledRecording(Labelled):
    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path)
        # An episode that cannot be read needs no label, and the others can still be labelled.
        self._source = RosbagSource(path, why, ReadOptions(skip_bad=True))
        self.labels = self._source.labels
        self.left_out = self._source.left_out()

    def describe(self, episode: str) -> dict[str, Any]:
        return self._source.describe(episode)

    def _write(self, labels: dict[str, Label]) -> None:
        store_labels(self.path, labels)


def open_labelled(path: Path) -> Labelled:
    """Return the episodes of a rollout set or of a recording, with their labels.

    Raises
    ------
    DumpError
        The path is neither a rollout set nor a recording.
    RolloutSetError
        The rollout set is damaged.
    """
    if not path.exists():
        raise DumpError(
            where=str(path),
            expected='a rollout set or a recording',
            found='no file or folder',
            advice='check the path',
        )
    if (path / MANIFEST).is_file():
        return _LabelledSet(path)
    why = detect_bag(path)
    if why is None:
        raise DumpError(
            where=str(path),
            expected=f'a rollout set ({MANIFEST}) or a rosbag2 recording',
            found='a different format',
            advice='the labels of a dump cannot be changed: convert the dump to a rollout set, '
            'then label the rollout set',
        )
    return _LabelledRecording(path, why)
