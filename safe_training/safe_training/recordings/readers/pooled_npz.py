# SPDX-License-Identifier: Apache-2.0
"""Reads pooled rollouts from one NumPy archive: the steps of all episodes in one long array.

Rollout i is rows ``offsets[i]:offsets[i + 1]`` of every array with one row per step. Two layouts:

* *named*: ``offsets``, ``success``, ``task`` (names), and ``features`` or ``action_signals`` with
  ``action_signal_names`` or both;
* *numbered*: ``offsets``, ``success``, ``task_id`` into ``task_names``, features ``feat_*``, and
  optionally ``sampled_actions``, ``action``, ``token_prob``, ``token_entropy`` (or ``logits``,
  from which both are computed), ``meta_json``.

Other arrays are listed in a note. A possible feature is read, or the error contains its name. Only
an archive without such an array gives rollouts with an empty feature, shape (T, 0). This is enough
for detectors that use only signals, actions or the step number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.recordings.errors import LEAVE_OUT, DumpError
from safe_training.recordings.readers.base import (
    EpisodeProgress,
    ReadOptions,
    Source,
    refuse_raw_options,
)
from safe_training.recordings.readers.npz_features import (
    LOGITS,
    TOKEN_NAMES,
    choose_feature,
    not_read,
    statistics_of_logits,
)
from safe_training.recordings.readers.statistics import checked_statistics
from safe_training.recordings.untrusted.npz_file import read_array, shapes
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import SignalError, rollout_signals
from vla_feature_bridge.step import NO_FEATURE
from vla_feature_bridge.tensors import BFLOAT16, FLOATS

_CORRECT = 'correct this array, or copy the archive from its source again'


class PooledNpzSource(Source):
    """One ``.npz`` archive of pooled rollouts; it is read without unpickling."""

    kind = 'pooled_npz'
    looks_for = 'a .npz with offsets, success, and task or task_id (pooled rollouts)'

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        refuse_raw_options(path, options)
        self._shapes = shapes(path)
        self._offsets = self._read_offsets()
        self._meta = self._read_meta()
        self.policy = _policy_text(self._meta)

    @staticmethod
    def detect(path: Path) -> str | None:
        if path.suffix != '.npz' or not path.is_file():
            return None
        names = shapes(path)
        if {'offsets', 'success', 'task'} <= set(names):
            return 'contains offsets, success and task'
        if {'offsets', 'success', 'task_id', 'task_names'} <= set(names):
            return 'contains offsets, success, task_id and task_names'
        return None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @cached_property
    def feature(self) -> FeatureSpec:
        steps = int(self._offsets[-1])
        spec = choose_feature(self.path, self._shapes, steps, self.options.feature)
        if spec.name in self._shapes and self._shapes[spec.name][1] == BFLOAT16:
            self.notes.append(f'the values of {spec.name} have two bytes and are read as bfloat16')
        self.notes += not_read(self._shapes, spec.name, self._used())
        return spec

    def _used(self) -> set[str]:
        """Return the names of the arrays that are read, without the feature."""
        present = set(self._shapes)
        used = {'offsets', 'success', 'meta_json', 'action_signals', 'action_signal_names'}
        used |= (
            {'task', 'instruction'}
            if 'task' in present
            else {*('task_id', 'task_names', 'task_instructions')}
        )
        used.add('episode_idx' if 'episode_idx' in present else 'episode_index')
        used.add('sampled_actions' if 'sampled_actions' in present else 'action')
        tokens = {name for what in TOKEN_NAMES if (name := self._token_name(what))}
        return used | (tokens or {LOGITS})

    def _token_name(self, what: str) -> str | None:
        return next((name for name in TOKEN_NAMES[what] if name in self._shapes), None)

    def rollouts(self, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
        self.skipped = []
        columns = self._episode_columns()
        steps = self._step_arrays()
        duplicate = _first_repeated(columns['episode_id'])
        if duplicate is not None:
            raise DumpError(
                where=str(self.path),
                expected='each episode once',
                found=f'episode {duplicate!r} more than once',
                advice='give the episodes of a task different numbers',
            )
        for index in range(len(self)):
            if progress:
                progress(index, len(self))
            try:
                rollout = self._rollout(index, columns, steps)
            except DumpError as error:
                if not self.options.skip_bad:
                    raise
                self.skipped.append(str(error))
                continue
            yield rollout
        if progress:
            progress(len(self), len(self))

    # -- one episode

    def _rollout(self, index: int, columns: dict[str, list[Any]], steps: dict[str, Any]) -> Rollout:
        name = columns['episode_id'][index]
        rows = slice(int(self._offsets[index]), int(self._offsets[index + 1]))
        if rows.start == rows.stop:
            raise DumpError(
                where=f'{self.path}: episode {name!r}',
                expected='at least one step',
                found='no step',
                advice='leave the episode out with --skip-bad',
            )
        features = steps['features'][rows]
        actions = None if steps['actions'] is None else steps['actions'][rows]
        for what, array in (('features', features), ('actions', actions)):
            self._check_finite(name, what, array)
        exec_horizon = 1
        own = {key: np.ascontiguousarray(values[rows]) for key, values in steps['signals'].items()}
        if actions is not None:
            # A robot cannot execute more actions than a chunk contains; token policies emit one
            # action.
            exec_horizon = min(int(self._meta.get('exec_horizon', 1)), actions.shape[2])
            try:
                own = rollout_signals(actions, exec_horizon) | own
            except SignalError as error:
                raise DumpError(f'{self.path}: episode {name!r}: {error}') from error
        probability, entropy = self._token_rows(name, steps, rows)
        rollout = Rollout(
            features=features,
            task=columns['task'][index],
            success=columns['success'][index],
            episode_id=name,
            task_id=columns['task_id'][index],
            episode_index=columns['episode_index'][index],
            instruction=columns['instruction'][index],
            policy=self.policy,
            feature_name=str(self.feature),
            actions=actions,
            exec_horizon=exec_horizon,
            token_probability=probability,
            token_entropy=entropy,
            signals=own,
        )
        return checked_statistics(rollout, self.path)

    def _token_rows(
        self, episode: str, steps: dict[str, Any], rows: slice
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        if steps[LOGITS] is None:
            found = [steps[what] for what in TOKEN_NAMES]
            probability, entropy = (None if values is None else values[rows] for values in found)
            return probability, entropy
        return statistics_of_logits(f'{self.path}: episode {episode!r}', steps[LOGITS][rows])

    def _check_finite(self, episode: str, what: str, array: np.ndarray | None) -> None:
        if array is None:
            return
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise DumpError(
                where=f'{self.path}: episode {episode!r}',
                expected=f'{what} without NaN and infinity',
                found=f'NaN or infinity at step {int(np.argmin(finite))}',
                advice=LEAVE_OUT,
            )

    # -- arrays

    def _array(self, name: str) -> np.ndarray:
        return read_array(self.path, name)

    def _read_offsets(self) -> np.ndarray:
        offsets = self._array('offsets')
        if offsets.ndim != 1 or offsets.dtype.kind not in 'iu' or len(offsets) < 2:
            raise DumpError(
                where=str(self.path),
                expected='offsets as integers of shape (episodes + 1,), for at least one episode',
                found=f'the dtype {offsets.dtype} and the shape {offsets.shape}',
                advice=_CORRECT,
            )
        offsets = offsets.astype(np.int64)
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise DumpError(
                where=str(self.path),
                expected='offsets that start at 0 and never decrease',
                found=f'the offsets {offsets[:4].tolist()} at the beginning'
                if offsets[0]
                else 'an offset that is less than the previous offset',
                advice=_CORRECT,
            )
        return offsets

    def _read_meta(self) -> dict[str, Any]:
        if 'meta_json' not in self._shapes:
            return {}
        try:
            arguments = json.loads(str(self._array('meta_json')))['args']
            horizon = arguments.get('exec_horizon', 1)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DumpError(
                where=str(self.path),
                expected="JSON with the key 'args' in meta_json",
                found=f'other content ({type(error).__name__}: {error})',
                advice=_CORRECT,
            ) from error
        if type(horizon) is not int or horizon < 1:
            raise DumpError(
                where=str(self.path),
                expected='exec_horizon in meta_json as an integer from 1',
                found=repr(horizon),
                advice=_CORRECT,
            )
        return arguments

    def _step_arrays(self) -> dict[str, Any]:
        name = self.feature.name
        if name == NO_FEATURE:
            features = np.zeros((int(self._offsets[-1]), 0), np.float32)
        else:
            features = self._per_step(name, (2,))
        return {
            'features': features,
            'actions': self._actions(),
            **self._tokens(),
            'signals': self._signals(),
        }

    def _actions(self) -> np.ndarray | None:
        """Return the action chunks as (steps, samples, horizon, action_dim)."""
        if 'sampled_actions' in self._shapes:
            return self._per_step('sampled_actions', (4,))
        if 'action' not in self._shapes:
            return None
        action = self._per_step('action', (2, 3))
        return action[:, None, None, :] if action.ndim == 2 else action[:, None]

    def _signals(self) -> dict[str, np.ndarray]:
        if 'action_signals' not in self._shapes:
            return {}
        values = self._per_step('action_signals', (2,)).astype(np.float32, copy=False)
        names = self._texts('action_signal_names', values.shape[1])
        if len(set(names)) != len(names):
            raise DumpError(
                where=str(self.path),
                expected='different names in action_signal_names',
                found=str(names),
                advice=_CORRECT,
            )
        return {name: values[:, column] for column, name in enumerate(names)}

    def _tokens(self) -> dict[str, np.ndarray | None]:
        names = {what: self._token_name(what) for what in TOKEN_NAMES}
        tokens = {what: self._per_step(n, (2,)) if n else None for what, n in names.items()}
        needs_logits = not any(names.values()) and LOGITS in self._shapes
        return tokens | {LOGITS: self._per_step(LOGITS, (3,)) if needs_logits else None}

    def _per_step(self, name: str, dimensions: tuple[int, ...]) -> np.ndarray:
        array = self._array(name)
        steps = int(self._offsets[-1])
        if array.ndim not in dimensions or len(array) != steps or array.dtype.name not in FLOATS:
            raise DumpError(
                where=str(self.path),
                expected=f'{name} with float values, {steps} rows (one row for each step) and '
                f'{" or ".join(map(str, dimensions))} axes',
                found=f'the dtype {array.dtype} and the shape {array.shape}',
                advice=_CORRECT,
            )
        return array

    def _episode_columns(self) -> dict[str, list[Any]]:
        count = len(self)
        success = self._array('success')
        if success.shape != (count,) or not np.isin(success, (0, 1)).all():
            found = f'the dtype {success.dtype} and the shape {success.shape}'
            if success.shape == (count,):
                found = f'the values {np.unique(success)[:8].tolist()}'
            raise DumpError(
                where=str(self.path),
                expected=f'success with {count} values 0 or 1, one value for each episode',
                found=found,
                advice=_CORRECT,
            )
        columns: dict[str, list[Any]] = {'success': [bool(value) for value in success]}
        if 'task' in self._shapes:
            columns['task'] = self._texts('task', count)
            numbers = {name: number for number, name in enumerate(sorted(set(columns['task'])))}
            columns['task_id'] = [numbers[name] for name in columns['task']]
            columns['instruction'] = self._optional_texts('instruction', count)
        else:
            columns |= self._numbered_tasks(count)
        index_name = 'episode_idx' if 'episode_idx' in self._shapes else 'episode_index'
        columns['episode_index'] = self._integers(index_name, count)
        columns['episode_id'] = [
            f'{task}/{index}'
            for task, index in zip(columns['task'], columns['episode_index'], strict=True)
        ]
        return columns

    def _numbered_tasks(self, count: int) -> dict[str, list[Any]]:
        numbers = self._integers('task_id', count)
        names = self._texts('task_names', None)
        instructions = self._optional_texts('task_instructions', len(names))
        if min(numbers) < 0 or max(numbers) >= len(names):
            raise DumpError(
                where=str(self.path),
                expected=f'task_id from 0 to {len(names) - 1}, because task_names has '
                f'{len(names)} names',
                found=f'task_id from {min(numbers)} to {max(numbers)}',
                advice=_CORRECT,
            )
        return {
            'task_id': numbers,
            'task': [names[number] for number in numbers],
            'instruction': [instructions[number] for number in numbers],
        }

    def _integers(self, name: str, count: int) -> list[int]:
        self._require(name)
        array = self._array(name)
        if array.shape != (count,) or array.dtype.kind not in 'iu':
            raise DumpError(
                where=str(self.path),
                expected=f'{name} with {count} integers',
                found=f'the dtype {array.dtype} and the shape {array.shape}',
                advice=_CORRECT,
            )
        return [int(value) for value in array]

    def _texts(self, name: str, count: int | None) -> list[str]:
        self._require(name)
        array = self._array(name)
        if array.ndim != 1 or array.dtype.kind != 'U' or count not in (None, len(array)):
            raise DumpError(
                where=str(self.path),
                expected=f'{name} with {"" if count is None else f"{count} "}texts',
                found=f'the dtype {array.dtype} and the shape {array.shape}',
                advice=_CORRECT,
            )
        return [str(value) for value in array]

    def _optional_texts(self, name: str, count: int) -> list[str]:
        return self._texts(name, count) if name in self._shapes else [''] * count

    def _require(self, name: str) -> None:
        if name not in self._shapes:
            raise DumpError(
                where=str(self.path),
                expected=f'an array {name}',
                found=f'only the arrays {", ".join(self._shapes)}',
                advice='write this array into the archive',
            )


def _first_repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _policy_text(meta: dict[str, Any]) -> str:
    """Return the name and the kind of the policy, such as ``'pol_full (token policy)'``."""
    name, kind = str(meta.get('policy', '')), str(meta.get('kind', ''))
    described = f'{kind} policy' if kind else ''
    return f'{name} ({described})' if name and kind else name or described
