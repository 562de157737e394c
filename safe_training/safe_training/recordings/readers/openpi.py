# SPDX-License-Identifier: Apache-2.0
"""Reads what openpi records while a policy runs: what its pi0 and pi0-FAST dumps have in common.

A root holds ``env_records/*.pkl``, one per episode, and ``policy_records/*meta.pkl``, one per
inference. Newer recordings name the latter ``step_{n}--{note}--task_{t}--ep_{e}--t_{step}``: then a
record belongs to the episode that its name says. Plain ones are ``step_{n}``: then each episode
takes as many of them as its ``model_infer_times`` says, in natural order, and one lost file would
shift all later episodes, so that nothing is read unless the counts add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import (
    NO_FEATURE,
    EpisodeSource,
    ReadOptions,
    WholeDumpError,
    wanted_feature,
)
from safe_training.recordings.readers.openpi_episodes import (
    POLICY_RECORDS,
    OpenpiEpisode,
    list_names,
    list_root,
    no_inference,
    plain_text,
    read_dict,
)
from safe_training.recordings.readers.step_features import FLOATS, StepFeatures, shape_text
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import SignalError, rollout_signals
from vla_feature_bridge.tensors import first_not_finite
from vla_feature_bridge.tokens import pad_tokens, token_statistics

#: Only pi0-FAST emits tokens, and only its records hold these.
_FAST_KEYS = {'pre_logits', 'encoded', 'logits', 'decode_step', 'action_start_index_in_vocab'}
#: How many records may be unreadable before the policy is given up.
_PEEKS = 8


def peek_policy(root: Path) -> str:
    """Say which policy was recorded, ``pi0`` or ``pi0_fast``, from the first readable record.

    Raises
    ------
    DumpError
        There is no policy record, or none of the first ones can be read.
    """
    names = list_names(root / POLICY_RECORDS, 'meta.pkl')
    if not names:
        raise DumpError(
            f'{root / POLICY_RECORDS}: expected *meta.pkl, one per inference, found none; '
            'copy the folder from its source again'
        )
    first: DumpError | None = None
    for name in names[:_PEEKS]:
        try:
            record = read_dict(root / POLICY_RECORDS / name)
        except DumpError as error:
            first = first or error
            continue
        return 'pi0_fast' if _FAST_KEYS & set(record) else 'pi0'
    assert first is not None
    raise first


# -- the source


class OpenpiSource(EpisodeSource):
    """One or several recordings of openpi. Sample 0 is the executed one.

    Attributes
    ----------
    features : dict of str to tuple of str
        The arrays that can be the feature, the default first, with the names of their axes.
    """

    features: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        choices = [*self.features, NO_FEATURE]
        if options.feature not in (None, *choices):
            raise DumpError(
                f'{path}: expected one of the features {", ".join(choices)}, '
                f'found {options.feature!r}'
            )
        self._wanted: FeatureSpec | None = None
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
        record = self._read_record(episode, file)
        name = self.options.feature or next((f for f in self.features if f in record), NO_FEATURE)
        if name == NO_FEATURE:
            if self.options.keep == 'raw' or self.options.pooling:
                raise DumpError(
                    f'{file}: expected one of {", ".join(self.features)} to pool or to keep raw, '
                    'found none: this dump holds sampled actions alone'
                )
            return FeatureSpec(NO_FEATURE, 0)
        self.raw_axes = self.features[name]
        steps = StepFeatures(wanted_feature(self.path, name, self.raw_axes, self.options), name, 1)
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
            record = self._read_record(episode, file)
            if spec.name != NO_FEATURE:
                features.add(file, step, self._raw(record, spec.name, file))
            elif self.options.feature is None and set(self.features) & set(record):
                raise DumpError(
                    f'{file}: expected no features as in the first record of this dump, found '
                    'some; the records of two recordings may be mixed'
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
                f'{episode.env_file}: expected replan_steps of at most {actions.shape[2]}, the '
                f'actions of a chunk, found {episode.exec_horizon}'
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
                f'{episode.root / POLICY_RECORDS / episode.records[step]}: expected logits as in '
                'the other records of this episode, found none'
            )
        return pad_tokens([p for p, _ in present]), pad_tokens([e for _, e in present])

    def _read_record(self, episode: OpenpiEpisode, file: Path) -> dict[Any, Any]:
        """Read one policy record and hold what it says about itself against its episode."""
        record = read_dict(file)
        if 'actions' not in record:
            raise DumpError(
                f'{file}: expected actions, found only '
                f'{", ".join(str(key)[:40] for key in list(record)[:12])}; '
                'this is no policy record of openpi'
            )
        if episode.ordered_only:
            prompt = record.get('prompt')
            if type(prompt) is str and plain_text(prompt) != plain_text(episode.description):
                raise WholeDumpError(
                    f'{file}: expected a record of the task {episode.description!r}, found the '
                    f'prompt {prompt[:80]!r}; a policy record is lost or from elsewhere, and the '
                    'names do not tell which'
                )
            number = record.get('run/episode_idx')
            if type(number) is int and number != episode.episode_index:
                raise WholeDumpError(
                    f'{file}: expected a record of episode {episode.episode_index}, found one of '
                    f'{number}; a policy record is lost or from elsewhere'
                )
        return record

    def _raw(self, record: Mapping[Any, Any], name: str, file: Path) -> Any:
        if name not in record:
            raise DumpError(
                f'{file}: expected {name}, found only '
                f'{", ".join(str(key)[:40] for key in list(record)[:16])}; choose another feature '
                f'(--feature), {NO_FEATURE} for none'
            )
        return record[name]


def _chunk(
    file: Path, step: int, record: Mapping[Any, Any], before: list[np.ndarray]
) -> np.ndarray:
    """Return the action chunks of one record as (samples, horizon, action_dim)."""
    chunk = record['actions']
    if not isinstance(chunk, np.ndarray) or chunk.ndim not in (2, 3) or 0 in chunk.shape:
        raise DumpError(
            f'{file}: expected actions (horizon, action_dim) or (samples, horizon, action_dim), '
            f'found {shape_text(chunk)}'
        )
    if chunk.dtype.name not in FLOATS or first_not_finite(chunk) is not None:
        raise DumpError(f'{file}: expected actions as finite floats, found {chunk.dtype} or NaN')
    chunk = chunk.copy() if chunk.ndim == 3 else chunk[None].copy()
    if before and (chunk.shape, chunk.dtype) != (before[0].shape, before[0].dtype):
        raise DumpError(
            f'{file}: expected actions of one shape in every step, found {chunk.dtype} '
            f'{chunk.shape} at step {step}, {before[0].dtype} {before[0].shape} at step 0'
        )
    return chunk


def _tokens(file: Path, record: Mapping[Any, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return probability and entropy of the emitted tokens; None where no logits are kept."""
    logits = record.get('logits')
    if logits is None:
        return None
    try:
        return token_statistics(logits)
    except ValueError as error:
        raise DumpError(f'{file}: {error}') from error
