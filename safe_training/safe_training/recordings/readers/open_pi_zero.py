# SPDX-License-Identifier: Apache-2.0
"""Reads open-pi-zero's rollouts in SimplerEnv: bridge (WidowX) and fractal (Google Robot).

``ROOT/{task}/{name}_meta.json`` says task, episode and outcome. ``{name}.pkl`` holds a list over
the inferences with ``sampled_action_embeds`` ``(samples, denoising steps, horizon, width)`` and
``sampled_actions`` ``(samples, horizon, action_dim)``. The last sample is the executed sample: its
embedding is the feature, and it comes first in the actions of the rollout.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
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
from safe_training.recordings.readers.listing import list_names
from safe_training.recordings.readers.step_features import (
    FLOATS,
    StepFeatures,
    bad_values,
    shape_text,
)
from safe_training.recordings.untrusted.pickle_file import load_pickle
from safe_training.recordings.untrusted.text_file import read_text
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import SignalError, rollout_signals
from vla_feature_bridge.step import NO_FEATURE
from vla_feature_bridge.tensors import first_not_finite

#: For each task folder, the number of actions that are executed before the next inference. The
#: order of the folders gives the task numbers.
TASKS = {
    'widowx_carrot_on_plate': 4,
    'widowx_put_eggplant_in_basket': 4,
    'widowx_spoon_on_towel': 4,
    'widowx_stack_cube': 4,
    'google_robot_move_near_v0': 2,
    'google_robot_open_drawer': 2,
    'google_robot_close_drawer': 2,
    'google_robot_place_apple_in_closed_top_drawer': 2,
}
FEATURE = 'sampled_action_embeds'

_META = '_meta.json'
_NOT_AN_EPISODE = f'the file does not belong to an open-pi-zero episode: {COPY_OR_LEAVE_OUT}'
_NAME = re.compile(r'ep(?:isode)?_?(\d{1,9})_+succ(?:ess)?_?([01])')
_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class _Episode:
    task: str
    task_id: int
    name: str
    files: tuple[str, ...]


class OpenPiZeroSource(EpisodeSource):
    """Task folders of open-pi-zero in SimplerEnv, of one robot or of both."""

    kind = 'open_pi_zero'
    looks_for = f'{next(iter(TASKS))}/*{_META} and .pkl (open-pi-zero in SimplerEnv)'
    policy = 'open_pi_zero'
    default_pooling: ClassVar[dict[str, Pooling]] = {
        FEATURE: (('horizon', 'first'), ('denoise', 'first'))
    }

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        if options.feature not in (None, FEATURE, NO_FEATURE):
            raise DumpError(
                where=str(path),
                expected=f'the feature {FEATURE} or {NO_FEATURE}, the only choices for an '
                'open-pi-zero dump',
                found=repr(options.feature),
                advice='give one of these names as --feature',
            )
        self._featureless = options.feature == NO_FEATURE
        if not self._featureless:
            self.raw_axes = ('denoise', 'horizon')
            self._wanted = wanted_feature(
                path, FEATURE, self.raw_axes, options, self.default_pooling[FEATURE]
            )
        self._episodes, self.unmatched = _list_episodes(path)
        ignored = [name for name in list_names(path, '') if name not in TASKS]
        if ignored:
            names = ', '.join(ignored[:8])
            self.notes.append(f'these files and folders are not tasks and are not read: {names}')

    @staticmethod
    def detect(path: Path) -> str | None:
        present = [task for task in TASKS if _holds_records(path / task)]
        if not present:
            return None
        robots = {
            'bridge': sum(task.startswith('widowx') for task in present),
            'fractal': sum(task.startswith('google') for task in present),
        }
        found = ', '.join(f'{count} {robot}' for robot, count in robots.items() if count)
        return f'contains {found} task folders of SimplerEnv, for example {present[0]}'

    @property
    def episode_count(self) -> int:
        return len(self._episodes)

    @property
    def task_ids(self) -> list[int]:
        return [episode.task_id for episode in self._episodes]

    def files(self, index: int) -> list[Path]:
        episode = self._episodes[index]
        return [
            self.path / episode.task / f'{episode.name}{ending}'
            for ending in (_META, '.pkl')
            if ending in episode.files
        ]

    def check_listing(self) -> None:
        for episode in self._episodes:
            self._check_files(episode)

    def find_feature(self, index: int) -> FeatureSpec:
        if self._featureless:
            return FeatureSpec(NO_FEATURE, 0)
        episode = self._episodes[index]
        spec = self._read(episode, self._wanted)[1]
        file = self.path / episode.task / f'{episode.name}.pkl'
        first = _read_steps(file)[0]
        self.note_not_read(file, [key for key in first if key not in (FEATURE, 'sampled_actions')])
        return spec

    def read(self, index: int) -> Rollout:
        return self._read(self._episodes[index], self.feature)[0]

    def _check_files(self, episode: _Episode) -> None:
        for ending, content in (
            (_META, 'the outcome of the episode'),
            ('.pkl', 'the steps of the episode'),
        ):
            if ending not in episode.files:
                raise DumpError(
                    where=f'{self.path / episode.task / episode.name}{ending}',
                    expected=f'a file with {content} beside {episode.name}{episode.files[0]}',
                    found='no file',
                    advice=COPY_OR_LEAVE_OUT,
                )

    def _read(self, episode: _Episode, spec: FeatureSpec) -> tuple[Rollout, FeatureSpec]:
        self._check_files(episode)
        stem = f'{self.path / episode.task / episode.name}'
        meta = _read_meta(Path(stem + _META))
        file = Path(stem + '.pkl')
        steps = _read_steps(file)
        features = StepFeatures(spec, FEATURE, len(steps))
        chunks: list[np.ndarray] = []
        for step, record in enumerate(steps):
            chunks.append(_chunk(file, step, record, chunks))
            if not self._featureless:
                features.add(file, step, _executed(file, step, record, len(chunks[-1])))
        actions = np.stack(chunks)
        exec_horizon = min(TASKS[episode.task], actions.shape[2])
        if self._featureless:
            stacked, lengths = np.zeros((len(actions), 0), np.float32), None
        else:
            stacked, lengths = features.stack()
        try:
            signals = rollout_signals(actions, exec_horizon)
        except SignalError as error:
            raise DumpError(f'{file}: {error}') from error
        rollout = Rollout(
            features=stacked,
            feature_lengths=lengths,
            feature_name=str(features.spec),
            task=episode.task,
            success=meta['success'],
            episode_id=f'{episode.task}/{episode.name}',
            task_id=episode.task_id,
            episode_index=meta['episode_id'],
            instruction=meta['task'],
            policy=self.policy,
            actions=actions,
            exec_horizon=exec_horizon,
            signals=signals,
            video=f'{episode.task}/{episode.name}.mp4' if '.mp4' in episode.files else '',
        )
        return rollout, features.spec


def _holds_records(folder: Path) -> bool:
    return folder.is_dir() and bool(list_names(folder, _META))


def _list_episodes(path: Path) -> tuple[list[_Episode], list[str]]:
    present = [task for task in TASKS if _holds_records(path / task)]
    episodes: list[_Episode] = []
    unmatched: list[str] = []
    for task_id, task in enumerate(present):
        files: dict[str, list[str]] = {}
        for ending in (_META, '.pkl', '.mp4'):
            for name in list_names(path / task, ending):
                files.setdefault(name.removesuffix(ending), []).append(ending)
        names = [n for n in list_names(path / task, '') if n.endswith((_META, '.pkl'))]
        stems = dict.fromkeys(n.removesuffix(_META).removesuffix('.pkl') for n in names)
        found = [_Episode(task, task_id, stem, tuple(files[stem])) for stem in stems]
        by_number: dict[str, list[_Episode]] = {}
        for episode in found:
            match = _NAME.fullmatch(episode.name)
            by_number.setdefault(match[1] if match else f'/{episode.name}', []).append(episode)
        for number, group in by_number.items():
            if len(group) == 1:
                episodes += group
                continue
            unmatched.append(
                f'{path / task / group[1].name}: expected files with one outcome of episode '
                f'{number}, found also files with the name {group[0].name}; move the wrong files '
                'to another folder'
            )
    return episodes, unmatched


def _read_meta(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(read_text(file, _MAX_JSON_BYTES, 'a JSON file of an episode'))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DumpError):
            raise
        raise DumpError(
            where=str(file),
            expected='a JSON file of an episode',
            found=f'the error: {error}',
            advice=COPY_OR_LEAVE_OUT,
        ) from error
    kinds = {
        'task': (str, 'text'),
        'episode_id': (int, 'an integer'),
        'success': (bool, 'true or false'),
    }
    if type(meta) is dict and type(meta.get('success')) is int and meta['success'] in (0, 1):
        meta['success'] = bool(meta['success'])
    for key, (kind, kind_text) in kinds.items():
        if type(meta) is not dict or type(meta.get(key)) is not kind:
            found = shape_text(meta.get(key)) if type(meta) is dict else shape_text(meta)
            raise DumpError(
                where=str(file),
                expected=f'{key} as {kind_text}',
                found=found,
                advice=_NOT_AN_EPISODE,
            )
    if match := _NAME.fullmatch(file.name.removesuffix(_META)):
        for key, named in (('episode_id', int(match[1])), ('success', int(match[2]))):
            if int(meta[key]) != named:
                raise DumpError(
                    where=str(file),
                    expected=f'{key} {named}, as in the file name',
                    found=f'{int(meta[key])}',
                    advice=RENAMED,
                )
    return meta


def _read_steps(file: Path) -> list[dict[Any, Any]]:
    steps = load_pickle(file)
    if type(steps) is not list or not steps:
        raise DumpError(
            where=str(file),
            expected='a list with one entry for each inference',
            found=shape_text(steps),
            advice=_NOT_AN_EPISODE,
        )
    for number, step in enumerate(steps):
        if type(step) is not dict or 'sampled_actions' not in step:
            raise DumpError(
                where=str(file),
                expected=f'a dict with sampled_actions at step {number}',
                found='a dict without sampled_actions' if type(step) is dict else shape_text(step),
                advice=_NOT_AN_EPISODE,
            )
    return steps


def _executed(file: Path, step: int, record: dict[Any, Any], samples: int) -> np.ndarray:
    """Return the embedding of the executed sample, (denoise, horizon, width).

    The executed sample is the last sample.
    """
    embeds = record.get(FEATURE)
    if not isinstance(embeds, np.ndarray) or embeds.ndim != 4 or len(embeds) != samples:
        raise DumpError(
            where=str(file),
            expected=f'{FEATURE} of shape ({samples} samples, denoise, horizon, width)',
            found=f'{shape_text(embeds)} at step {step}',
            advice=LEAVE_OUT,
        )
    executed: np.ndarray = embeds[-1]
    return executed


def _chunk(file: Path, step: int, record: dict[Any, Any], before: list[np.ndarray]) -> np.ndarray:
    """Return the action chunks of one step, the executed first: (samples, horizon, action_dim)."""
    chunk = record['sampled_actions']
    if not isinstance(chunk, np.ndarray) or chunk.ndim != 3 or 0 in chunk.shape:
        raise DumpError(
            where=str(file),
            expected='sampled_actions of shape (samples, horizon, action_dim) with no empty axis',
            found=f'{shape_text(chunk)} at step {step}',
            advice=LEAVE_OUT,
        )
    if chunk.dtype.name not in FLOATS or first_not_finite(chunk) is not None:
        raise DumpError(
            where=str(file),
            expected='sampled_actions with float values, without NaN and infinity',
            found=f'{bad_values(chunk)} at step {step}',
            advice=LEAVE_OUT,
        )
    if before and (chunk.shape, chunk.dtype) != (before[0].shape, before[0].dtype):
        raise DumpError(
            where=str(file),
            expected='sampled_actions with one dtype and one shape at all steps',
            found=f'{chunk.dtype} of shape {chunk.shape} at step {step} and {before[0].dtype} of '
            f'shape {before[0].shape} at step 0',
            advice=LEAVE_OUT,
        )
    return np.roll(chunk, 1, axis=0)
