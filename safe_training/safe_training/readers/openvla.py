# SPDX-License-Identifier: Apache-2.0
"""Reads OpenVLA rollout dumps: LIBERO and WidowX, one or several samples a step.

One episode is ``task{t}--ep{e}--succ{0|1}.csv`` and ``.pkl`` (and ``.mp4``), in one folder or in
folders of any depth. The pickle holds the hidden states of the action tokens, the csv one row per
step: the executed action and either each token's probability and entropy (one sample a step) or
variances and cluster entropies over the samples.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.readers.source import Progress, ReadOptions, Source
from safe_training.unpickle import DumpError, load_pickle
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import rollout_signals

DEFAULT_POOLING = (('token', 'last'),)

_NAME = re.compile(r'task(\d{1,9})--ep(\d{1,9})--succ([01])\.(csv|pkl|mp4)')
_ACTIONS = tuple(
    f'action/{name}' for name in ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')
)
_SAMPLE_SIGNALS = (
    'total_var',
    'general_var',
    'pos_var',
    'rot_var',
    'gripper_var',
    'entropy_linkage.01',
    'entropy_linkage.05',
)
_FLOATS = ('bfloat16', 'float16', 'float32', 'float64')
#: openpi keeps its episode records under names of this form too, in a folder of this name.
_OPENPI_FOLDER = 'env_records'


@dataclass(frozen=True)
class _Episode:
    """The files of one episode and what their name says; a file that is missing is None."""

    name: str
    stem: Path
    task_id: int
    episode_index: int
    success: bool
    files: dict[str, Path]


class OpenVlaSource(Source):
    """An OpenVLA dump folder. Prediction and execution horizon are 1."""

    kind = 'openvla'
    looks_for = 'task{t}--ep{e}--succ{0|1}.csv and .pkl (OpenVLA dump)'
    policy = 'openvla'

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        if options.feature not in (None, 'hidden_states'):
            raise DumpError(
                f'{path}: expected feature hidden_states, the only one of an OpenVLA dump, '
                f'found {options.feature!r}'
            )
        try:
            self._raw_spec = FeatureSpec(
                'hidden_states', 0, ('token',), options.pooling or DEFAULT_POOLING
            )
        except PoolingError as error:
            raise DumpError(f'{path}: {error}') from error
        self._episodes, self._strays = _list_episodes(path)

    @staticmethod
    def detect(path: Path) -> str | None:
        if not path.is_dir():
            return None
        for file in _walk(path):
            if _NAME.fullmatch(file.name) and file.suffix in ('.csv', '.pkl'):
                return f'holds {file.relative_to(path)}'
        return None

    def __len__(self) -> int:
        return len(self._episodes) + len(self._strays)

    @cached_property
    def feature(self) -> FeatureSpec:
        first = self._strays[0] if self._strays else ''
        for episode in self._episodes:
            try:
                features = self._read(episode, width=0).features
            except DumpError as error:
                if not self.options.skip_bad:
                    raise
                first = first or str(error)
                continue
            return replace(self._raw_spec, dim=features.shape[1])
        raise DumpError(
            f'{self.path}: expected at least one readable episode, found none of {len(self)}; '
            f'the first: {first}'
        )

    def rollouts(self, progress: Progress | None = None) -> Iterator[Rollout]:
        self.skipped = []
        self._refuse_early()
        width = self.feature.dim
        feature_name = str(self.feature)
        for done, episode in enumerate(self._episodes):
            if progress:
                progress(done + len(self._strays), len(self))
            try:
                rollout = self._read(episode, width)
            except DumpError as error:
                if not self.options.skip_bad:
                    raise
                self.skipped.append(str(error))
                continue
            rollout.feature_name = feature_name
            yield rollout
        if progress:
            progress(len(self), len(self))

    def _refuse_early(self) -> None:
        """Report what the file names alone show to be wrong before anything long begins."""
        if self._strays and not self.options.skip_bad:
            raise DumpError(self._strays[0])
        self.skipped.extend(self._strays)
        if not self.options.skip_bad:
            for episode in self._episodes:
                _check_files(episode)

    def _read(self, episode: _Episode, width: int) -> Rollout:
        _check_files(episode)
        record = _read_record(episode)
        states = _hidden_states(episode.files['pkl'], record['hidden_states'])
        features = _pool(episode.files['pkl'], states, replace(self._raw_spec, dim=width))
        table = _read_table(episode.files['csv'], len(features))
        actions = _actions(episode.files['csv'], table)
        own = {
            name: table[f'action/{name}'].astype(np.float32)
            for name in _SAMPLE_SIGNALS
            if f'action/{name}' in table
        }
        instruction = record['task_description']
        suite = record['task_suite_name']
        video = episode.files.get('mp4')
        return Rollout(
            features=features,
            task=instruction or f'{suite}/task{episode.task_id}',
            success=episode.success,
            episode_id=episode.name,
            task_id=episode.task_id,
            episode_index=episode.episode_index,
            instruction=instruction,
            policy=self.policy,
            actions=actions,
            exec_horizon=1,
            token_probability=_token_columns(table, 'prob'),
            token_entropy=_token_columns(table, 'entropy'),
            signals=rollout_signals(actions, 1) | own,
            video=str(video.relative_to(self.path)) if video else '',
        )


# -- files


def _walk(path: Path) -> Iterator[Path]:
    """Yield the files below ``path`` in a fixed order, without following links to folders."""
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if name != _OPENPI_FOLDER)
        if os.path.basename(os.path.abspath(folder)) != _OPENPI_FOLDER:
            yield from (Path(folder, name) for name in sorted(files))


def _list_episodes(path: Path) -> tuple[list[_Episode], list[str]]:
    """Pair the files by their names; returns the episodes and what cannot be one, as messages."""
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
    strays = [
        f'{file}: expected a name like task0--ep0--succ1.pkl, found another; '
        'give it its name back or move it away'
        for file in others
        if file.parent in folders
    ]
    episodes = []
    for (folder, task_id, index, success), files in sorted(found.items(), key=_order):
        name = (folder.relative_to(path) / f'task{task_id}--ep{index}').as_posix()
        stem = folder / f'task{task_id}--ep{index}--succ{int(success)}'
        if not {'csv', 'pkl'} & set(files):
            continue  # a video on its own is no episode
        if (folder, task_id, index, not success) in found:
            strays.append(
                f'{stem}: expected one outcome of this episode, found files of both; '
                'move the wrong ones away'
            )
            continue
        episodes.append(_Episode(name, stem, task_id, index, success, files))
    return episodes, strays


def _order(item: tuple[tuple[Path, int, int, bool], dict[str, Path]]) -> tuple[str, int, int, bool]:
    (folder, task_id, index, success), _ = item
    return folder.as_posix(), task_id, index, success


def _check_files(episode: _Episode) -> None:
    for suffix, holds in (('csv', 'its actions'), ('pkl', 'its hidden states')):
        if suffix not in episode.files:
            present = ' and '.join(sorted(file.name for file in episode.files.values()))
            raise DumpError(
                f'{episode.stem}.{suffix}: expected this file with {holds} beside {present}, '
                'found none; copy it from the source, or leave the episode out (--skip-bad)'
            )


# -- pickle


def _read_record(episode: _Episode) -> dict[str, Any]:
    file = episode.files['pkl']
    record = load_pickle(file)
    if type(record) is not dict:
        raise DumpError(
            f'{file}: expected a dict with hidden_states, found {_kind(record)}; '
            'this is no OpenVLA episode'
        )
    index_key = 'episode_idx' if 'episode_idx' in record else 'eposide_idx'
    needed = ('hidden_states', 'task_description', 'task_id', index_key, 'episode_success')
    missing = [key for key in needed if key not in record]
    if missing:
        raise DumpError(
            f'{file}: expected {", ".join(missing)}, found only '
            f'{", ".join(str(key)[:40] for key in list(record)[:12])}; this is no OpenVLA episode'
        )
    for key in ('task_description', 'task_suite_name'):
        if type(record.setdefault(key, '')) is not str:
            raise DumpError(f'{file}: expected {key} as text, found {_kind(record[key])}')
    for key, named in (
        ('task_id', episode.task_id),
        (index_key, episode.episode_index),
        ('episode_success', int(episode.success)),
    ):
        value = record[key]
        if not isinstance(value, (bool, int, np.integer, np.bool_)) or int(value) != named:
            shown = int(value) if isinstance(value, (int, np.integer, np.bool_)) else _kind(value)
            raise DumpError(
                f'{file}: expected {key} {named} as the file name says, found {shown}; '
                'the file was renamed or belongs to another episode'
            )
    return record


def _hidden_states(file: Path, value: Any) -> Sequence[np.ndarray]:
    """Check the hidden states, however they were stored; returns one (tokens, width) per step."""
    if type(value) is list and value:
        for step, part in enumerate(value):
            if not isinstance(part, np.ndarray) or part.ndim != 2 or part.shape != value[0].shape:
                raise DumpError(
                    f'{file}: expected hidden states (tokens, width) of one shape in every step, '
                    f'found {_kind(part)} at step {step}, {_kind(value[0])} at step 0'
                )
            if part.dtype != value[0].dtype:
                raise DumpError(
                    f'{file}: expected hidden states of one dtype, found {part.dtype} at step '
                    f'{step}, {value[0].dtype} at step 0'
                )
    elif not isinstance(value, np.ndarray) or value.ndim != 3 or len(value) == 0:
        raise DumpError(
            f'{file}: expected hidden states of shape (steps, tokens, width), found {_kind(value)}'
        )
    if 0 in value[0].shape or value[0].dtype.name not in _FLOATS:
        raise DumpError(
            f'{file}: expected hidden states of shape (steps, tokens, width) as floats, '
            f'found {value[0].dtype} {value[0].shape} at each of {len(value)} steps'
        )
    return value


def _pool(file: Path, states: Sequence[np.ndarray], spec: FeatureSpec) -> np.ndarray:
    """Pool step by step, so that no second copy of the whole episode is made."""
    rows = []
    for step, state in enumerate(states):
        if not np.isfinite(state).all():
            raise DumpError(
                f'{file}: expected finite hidden states, found NaN or infinity at step {step}; '
                'leave the episode out (--skip-bad) or record it again'
            )
        try:
            # Averages are taken in float32 whatever the stored dtype, selections are exact.
            rows.append(spec.apply(state))
        except PoolingError as error:
            raise DumpError(f'{file}: {error}') from error
    return np.stack(rows)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'an array of shape {value.shape}'
    if type(value) in (list, dict) and not value:
        return f'an empty {type(value).__name__}'
    return 'nothing' if value is None else f'a {type(value).__name__}'


# -- csv


def _read_table(file: Path, steps: int) -> dict[str, np.ndarray]:
    """Read the columns that are used, each as float64 (steps,)."""
    try:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding='utf-8')), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DumpError(f'{file}: expected a readable csv file, found {error}') from error
    rows = [row for row in rows if row]
    header = rows[0] if rows else []
    missing = [name for name in _ACTIONS if name not in header]
    if missing:
        raise DumpError(
            f'{file}: expected columns {", ".join(missing)}, found {len(header)} others; '
            'this is no table of an OpenVLA episode'
        )
    if len(rows) - 1 != steps:
        raise DumpError(
            f'{file}: expected {steps} rows, one for each hidden state of the pickle, '
            f'found {len(rows) - 1}; the files belong to different episodes or one is cut short'
        )
    used = [name for name in header if name in _ACTIONS or _is_quantity(name)]
    if len(set(used)) != len(used):
        raise DumpError(f'{file}: expected every column once, found one repeated')
    return {name: _column(file, rows, header.index(name)) for name in used}


def _is_quantity(name: str) -> bool:
    return name.removeprefix('action/') in _SAMPLE_SIGNALS or bool(_TOKEN.fullmatch(name))


_TOKEN = re.compile(r'action/token_(\d{1,3})_(prob|entropy)')


def _column(file: Path, rows: list[list[str]], column: int) -> np.ndarray:
    values = np.empty(len(rows) - 1)
    for line, row in enumerate(rows[1:]):
        try:
            values[line] = float(row[column])
        except (ValueError, IndexError):
            found = repr(row[column][:40]) if column < len(row) else 'a row that ends before it'
            raise DumpError(
                f'{file}: expected a number in row {line + 1}, column {rows[0][column]!r}, '
                f'found {found}'
            ) from None
    return values


def _actions(file: Path, table: dict[str, np.ndarray]) -> np.ndarray:
    """Return the executed actions as (steps, 1 sample, 1 action, 7), float32."""
    actions = np.stack([table[name] for name in _ACTIONS], axis=1).astype(np.float32)
    finite = np.isfinite(actions).all(axis=1)
    if not finite.all():
        raise DumpError(
            f'{file}: expected finite actions, found NaN or infinity at step '
            f'{int(np.argmin(finite))}'
        )
    return actions[:, None, None, :]


def _token_columns(table: dict[str, np.ndarray], what: str) -> np.ndarray | None:
    """Return one quantity of every token, float32 (steps, tokens); None where it is not kept."""
    columns: list[np.ndarray] = []
    while (name := f'action/token_{len(columns)}_{what}') in table:
        columns.append(table[name])
    return np.stack(columns, axis=1).astype(np.float32) if columns else None
