# SPDX-License-Identifier: Apache-2.0
"""Reads dumps of openpi: the part that pi0 and pi0-FAST have in common.

A root holds ``env_records/*.pkl``, one per episode, and ``policy_records/*meta.pkl``, one per
inference. Policy records have one of two kinds of names:

* ``step_{n}--{note}--task_{t}--ep_{e}--t_{step}`` (newer recordings): the record belongs to the
  episode in its name.
* ``step_{n}``: each episode takes the next ``model_infer_times`` records in natural order. One
  lost file would shift all later episodes. Therefore the records are read only if their number is
  the sum of all ``model_infer_times``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from safe_training.recordings.errors import COPY_OR_LEAVE_OUT, LEAVE_OUT, DumpError
from safe_training.recordings.foreign_folders import openpi_recorder
from safe_training.recordings.readers.base import (
    EpisodeSource,
    ReadOptions,
    WholeDumpError,
    wanted_feature,
)
from safe_training.recordings.readers.listing import list_names
from safe_training.recordings.readers.openpi_episodes import (
    POLICY_RECORDS,
    OpenpiEpisode,
    list_root,
    no_inference,
    plain_text,
    read_dict,
)
from safe_training.recordings.readers.step_features import (
    FLOATS,
    StepFeatures,
    bad_values,
    shape_text,
)
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import SignalError, rollout_signals
from vla_feature_bridge.step import NO_FEATURE, ROBOT
from vla_feature_bridge.tensors import first_not_finite
from vla_feature_bridge.tokens import pad_tokens, token_statistics

#: Only pi0-FAST emits tokens, so only its records hold one of these keys.
_FAST_KEYS = {'pre_logits', 'encoded', 'logits', 'decode_step', 'action_start_index_in_vocab'}
#: Keys that are read, or that every record holds and that describe the input of the policy.
_USUAL_KEYS = {
    *('actions', 'logits', 'prompt', 'state', 'raw_actions', 'decode_step'),
    *('action_start_index_in_vocab', 'action_end_index_in_vocab'),
}
_SHIFTED = (
    'a policy record is lost or comes from another recording, and the file names do not show '
    'which record: copy the folder from its source again'
)
#: Number of records that are tried to find the policy.
_MAX_TRIES = 8


class _KeptRecords:
    """Policy records that were read to recognise a dump, kept until their episode is read.

    The readers of openpi look at the first record of a root to recognise its policy, and at the
    first record of an episode to find the feature. The same record is needed again when the episode
    is read.
    """

    _MOST = 4

    def __init__(self) -> None:
        self._records: dict[tuple[Path, int, int], dict[Any, Any]] = {}

    def read(self, file: Path) -> dict[Any, Any]:
        """Return a record and keep it; a file that has changed is read again."""
        record = self.take(file)
        self._records[self._key(file)] = record
        while len(self._records) > self._MOST:
            del self._records[next(iter(self._records))]
        return record

    def take(self, file: Path) -> dict[Any, Any]:
        """Return a record from the cache, or read it; remove it from the cache."""
        kept = self._records.pop(self._key(file), None) if self._records else None
        return read_dict(file) if kept is None else kept

    @staticmethod
    def _key(file: Path) -> tuple[Path, int, int]:
        try:
            status = file.stat()
        except OSError:
            return file, -1, -1  # reading the record will raise the error
        return file, status.st_size, status.st_mtime_ns


_kept = _KeptRecords()


def find_policy(root: Path) -> str:
    """Return the policy of a root, ``pi0`` or ``pi0_fast``, from its first readable record.

    Raises
    ------
    DumpError
        The root has no policy record, or none of the first records can be read.
    """
    names = list_names(root / POLICY_RECORDS, 'meta.pkl')
    if not names:
        found, advice = openpi_recorder(root / POLICY_RECORDS) or (
            'no file with this name',
            'copy the folder from its source again',
        )
        raise DumpError(
            where=str(root / POLICY_RECORDS),
            expected='files named *meta.pkl, one file for each inference',
            found=found,
            advice=advice,
        )
    first: DumpError | None = None
    for name in names[:_MAX_TRIES]:
        try:
            record = _kept.read(root / POLICY_RECORDS / name)
        except DumpError as error:
            first = first or error
            continue
        return 'pi0_fast' if _FAST_KEYS & set(record) else 'pi0'
    assert first is not None
    raise first


# -- the source


class OpenpiSource(EpisodeSource):
    """One or several roots of openpi. Sample 0 is the executed sample.

    Attributes
    ----------
    features : dict of str to tuple of str
        The arrays that can be the feature, the default first, with the names of their axes.
    episodes : list of OpenpiEpisode
        The episodes whose records are complete.
    """

    features: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        choices = [*self.features, NO_FEATURE]
        if options.feature not in (None, *choices):
            raise DumpError(
                where=str(path),
                expected=f'one of the features {", ".join(choices)}',
                found=repr(options.feature),
                advice='give one of these names as --feature',
            )
        self.episodes, self.unmatched = self._list()

    def _list(self) -> tuple[list[OpenpiEpisode], list[str]]:
        episodes, unmatched = list_root(self.path)
        return [replace(e, name='task{}--ep{}'.format(*e.recorded)) for e in episodes], unmatched

    @property
    def episode_count(self) -> int:
        return len(self.episodes)

    @property
    def task_ids(self) -> list[int]:
        return [episode.task_id for episode in self.episodes]

    def files(self, index: int) -> list[Path]:
        episode = self.episodes[index]
        folder = episode.root / POLICY_RECORDS
        return [episode.env_file, *(folder / name for name in episode.records)]

    def find_feature(self, index: int) -> FeatureSpec:
        episode = self.episodes[index]
        if not episode.records:
            raise no_inference(episode)
        file = episode.root / POLICY_RECORDS / episode.records[0]
        record = self._checked(_kept.read(file), episode, file)
        name = self.options.feature or next((f for f in self.features if f in record), NO_FEATURE)
        self.note_not_read(file, _not_read(record, name))
        if name == NO_FEATURE:
            if self.options.keep == 'raw' or self.options.pooling:
                option = '--keep raw' if self.options.keep == 'raw' else '--pooling'
                raise DumpError(
                    where=str(file),
                    expected=f'one of the features {", ".join(self.features)}, because {option} '
                    'needs a feature',
                    found='--feature none' if self.options.feature else 'no feature',
                    advice=f'remove {option}',
                )
            return FeatureSpec(NO_FEATURE, 0)
        self.raw_axes = self.features[name]
        wanted = wanted_feature(
            self.path, name, self.raw_axes, self.options, self.default_pooling.get(name)
        )
        steps = StepFeatures(wanted, name, 1)
        steps.add(file, 0, self._raw(record, name, file))
        return steps.spec

    def read(self, index: int) -> Rollout:
        episode = self.episodes[index]
        if not episode.records:
            raise no_inference(episode)
        spec = self.feature
        features = StepFeatures(spec, spec.name, len(episode.records))
        chunks: list[np.ndarray] = []
        tokens: list[tuple[np.ndarray, np.ndarray] | None] = []
        for step, name in enumerate(episode.records):
            file = episode.root / POLICY_RECORDS / name
            record = self._checked(_kept.take(file), episode, file)
            if spec.name != NO_FEATURE:
                features.add(file, step, self._raw(record, spec.name, file))
            elif self.options.feature is None and set(self.features) & set(record):
                raise DumpError(
                    where=str(file),
                    expected='a record without features, like the first record of this dump',
                    found=f'the features {", ".join(sorted(set(self.features) & set(record)))}',
                    advice='records of two recordings may be mixed: move the records of one '
                    'recording to another folder',
                )
            chunks.append(_chunk(file, step, record, chunks))
            tokens.append(_tokens(file, record))
        return self._rollout(episode, features, np.stack(chunks), tokens)

    def _rollout(
        self,
        episode: OpenpiEpisode,
        features: StepFeatures,
        actions: np.ndarray,
        tokens: list[tuple[np.ndarray, np.ndarray] | None],
    ) -> Rollout:
        if episode.exec_horizon > actions.shape[2]:
            raise DumpError(
                where=str(episode.env_file),
                expected=f'replan_steps from 1 to {actions.shape[2]}, the number of actions in a '
                'chunk',
                found=str(episode.exec_horizon),
                advice='the file is damaged, or belongs to another recording: leave the episode '
                'out with --skip-bad',
            )
        try:
            signals = rollout_signals(actions, episode.exec_horizon)
        except SignalError as error:
            raise DumpError(f'{episode.env_file}: {error}') from error
        if features.spec.name == NO_FEATURE:
            stacked, lengths = np.zeros((len(actions), 0), np.float32), None
        else:
            stacked, lengths = features.stack()
        probability, entropy = self._token_arrays(episode, tokens)
        video = episode.root.relative_to(self.path) / episode.video if episode.video else None
        return Rollout(
            features=stacked,
            feature_lengths=lengths,
            feature_name=str(features.spec),
            task=episode.description or f'{episode.suite}/task{episode.task_id}',
            success=episode.success,
            episode_id=episode.name,
            task_id=episode.task_id,
            episode_index=episode.episode_index,
            instruction=episode.description,
            policy=self.policy,
            actions=actions,
            action_space=ROBOT,
            exec_horizon=episode.exec_horizon,
            token_probability=probability,
            token_entropy=entropy,
            signals=signals,
            video=video.as_posix() if video else '',
        )

    def _token_arrays(
        self, episode: OpenpiEpisode, tokens: list[tuple[np.ndarray, np.ndarray] | None]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        present = [pair for pair in tokens if pair is not None]
        if not present:
            return None, None
        if len(present) != len(tokens):
            step = tokens.index(None)
            raise DumpError(
                where=str(episode.root / POLICY_RECORDS / episode.records[step]),
                expected='logits, as in the other records of this episode',
                found='no logits',
                advice=COPY_OR_LEAVE_OUT,
            )
        return pad_tokens([p for p, _ in present]), pad_tokens([e for _, e in present])

    @staticmethod
    def _checked(record: dict[Any, Any], episode: OpenpiEpisode, file: Path) -> dict[Any, Any]:
        """Return a policy record after comparing its content with its episode."""
        if 'actions' not in record:
            raise DumpError(
                where=str(file),
                expected='the key actions',
                found=f'only the keys {", ".join(str(key)[:40] for key in list(record)[:12])}',
                advice=f'the file is not a policy record of openpi: {COPY_OR_LEAVE_OUT}',
            )
        if episode.ordered_only:
            prompt = record.get('prompt')
            if type(prompt) is str and plain_text(prompt) != plain_text(episode.description):
                raise WholeDumpError(
                    where=str(file),
                    expected=f'a record of the task {episode.description!r}',
                    found=f'a record with the prompt {prompt[:80]!r}',
                    advice=_SHIFTED,
                )
            number = record.get('run/episode_idx')
            if type(number) is int and number != episode.episode_index:
                raise WholeDumpError(
                    where=str(file),
                    expected=f'a record of episode {episode.episode_index}',
                    found=f'a record of episode {number}',
                    advice=_SHIFTED,
                )
        return record

    def _raw(self, record: Mapping[Any, Any], name: str, file: Path) -> Any:
        if name not in record:
            raise DumpError(
                where=str(file),
                expected=f'the key {name}',
                found=f'only the keys {", ".join(str(key)[:40] for key in list(record)[:16])}',
                advice='choose another feature with --feature NAME, or read without features '
                f'with --feature {NO_FEATURE}',
            )
        return record[name]


def _not_read(record: Mapping[Any, Any], feature: str) -> list[str]:
    """Return the unused keys of a record, apart from usual keys."""
    return [
        str(key)
        for key in record
        if key not in {*_USUAL_KEYS, feature} and not str(key).startswith(('run/', 'observation/'))
    ]


def _chunk(
    file: Path, step: int, record: Mapping[Any, Any], before: list[np.ndarray]
) -> np.ndarray:
    """Return the action chunks of one record as (samples, horizon, action_dim)."""
    chunk = record['actions']
    if not isinstance(chunk, np.ndarray) or chunk.ndim not in (2, 3) or 0 in chunk.shape:
        raise DumpError(
            where=str(file),
            expected='actions of shape (horizon, action_dim) or (samples, horizon, action_dim) '
            'with no empty axis',
            found=f'{shape_text(chunk)} at step {step}',
            advice=LEAVE_OUT,
        )
    if chunk.dtype.name not in FLOATS or first_not_finite(chunk) is not None:
        raise DumpError(
            where=str(file),
            expected='actions with float values, without NaN and infinity',
            found=f'{bad_values(chunk)} at step {step}',
            advice=LEAVE_OUT,
        )
    chunk = chunk.copy() if chunk.ndim == 3 else chunk[None].copy()
    if before and (chunk.shape, chunk.dtype) != (before[0].shape, before[0].dtype):
        raise DumpError(
            where=str(file),
            expected='actions with one dtype and one shape at all steps',
            found=f'{chunk.dtype} of shape {chunk.shape} at step {step} and {before[0].dtype} of '
            f'shape {before[0].shape} at step 0',
            advice=LEAVE_OUT,
        )
    return chunk


def _tokens(file: Path, record: Mapping[Any, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return probability and entropy of the emitted tokens; None if the record has no logits."""
    logits = record.get('logits')
    if logits is None:
        return None
    try:
        return token_statistics(logits)
    except ValueError as error:
        raise DumpError(f'{file}: {error}') from error
