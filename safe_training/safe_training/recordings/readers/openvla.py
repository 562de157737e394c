# SPDX-License-Identifier: Apache-2.0
"""Reads OpenVLA rollout dumps: LIBERO and WidowX, one or several samples per step.

One episode is ``task{t}--ep{e}--succ{0|1}.csv`` and ``.pkl`` (and ``.mp4``), in one folder or in
folders of any depth. The pickle holds the hidden states of the action tokens. The csv has one row
for each step: the executed action, and either the probability and entropy of each token (one sample
a step) or variances and cluster entropies over the samples.

With ``feature='none'``, an episode needs no pickle: the csv has all data for detectors that use
token statistics, action variances or signals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from safe_training.recordings.errors import COPY_OR_LEAVE_OUT, LEAVE_OUT, RENAMED, DumpError
from safe_training.recordings.readers.base import (
    EpisodeSource,
    Pooling,
    ReadOptions,
    wanted_feature,
)
from safe_training.recordings.readers.listing import walk
from safe_training.recordings.readers.openvla_table import (
    executed_actions,
    read_table,
    sample_signals,
    token_quantity,
    unknown_columns,
)
from safe_training.recordings.readers.plain_values import number_text, plain_text, whole_number
from safe_training.recordings.readers.step_features import FLOATS, StepFeatures, shape_text
from safe_training.recordings.untrusted.pickle_file import load_pickle
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import rollout_signals
from vla_feature_bridge.step import NO_FEATURE, ROBOT
from vla_feature_bridge.tensors import first_not_finite

_FEATURE = 'hidden_states'
_NOT_AN_EPISODE = f'the file is not the pickle of an OpenVLA episode: {COPY_OR_LEAVE_OUT}'
_KEYS = {
    *('hidden_states', 'task_suite_name', 'task_description', 'task_id', 'episode_idx'),
    *('eposide_idx', 'episode_success', 'mp4_path'),
}
_NAME = re.compile(r'task(\d{1,9})--ep(\d{1,9})--succ([01])\.(csv|pkl|mp4)')
#: openpi uses the same form of names for its episode records, in a folder of this name.
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
                where=str(path),
                expected=f'the feature {_FEATURE} or {NO_FEATURE}, the only choices for an '
                'OpenVLA dump',
                found=repr(options.feature),
                advice='give one of these names as --feature',
            )
        self._featureless = options.feature == NO_FEATURE
        if not self._featureless:
            self.raw_axes = ('token',)
            self._wanted = wanted_feature(
                path, _FEATURE, self.raw_axes, options, self.default_pooling[_FEATURE]
            )
        self._episodes, self.unmatched = _list_episodes(path, self.notes)
        self._descriptions: dict[tuple[Path, int], str] = {}
        folders = {episode.stem.parent for episode in self._episodes}
        if len(folders) > 1:
            self.notes.append(f'the episodes are in {len(folders)} folders, as in a WidowX dump')

    @staticmethod
    def detect(path: Path) -> str | None:
        if not path.is_dir():
            return None
        for file in _files(path):
            if _NAME.fullmatch(file.name) and file.suffix in ('.csv', '.pkl'):
                return f'contains {file.relative_to(path)}'
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
            _check_files(self._episodes[index], self._needed)
            file = self._episodes[index].files['csv']
            self.note_not_read(file, unknown_columns(file))
            return FeatureSpec(NO_FEATURE, 0)
        episode = self._episodes[index]
        spec = self._read(episode, self._wanted)[1]
        self.note_not_read(episode.files['pkl'], _set_aside(_read_record(episode, ())))
        self.note_not_read(episode.files['csv'], unknown_columns(episode.files['csv']))
        return spec

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
        """Return the instruction of an episode without a pickle.

        The instruction comes from another episode of the same task.
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


def _files(path: Path, notes: list[str] | None = None) -> Iterator[Path]:
    """Yield the files below ``path`` in a fixed order."""
    for _, files in walk(path, (_OPENPI_FOLDER,), notes):
        yield from files


def _list_episodes(path: Path, notes: list[str]) -> tuple[list[_Episode], list[str]]:
    """Return the episodes, and a message for each file that does not belong to an episode.

    Files of an episode are paired by their names. ``notes`` gets the files that are not read.
    """
    found: dict[tuple[Path, int, int, bool], dict[str, Path]] = {}
    others = []
    for file in _files(path, notes):
        match = _NAME.fullmatch(file.name)
        if match:
            task, index, success, suffix = match.groups()
            key = (file.parent, int(task), int(index), success == '1')
            found.setdefault(key, {})[suffix] = file
        elif file.suffix.lower() in ('.csv', '.pkl'):
            others.append(file)
    folders = {folder for folder, *_ in found}
    unmatched = [
        f'{file}: expected a file name like task0--ep0--succ1.pkl, found {file.name}; '
        'rename the file, or move the file to another folder'
        for file in others
        if file.parent in folders and file.suffix == '.pkl'
    ]
    notes += _ignored(path, [f for f in others if f.parent not in folders or f.suffix != '.pkl'])
    episodes = []
    for (folder, task_id, index, success), files in sorted(found.items(), key=_order):
        name = (folder.relative_to(path) / f'task{task_id}--ep{index}').as_posix()
        stem = folder / f'task{task_id}--ep{index}--succ{int(success)}'
        if not {'csv', 'pkl'} & set(files):
            continue  # A video without csv or pickle is not an episode.
        if (folder, task_id, index, not success) in found:
            unmatched.append(
                f'{stem}: expected files with one outcome of this episode (succ0 or succ1), found '
                'files with both outcomes; move the wrong files to another folder'
            )
            continue
        episodes.append(_Episode(name, stem, task_id, index, success, files))
    return episodes, unmatched


def _ignored(path: Path, files: list[Path]) -> list[str]:
    if not files:
        return []
    names = ', '.join(file.relative_to(path).as_posix() for file in files[:8])
    more = f' and {len(files) - 8} more' if len(files) > 8 else ''
    return [f'these files do not have the name of an episode and are not read: {names}{more}']


def _order(item: tuple[tuple[Path, int, int, bool], dict[str, Path]]) -> tuple[str, int, int, bool]:
    (folder, task_id, index, success), _ = item
    return folder.as_posix(), task_id, index, success


def _check_files(episode: _Episode, needed: tuple[str, ...]) -> None:
    featureless = f', or read the dump without features with --feature {NO_FEATURE}'
    for suffix, content, more in (
        ('csv', 'the actions of the episode', ''),
        ('pkl', 'the hidden states of the episode', featureless),
    ):
        if suffix in needed and suffix not in episode.files:
            present = ' and '.join(sorted(file.name for file in episode.files.values()))
            raise DumpError(
                where=f'{episode.stem}.{suffix}',
                expected=f'a file with {content} beside {present}',
                found='no file',
                advice=COPY_OR_LEAVE_OUT + more,
            )


# -- pickle


def _read_record(episode: _Episode, arrays: tuple[str, ...]) -> dict[str, Any]:
    file = episode.files['pkl']
    record = load_pickle(file)
    if type(record) is not dict:
        raise DumpError(
            where=str(file),
            expected='a dict with the values of an OpenVLA episode',
            found=shape_text(record),
            advice=_NOT_AN_EPISODE,
        )
    index_key = 'episode_idx' if 'episode_idx' in record else 'eposide_idx'
    needed = (*arrays, 'task_description', 'task_id', index_key, 'episode_success')
    missing = [key for key in needed if key not in record]
    if missing:
        raise DumpError(
            where=str(file),
            expected=f'the keys {", ".join(missing)}',
            found=f'only the keys {", ".join(str(key)[:40] for key in list(record)[:12])}',
            advice=_NOT_AN_EPISODE,
        )
    for key in ('task_description', 'task_suite_name'):
        text = plain_text(record.get(key, ''))
        if text is None:
            raise DumpError(
                where=str(file),
                expected=f'{key} as text',
                found=shape_text(record[key]),
                advice=_NOT_AN_EPISODE,
            )
        record[key] = text
    for key, named in (
        ('task_id', episode.task_id),
        (index_key, episode.episode_index),
        ('episode_success', int(episode.success)),
    ):
        if whole_number(record[key]) != named:
            raise DumpError(
                where=str(file),
                expected=f'{key} {named}, as in the file name',
                found=number_text(record[key]) or shape_text(record[key]),
                advice=RENAMED if number_text(record[key]) else _NOT_AN_EPISODE,
            )
    return record


def _set_aside(record: dict[str, Any]) -> list[str]:
    """Return the keys of a record that are not known, and therefore not read."""
    return [key for key in record if key not in _KEYS]


def _hidden_states(file: Path, value: Any) -> list[np.ndarray] | np.ndarray:
    """Return the hidden states, (tokens, width) for each step, from any of their stored forms."""
    if type(value) is tuple:
        value = list(value)
    if type(value) is list and value:
        for step, part in enumerate(value):
            if not isinstance(part, np.ndarray) or part.ndim != 2 or part.shape != value[0].shape:
                first = f' and {shape_text(value[0])} at step 0' if step else ''
                raise DumpError(
                    where=str(file),
                    expected='hidden states with one shape (tokens, width) at all steps',
                    found=f'{shape_text(part)} at step {step}{first}',
                    advice=LEAVE_OUT,
                )
            if part.dtype != value[0].dtype:
                raise DumpError(
                    where=str(file),
                    expected='hidden states with one dtype at all steps',
                    found=f'{part.dtype} at step {step} and {value[0].dtype} at step 0',
                    advice=LEAVE_OUT,
                )
    elif not isinstance(value, np.ndarray) or value.ndim != 3 or len(value) == 0:
        raise DumpError(
            where=str(file),
            expected='hidden states of shape (steps, tokens, width)',
            found=shape_text(value),
            advice=LEAVE_OUT,
        )
    if 0 in value[0].shape or value[0].dtype.name not in FLOATS:
        raise DumpError(
            where=str(file),
            expected='hidden states of shape (steps, tokens, width) with float values and no '
            'empty axis',
            found=f'{len(value)} steps of {value[0].dtype} with shape {value[0].shape}',
            advice=LEAVE_OUT,
        )
    return value


def _features(
    file: Path, states: list[np.ndarray] | np.ndarray, spec: FeatureSpec
) -> tuple[np.ndarray, np.ndarray | None, FeatureSpec]:
    """Return features, lengths and feature. Pool step by step, without a copy of the episode."""
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
