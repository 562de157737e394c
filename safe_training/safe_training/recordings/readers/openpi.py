# SPDX-License-Identifier: Apache-2.0
"""Reads what openpi records while a policy runs: what its pi0 and pi0-FAST dumps have in common.

A root holds ``env_records/*.pkl``, one per episode, and ``policy_records/*meta.pkl``, one per
inference. Newer recordings name the latter ``step_{n}--{note}--task_{t}--ep_{e}--t_{step}``: then a
record belongs to the episode that its name says. Plain ones are ``step_{n}``: then each episode
takes as many of them as its ``model_infer_times`` says, in natural order, and one lost file would
shift all later episodes, so that nothing is read unless the counts add up.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from safe_training.readers.source import (
    NO_FEATURE,
    EpisodeSource,
    ReadOptions,
    WholeDumpError,
    wanted_feature,
)
from safe_training.readers.step_features import FLOATS, StepFeatures, shape_text
from safe_training.readers.token_statistics import pad_tokens, token_statistics
from safe_training.unpickle import DumpError, load_pickle
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set import first_not_finite
from vla_feature_bridge.signals import SignalError, rollout_signals

ENV_RECORDS = 'env_records'
POLICY_RECORDS = 'policy_records'

_POLICY_NAME = re.compile(
    r'step_(\d{1,12})--.*--task_(\d{1,9})--ep_(\d{1,9})--t_(\d{1,9})--meta\.pkl', re.DOTALL
)
_ENV_NAME = re.compile(r'task(\d{1,9})--ep(\d{1,9})--succ([01])(?:--meta)?\.pkl')
#: Only pi0-FAST emits tokens, and only its records hold these.
_FAST_KEYS = {'pre_logits', 'encoded', 'logits', 'decode_step', 'action_start_index_in_vocab'}
#: How many records may be unreadable before the policy is given up.
_PEEKS = 8
_MAX_INFERENCES = 1_000_000


@dataclass(frozen=True)
class OpenpiEpisode:
    """One episode: what its env record says, and the policy records that belong to it.

    Attributes
    ----------
    root, env_file : Path
    records : tuple of str
        Names of the policy records, in order.
    ordered_only : bool
        The names did not tell to which episode the records belong, only their order.
    """

    root: Path
    env_file: Path
    name: str
    task_id: int
    episode_index: int
    success: bool
    description: str
    suite: str
    inferences: int
    exec_horizon: int
    mp4_path: str
    video: str = ''
    records: tuple[str, ...] = ()
    ordered_only: bool = False

    @property
    def recorded(self) -> tuple[int, int]:
        """Task and episode as the recorder numbered them."""
        return self.task_id, self.episode_index


def is_root(path: Path) -> bool:
    """Say whether a folder is one recording of openpi."""
    return (path / ENV_RECORDS).is_dir() and (path / POLICY_RECORDS).is_dir()


def find_roots(path: Path) -> list[Path]:
    """Return the recordings in a folder: itself, or those up to two levels below it."""
    if not path.is_dir():
        return []
    if is_root(path):
        return [path]
    found = [place for place in _folders(path) if is_root(place)]
    found += [inner for place in _folders(path) for inner in _folders(place) if is_root(inner)]
    return sorted(found, key=lambda root: natural_key(root.relative_to(path).as_posix()))


def _folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which ``step_2`` comes before ``step_10``."""
    parts = re.split(r'(\d+)', name)
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in parts if part]


def has_env_names_of_droid(root: Path) -> bool:
    """Say whether the env records of a root are named as the Franka/DROID recordings are."""
    names = list_names(root / ENV_RECORDS, '.pkl')
    return bool(names) and all(name.endswith('--meta.pkl') for name in names)


def list_names(folder: Path, ending: str) -> list[str]:
    """Return the files of a folder whose name ends so, in natural order."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(ending)]
    except OSError as error:
        raise DumpError(f'{folder}: expected a readable folder, found {error.strerror}') from error
    return sorted((name for name in names if not name.startswith('.')), key=natural_key)


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


def read_dict(file: Path) -> dict[Any, Any]:
    """Read a pickle that must be a dict; raises DumpError on anything else."""
    record = load_pickle(file)
    if type(record) is not dict:
        raise DumpError(
            f'{file}: expected a dict as openpi records, found {shape_text(record)}; '
            'this is no record of openpi'
        )
    return record


# -- env records


def read_env_record(root: Path, name: str) -> OpenpiEpisode:
    """Read the env record of one episode, without its policy records.

    Raises
    ------
    DumpError
        A field is missing or of another kind, or the file name says something else.
    """
    file = root / ENV_RECORDS / name
    record = read_dict(file)
    index_key = 'episode_idx' if 'episode_idx' in record else 'eposide_idx'
    needed = (
        'task_id',
        'task_description',
        index_key,
        'episode_success',
        'model_infer_times',
        'replan_steps',
    )
    missing = [key for key in needed if key not in record]
    if missing:
        raise DumpError(
            f'{file}: expected {", ".join(missing)}, found only '
            f'{", ".join(str(key)[:40] for key in list(record)[:12])}; '
            'this is no env record of openpi'
        )
    success = _integer(file, record, 'episode_success', 0, 1)
    episode = OpenpiEpisode(
        root=root,
        env_file=file,
        name='',
        task_id=_integer(file, record, 'task_id', 0, 10**9),
        episode_index=_integer(file, record, index_key, 0, 10**9),
        success=bool(success),
        description=_text(file, record, 'task_description'),
        suite=_text(file, record, 'task_suite_name'),
        inferences=_integer(file, record, 'model_infer_times', 0, _MAX_INFERENCES),
        exec_horizon=_integer(file, record, 'replan_steps', 1, 10**6),
        mp4_path=_text(file, record, 'mp4_path'),
    )
    if match := _ENV_NAME.fullmatch(name):
        said = (episode.task_id, episode.episode_index, success)
        for key, named, found in zip(
            ('task_id', index_key, 'episode_success'), map(int, match.groups()), said, strict=True
        ):
            if named != found:
                raise DumpError(
                    f'{file}: expected {key} {named} as the file name says, found {found}; '
                    'the file was renamed or belongs to another episode'
                )
    return episode


def _integer(file: Path, record: Mapping[Any, Any], key: str, low: int, high: int) -> int:
    value = record[key]
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, (bool, int, np.integer, np.bool_)) or not low <= int(value) <= high:
        shown = int(value) if isinstance(value, (int, np.integer)) else shape_text(value)
        raise DumpError(f'{file}: expected {key} from {low} to {high}, found {shown}')
    return int(value)


def _text(file: Path, record: Mapping[Any, Any], key: str) -> str:
    value = record.get(key, '')
    if type(value) is not str:
        raise DumpError(f'{file}: expected {key} as text, found {shape_text(value)}')
    return value


# -- which policy records belong to which episode


def list_root(root: Path) -> tuple[list[OpenpiEpisode], list[str]]:
    """Tie the records of one root together.

    Returns
    -------
    episodes : list of OpenpiEpisode
        In natural order of their env records.
    strays : list of str
        What is wrong with the others, as messages.

    Raises
    ------
    DumpError
        The records cannot be tied at all: then no episode of the root can be trusted.
    """
    episodes: list[OpenpiEpisode] = []
    strays: list[str] = []
    for name in list_names(root / ENV_RECORDS, '.pkl'):
        try:
            episodes.append(read_env_record(root, name))
        except DumpError as error:
            strays.append(str(error))
    names = list_names(root / POLICY_RECORDS, '.pkl')
    strays += [
        f'{root / POLICY_RECORDS / name}: expected a name that ends in meta.pkl, found another; '
        'give it its name back or move it away'
        for name in names
        if not name.endswith('meta.pkl')
    ]
    names = [name for name in names if name.endswith('meta.pkl')]
    matches = [_POLICY_NAME.fullmatch(name) for name in names]
    if names and all(matches):
        episodes, more = _tie_by_name(root, episodes, [m for m in matches if m])
    elif not any(matches):
        episodes, more = _tie_by_order(root, episodes, names, strays), []
    else:
        plain = next(name for name, match in zip(names, matches, strict=True) if not match)
        raise DumpError(
            f'{root / POLICY_RECORDS / plain}: expected a name with task, episode and step as the '
            'other records have, found none; records of two recordings may be mixed'
        )
    episodes, twice = _without_duplicates(episodes)
    videos = set(list_names(root / ENV_RECORDS, '.mp4'))
    return [replace(e, video=_video(e, videos)) for e in episodes], strays + more + twice


def _tie_by_order(
    root: Path, episodes: list[OpenpiEpisode], names: list[str], strays: list[str]
) -> list[OpenpiEpisode]:
    if strays:
        raise DumpError(
            f'{strays[0]} (the names of the policy records do not tell to which episode they '
            'belong, so that none can be read without this file)'
        )
    total = sum(episode.inferences for episode in episodes)
    if total != len(names):
        raise DumpError(
            f'{root / POLICY_RECORDS}: expected {total} policy records, the sum of '
            f'model_infer_times of {len(episodes)} episodes, found {len(names)}; their names do '
            'not tell to which episode they belong, so that none can be read: copy the folder '
            'from its source again'
        )
    tied = []
    start = 0
    for episode in episodes:
        stop = start + episode.inferences
        tied.append(replace(episode, records=tuple(names[start:stop]), ordered_only=True))
        start = stop
    return tied


def _tie_by_name(
    root: Path, episodes: list[OpenpiEpisode], matches: list[re.Match[str]]
) -> tuple[list[OpenpiEpisode], list[str]]:
    groups: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    for match in matches:
        step, task, index, time = map(int, match.groups())
        groups.setdefault((task, index), []).append((step, time, match.string))
    tied = []
    problems = []
    used = set()
    for episode in episodes:
        key = _group_of(episode, episodes, groups)
        used.add(key)
        records = sorted(groups.get(key, []))
        times = [time for _, time, _ in records]
        if len(records) != episode.inferences:
            problems.append(
                f'{episode.env_file}: expected {episode.inferences} policy records of task '
                f'{key[0]}, episode {key[1]}, as model_infer_times says, found {len(records)} in '
                f'{root / POLICY_RECORDS}; copy the files again or leave the episode out'
            )
        elif any(later <= earlier for earlier, later in itertools.pairwise(times)):
            problems.append(
                f'{episode.env_file}: expected policy records whose time t_ rises with their step_ '
                f'number, found another order in {records[0][2]} and the following; records of '
                'two runs may be mixed'
            )
        else:
            tied.append(replace(episode, records=tuple(name for _, _, name in records)))
    problems += [
        f'{root / POLICY_RECORDS / min(records)[2]}: expected an env record of task {key[0]}, '
        f'episode {key[1]}, in {ENV_RECORDS}, found none for these {len(records)} policy records; '
        'copy it from the source or move the records away'
        for key, records in sorted(groups.items())
        if key not in used
    ]
    return tied, problems


def _group_of(
    episode: OpenpiEpisode, episodes: Iterable[OpenpiEpisode], groups: Iterable[tuple[int, int]]
) -> tuple[int, int]:
    """Find the records of an episode: by task and number, or by its number where that is unique.

    Franka/DROID recordings of one task a root may number the task differently in both places.
    """
    if episode.recorded in groups:
        return episode.recorded
    same_number = [key for key in groups if key[1] == episode.episode_index]
    rivals = [other for other in episodes if other.episode_index == episode.episode_index]
    if len(same_number) == 1 and len(rivals) == 1:
        return same_number[0]
    return episode.recorded


def _without_duplicates(
    episodes: list[OpenpiEpisode],
) -> tuple[list[OpenpiEpisode], list[str]]:
    """Leave out every episode that is there twice: nothing tells which one is meant."""
    by_number: dict[tuple[int, int], list[OpenpiEpisode]] = {}
    for episode in episodes:
        by_number.setdefault(episode.recorded, []).append(episode)
    messages = [
        f'{group[1].env_file}: expected every episode once, found task {key[0]}, episode '
        f'{key[1]} also in {group[0].env_file.name}; move the wrong one away'
        for key, group in by_number.items()
        if len(group) > 1
    ]
    return [e for e in episodes if len(by_number[e.recorded]) == 1], messages


def _video(episode: OpenpiEpisode, videos: set[str]) -> str:
    """Return the recording beside the env record, relative to the root; empty where none is."""
    stem = episode.env_file.name.removesuffix('.pkl').removesuffix('--meta')
    candidates = [f'{stem}.mp4', episode.mp4_path.replace('\\', '/').rsplit('/', 1)[-1]]
    candidates += sorted(v for v in videos if v.startswith(stem) and 'external_left' in v)
    found = next((name for name in candidates if name in videos), '')
    return f'{ENV_RECORDS}/{found}' if found else ''


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
        self.episodes, self.strays = self._list()

    def _list(self) -> tuple[list[OpenpiEpisode], list[str]]:
        episodes, strays = list_root(self.path)
        return [replace(e, name='task{}--ep{}'.format(*e.recorded)) for e in episodes], strays

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
            raise _no_inference(episode)
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
            raise _no_inference(episode)
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
            if type(prompt) is str and _plain(prompt) != _plain(episode.description):
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


def _no_inference(episode: OpenpiEpisode) -> DumpError:
    return DumpError(f'{episode.env_file}: expected at least one inference, found none')


def _plain(text: str) -> str:
    return ' '.join(re.findall(r'\w+', text.replace('_', ' ').casefold()))


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
