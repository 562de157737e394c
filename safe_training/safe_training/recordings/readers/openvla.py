# SPDX-License-Identifier: Apache-2.0
"""Reads OpenVLA rollout dumps: LIBERO and WidowX, one or several samples per step.

One episode is ``task{t}--ep{e}--succ{0|1}.csv`` and ``.pkl`` (and ``.mp4``), in one folder or in
folders of any depth. The pickle holds the hidden states of the action tokens. The csv has one row
for each step: the executed action, and either the probability and entropy of each token (one sample
a step) or variances and cluster entropies over the samples.

With ``feature='none'`` an episode needs no pickle: the csv has everything for the detectors of
token statistics, action variances and signals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import (
    EpisodeSource,
    Pooling,
    ReadOptions,
    wanted_feature,
)
from safe_training.recordings.readers.openvla_table import (
    executed_actions,
    read_table,
    sample_signals,
    token_quantity,
)
from safe_training.recordings.readers.step_features import FLOATS, StepFeatures, shape_text
from safe_training.recordings.untrusted.pickle_file import load_pickle
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import rollout_signals
from vla_feature_bridge.step import NO_FEATURE, ROBOT
from vla_feature_bridge.tensors import first_not_finite

_FEATURE = 'hidden_states'
_NAME = re.compile(r'task(\d{1,9})--ep(\d{1,9})--succ([01])\.(csv|pkl|mp4)')
#: openpi gives its episode records names of the same form, in a folder of this name.
_OPENPI_FOLDER = 'env_records'


@dataclass(frozen=True)
class _Episode:
    """The files of one episode by their ending, and the content of their name."""

    name: str
    stem: Path
    task_id: int
    episode_index: int
    success: bool
    files: dict[str, Path]


class OpenVlaSource(EpisodeSource):
    """An OpenVLA dump folder. Prediction and execution horizon are 1."""

    kind = 'openvla'
    looks_for = 'task{t}--ep{e}--succ{0|1}.csv and .pkl (OpenVLA dump)'
    policy = 'openvla'
    default_pooling: ClassVar[dict[str, Pooling]] = {_FEATURE: (('token', 'last'),)}

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        if options.feature not in (None, _FEATURE, NO_FEATURE):
            raise DumpError(
                f'{path}: expected feature {_FEATURE}, the only one of an OpenVLA dump, '
                f'or {NO_FEATURE}, found {options.feature!r}'
            )
        self._featureless = options.feature == NO_FEATURE
        if not self._featureless:
            self.raw_axes = ('token',)
            self._wanted = wanted_feature(
                path, _FEATURE, self.raw_axes, options, self.default_pooling[_FEATURE]
            )
        self._episodes, self.unmatched = _list_episodes(path)
        self._descriptions: dict[tuple[Path, int], str] = {}
        folders = {episode.stem.parent for episode in self._episodes}
        if len(folders) > 1:
            self.notes.append(f'episodes in {len(folders)} folders, as on WidowX')

    @staticmethod
    def detect(path: Path) -> str | None:
        if not path.is_dir():
            return None
        for file in _walk(path):
            if _NAME.fullmatch(file.name) and file.suffix in ('.csv', '.pkl'):
                return f'holds {file.relative_to(path)}'
        return None

    @property
    def episode_count(self) -> int:
        return len(self._episodes)

    @property
    def task_ids(self) -> list[int]:
        return [episode.task_id for episode in self._episodes]

    def files(self, index: int) -> list[Path]:
        files = self._episodes[index].files
        return [files[suffix] for suffix in ('csv', 'pkl') if suffix in files]

    def check_listing(self) -> None:
        for episode in self._episodes:
            _check_files(episode, self._needed)

    def find_feature(self, index: int) -> FeatureSpec:
        if self._featureless:
            return FeatureSpec(NO_FEATURE, 0)
        return self._read(self._episodes[index], self._wanted)[1]

    def read(self, index: int) -> Rollout:
        return self._read(self._episodes[index], self.feature)[0]

    @property
    def _needed(self) -> tuple[str, ...]:
        return ('csv',) if self._featureless else ('csv', 'pkl')

    def _read(self, episode: _Episode, spec: FeatureSpec) -> tuple[Rollout, FeatureSpec]:
        _check_files(episode, self._needed)
        if self._featureless:
            record = None if 'pkl' not in episode.files else _read_record(episode, ())
            instruction = record['task_description'] if record else self._description_of(episode)
            table = read_table(episode.files['csv'], None)
            steps = len(next(iter(table.values())))
            features, lengths = np.zeros((steps, 0), np.float32), None
        else:
            record = _read_record(episode, ('hidden_states',))
            instruction = record['task_description']
            states = _hidden_states(episode.files['pkl'], record['hidden_states'])
            features, lengths, spec = _features(episode.files['pkl'], states, spec)
            table = read_table(episode.files['csv'], len(features))
        suite = record['task_suite_name'] if record else ''
        actions = executed_actions(episode.files['csv'], table)
        video = episode.files.get('mp4')
        rollout = Rollout(
            features=features,
            feature_lengths=lengths,
            feature_name=str(spec),
            task=instruction or '/'.join(filter(None, [suite, f'task{episode.task_id}'])),
            success=episode.success,
            episode_id=episode.name,
            task_id=episode.task_id,
            episode_index=episode.episode_index,
            instruction=instruction,
            policy=self.policy,
            actions=actions,
            action_space=ROBOT,
            exec_horizon=1,
            token_probability=token_quantity(table, 'prob'),
            token_entropy=token_quantity(table, 'entropy'),
            signals=rollout_signals(actions, 1) | sample_signals(table),
            video=str(video.relative_to(self.path)) if video else '',
        )
        return rollout, spec

    def _description_of(self, episode: _Episode) -> str:
        """Return the instruction for an episode without pickle.

        The instruction of another episode of the same task.
        """
        key = (episode.stem.parent, episode.task_id)
        if key not in self._descriptions:
            self._descriptions[key] = ''
            for other in self._episodes:
                if (other.stem.parent, other.task_id) == key and 'pkl' in other.files:
                    self._descriptions[key] = _read_record(other, ())['task_description']
                    break
        return self._descriptions[key]


# -- files


def _walk(path: Path) -> Iterator[Path]:
    """Yield the files below ``path`` in a fixed order, without following links to folders."""
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if name != _OPENPI_FOLDER)
        if os.path.basename(os.path.abspath(folder)) != _OPENPI_FOLDER:
            yield from (Path(folder, name) for name in sorted(files))


def _list_episodes(path: Path) -> tuple[list[_Episode], list[str]]:
    """Return the episodes, and a message for each file that does not belong to an episode.

    Files of an episode are paired by their names.
    """
    found: dict[tuple[Path, int, int, bool], dict[str, Path]] = {}
    others = []
    for file in _walk(path):
        match = _NAME.fullmatch(file.name)
        if match:
            task, index, success, suffix = match.groups()
            key = (file.parent, int(task), int(index), success == '1')
            found.setdefault(key, {})[suffix] = file
        elif file.suffix == '.pkl':
            others.append(file)
    folders = {folder for folder, *_ in found}
    unmatched = [
        f'{file}: expected a name like task0--ep0--succ1.pkl, found another name; '
        'give the file its old name or move it away'
        for file in others
        if file.parent in folders
    ]
    episodes = []
    for (folder, task_id, index, success), files in sorted(found.items(), key=_order):
        name = (folder.relative_to(path) / f'task{task_id}--ep{index}').as_posix()
        stem = folder / f'task{task_id}--ep{index}--succ{int(success)}'
        if not {'csv', 'pkl'} & set(files):
            continue  # A video without csv or pickle is not an episode.
        if (folder, task_id, index, not success) in found:
            unmatched.append(
                f'{stem}: expected one outcome of this episode, found files of both; '
                'move the wrong files away'
            )
            continue
        episodes.append(_Episode(name, stem, task_id, index, success, files))
    return episodes, unmatched


def _order(item: tuple[tuple[Path, int, int, bool], dict[str, Path]]) -> tuple[str, int, int, bool]:
    (folder, task_id, index, success), _ = item
    return folder.as_posix(), task_id, index, success


def _check_files(episode: _Episode, needed: tuple[str, ...]) -> None:
    for suffix, holds in (('csv', 'its actions'), ('pkl', 'its hidden states')):
        if suffix in needed and suffix not in episode.files:
            present = ' and '.join(sorted(file.name for file in episode.files.values()))
            raise DumpError(
                f'{episode.stem}.{suffix}: expected this file with {holds} next to {present}, '
                'found none; copy it from its source, or leave the episode out (--skip-bad)'
                + ('' if suffix == 'csv' else ', or read without features (--feature none)')
            )


# -- pickle


def _read_record(episode: _Episode, arrays: tuple[str, ...]) -> dict[str, Any]:
    file = episode.files['pkl']
    record = load_pickle(file)
    if type(record) is not dict:
        raise DumpError(
            f'{file}: expected a dict with hidden_states, found {shape_text(record)}; the file '
            'is not an OpenVLA episode'
        )
    index_key = 'episode_idx' if 'episode_idx' in record else 'eposide_idx'
    needed = (*arrays, 'task_description', 'task_id', index_key, 'episode_success')
    missing = [key for key in needed if key not in record]
    if missing:
        raise DumpError(
            f'{file}: expected {", ".join(missing)}, found only '
            f'{", ".join(str(key)[:40] for key in list(record)[:12])}; the file is not an '
            'OpenVLA episode'
        )
    for key in ('task_description', 'task_suite_name'):
        if type(record.setdefault(key, '')) is not str:
            raise DumpError(
                f'{file}: expected {key} as text, found {shape_text(record[key])}; the file is '
                'not an OpenVLA episode'
            )
    for key, named in (
        ('task_id', episode.task_id),
        (index_key, episode.episode_index),
        ('episode_success', int(episode.success)),
    ):
        value = record[key]
        if not isinstance(value, (bool, int, np.integer, np.bool_)) or int(value) != named:
            shown = (
                int(value) if isinstance(value, (int, np.integer, np.bool_)) else shape_text(value)
            )
            raise DumpError(
                f'{file}: expected {key} {named} as the file name says, found {shown}; '
                'the file was renamed or belongs to another episode'
            )
    return record


def _hidden_states(file: Path, value: Any) -> list[np.ndarray] | np.ndarray:
    """Return the hidden states, (tokens, width) for each step, from any of their stored forms."""
    if type(value) is list and value:
        for step, part in enumerate(value):
            if not isinstance(part, np.ndarray) or part.ndim != 2 or part.shape != value[0].shape:
                raise DumpError(
                    f'{file}: expected hidden states (tokens, width) of one shape in every step, '
                    f'found {shape_text(part)} at step {step}, {shape_text(value[0])} at step 0'
                )
            if part.dtype != value[0].dtype:
                raise DumpError(
                    f'{file}: expected hidden states of one dtype, found {part.dtype} at step '
                    f'{step}, {value[0].dtype} at step 0'
                )
    elif not isinstance(value, np.ndarray) or value.ndim != 3 or len(value) == 0:
        raise DumpError(
            f'{file}: expected hidden states of shape (steps, tokens, width), '
            f'found {shape_text(value)}'
        )
    if 0 in value[0].shape or value[0].dtype.name not in FLOATS:
        raise DumpError(
            f'{file}: expected hidden states of shape (steps, tokens, width) as floats, '
            f'found {value[0].dtype} {value[0].shape} at each of {len(value)} steps'
        )
    return value


def _features(
    file: Path, states: list[np.ndarray] | np.ndarray, spec: FeatureSpec
) -> tuple[np.ndarray, np.ndarray | None, FeatureSpec]:
    """Return features, lengths and feature; pools step by step, without a copy of the episode."""
    if not spec.pooled and isinstance(states, np.ndarray):
        StepFeatures(spec, 'hidden states', 1).add(file, 0, states[0])
        bad = first_not_finite(states)
        if bad is not None:
            StepFeatures(spec, 'hidden states', 1).add(file, bad, states[bad])
        return states, None, replace(spec, dim=states.shape[-1])
    steps = StepFeatures(spec, 'hidden states', len(states))
    for step, state in enumerate(states):
        steps.add(file, step, state)
    features, lengths = steps.stack()
    return features, lengths, steps.spec
