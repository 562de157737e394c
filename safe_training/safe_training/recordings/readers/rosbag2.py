# SPDX-License-Identifier: Apache-2.0
"""Reads rosbag2 recordings of ``vla/policy_step`` and ``vla/episode``, without ROS 2 installed.

Topics are found by their message type, so namespaces and other topics do not matter. The steps of
an episode carry its id; its task and outcome come from EpisodeEvents, the outcome also from a csv
beside the recording (:mod:`safe_training.recordings.labels`), which counts more because it was written later.
An episode without an outcome stays unlabelled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import Label, check_step, labels_file, read_labels
from safe_training.recordings.readers.base import (
    EpisodeProgress,
    ReadOptions,
    Source,
    wanted_feature,
)
from safe_training.recordings.untrusted.bag import detect_bag, open_bag
from safe_training.recordings.untrusted.bag_budget import Message
from safe_training.recordings.untrusted.cdr import (
    EVENT,
    KIND_LABEL,
    KIND_START,
    STEP,
    BagMessageError,
    Event,
    check_definition,
    event_from_cdr,
    step_from_cdr,
)
from vla_feature_bridge.pooling import FeatureSpec, PoolingError, parse_pooling
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

#: Key of ``custom_data`` under which a recording that we wrote keeps what messages cannot carry.
CUSTOM_KEY = 'safe_rollout_set'
CUSTOM_VERSION = 1

_POOLED_NAME = re.compile(r'([^\[\]]*)\[([^\[\]]+)\]')
#: Names of the axes of a raw tensor, outermost first, where the recording does not say.
_RAW_AXES = {0: (), 1: ('token',), 2: ('denoise', 'horizon')}
_FLOATS = ('bfloat16', 'float16', 'float32', 'float64')
#: Largest table of one episode: this many entries anyway, and this multiple of the given ones.
_FREE_PADDING = 1 << 20
_MAX_PADDING = 16


@dataclass
class _Episode:
    """What the first pass learns of an episode: everything but its arrays."""

    episode_id: str
    steps: set[int] = field(default_factory=set)
    problem: str = ''
    events: list[tuple[int, Event]] = field(default_factory=list)
    instruction: str = ''
    policy: str = ''
    feature: tuple[str, int, int] = ('', 0, 0)
    first: int = 0
    last: int = 0
    label: Label = field(default_factory=lambda: Label(None))

    def check(self) -> str:
        """Say what is wrong with the episode; empty if nothing is."""
        if self.problem:
            return self.problem
        if self.steps != set(range(len(self.steps))):
            missing = next(n for n in range(len(self.steps)) if n not in self.steps)
            return (
                f'expected all steps from 0 to {max(self.steps)}, found {len(self.steps)}, '
                f'without {missing}; the recording began late, or lost messages'
            )
        return ''


class RosbagSource(Source):
    """A recording made by ``ros2 bag record``, or written by ``convert``.

    Attributes
    ----------
    unlabelled : list of str
        Ids of the readable episodes whose outcome nobody has said.
    """

    kind = 'rosbag2'
    looks_for = 'metadata.yaml, *.mcap or *.db3 (rosbag2 recording)'

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        self._bag = open_bag(path)
        self._extras = _read_extras(path, self._bag.custom.get(CUSTOM_KEY))
        self._stray: list[str] = []
        self._episodes: dict[str, _Episode] = {}
        self._scan()
        self._label()
        self._number()
        self._recorded = self._find_feature()
        if names := self.unlabelled:
            listed = ', '.join(map(repr, names[:8]))
            more = f' and {len(names) - 8} more' if len(names) > 8 else ''
            self.notes.append(
                f'{len(names)} episodes have no outcome: {listed}{more}; say how they went with: '
                'python -m safe_training label'
            )

    @staticmethod
    def detect(path: Path) -> str | None:
        return detect_bag(path)

    def __len__(self) -> int:
        return len(self._episodes) + len(self._stray)

    @cached_property
    def feature(self) -> FeatureSpec:
        recorded = self._recorded
        if recorded.pooled:
            if self.options.pooling not in (None, recorded.pooling) or (
                self.options.keep == 'raw' and recorded.axes
            ):
                raise DumpError(
                    f'{self.path}: expected no other pooling, the recording holds {recorded}; '
                    'record raw features to pool them in any way'
                )
            return recorded
        wanted = wanted_feature(self.path, recorded.name, recorded.axes, self.options)
        if not wanted.pooled:
            return recorded
        name = next(name for name, episode in self._episodes.items() if not episode.check())
        first = next(self._read(only=name))
        return replace(wanted, dim=_pool(self.path, wanted, first[0].features).shape[-1])

    @property
    def labels(self) -> dict[str, Label]:
        """Outcome and failure step of every readable episode, None where nobody has said."""
        return {name: e.label for name, e in self._episodes.items() if not e.check()}

    @property
    def unlabelled(self) -> list[str]:
        return [name for name, label in self.labels.items() if label.success is None]

    def describe(self, episode_id: str) -> dict[str, Any]:
        """Return what is known of an episode without its arrays, for a person to recognise it."""
        episode = self._episodes[episode_id]
        return {
            'task': self._task(episode),
            'instruction': episode.instruction,
            'steps': len(episode.steps),
            'seconds': (episode.last - episode.first) * 1e-9,
            'recorded': episode.first,
            'video': str(self._extra(episode_id).get('video', '')),
            'said': list(dict.fromkeys(e.reason for _, e in episode.events if e.reason)),
        }

    # -- first pass

    def _scan(self) -> None:
        events: dict[str, list[tuple[int, Event]]] = {}
        for message in self._bag.messages((STEP, EVENT)):
            try:
                if message.topic.type == EVENT:
                    event = event_from_cdr(message.data)
                    events.setdefault(event.episode_id, []).append((message.time, event))
                else:
                    self._note(message, step_from_cdr(message.data))
            except BagMessageError as error:
                self._leave_out(f'{self.path}: topic {message.topic.name[:200]!r}: {error}')
        self._check_topics()
        # Events of other episodes are normal: a recorder is given the last ones when it starts.
        for name, episode in self._episodes.items():
            episode.events = sorted(events.get(name, ()), key=lambda pair: pair[0])

    def _note(self, message: Message, step: PolicyStep) -> None:
        feature = (step.feature_name, step.features.ndim, step.features.shape[-1])
        wanted = self.options.feature
        if wanted not in (None, step.feature_name, _base_name(step.feature_name)):
            return
        episode = self._episodes.get(step.episode_id)
        if episode is None:
            episode = self._episodes[step.episode_id] = _Episode(
                step.episode_id,
                instruction=step.instruction,
                policy=step.policy,
                feature=feature,
                first=message.time,
            )
        if step.step in episode.steps:
            episode.problem = episode.problem or (
                f'expected each step once, found step {step.step} twice; two recordings or two '
                'policies share this episode_id'
            )
        elif feature != episode.feature:
            episode.problem = episode.problem or (
                f'expected features {episode.feature[0]!r} of width {episode.feature[2]} at every '
                f'step, found {step.feature_name!r} of width {feature[2]} at step {step.step}'
            )
        episode.steps.add(step.step)
        episode.last = max(episode.last, message.time)

    def _leave_out(self, message: str) -> None:
        if not self.options.skip_bad:
            raise DumpError(f'{message}; leave it out with --skip-bad, or record again')
        self._stray.append(message)

    def _check_topics(self) -> None:
        for topic in self._bag.topics:
            if topic.type in (STEP, EVENT):
                try:
                    check_definition(topic.type, topic.encoding, topic.definition)
                except BagMessageError as error:
                    raise DumpError(f'{self.path}: topic {topic.name[:200]!r}: {error}') from None
        if self._episodes or self._stray:
            return
        found = ', '.join(f'{t.name[:80]!r} ({t.type[:80]!r})' for t in self._bag.topics[:8])
        wanted = f' with features {self.options.feature!r}' if self.options.feature else ''
        raise DumpError(
            f'{self.path}: expected messages of type {STEP}{wanted}, found none; topics: '
            f'{found or "none"}. Record with: ros2 bag record vla/policy_step vla/episode'
        )

    # -- task and outcome

    def _label(self) -> None:
        for name, episode in self._episodes.items():
            step = self._extra(name).get('failure_step')
            if step is not None and step not in episode.steps:
                raise DumpError(
                    f'{self.path}: episode {name!r}: expected a failure_step of its '
                    f'{len(episode.steps)} steps, found {step}'
                )
            said: bool | None = None
            for _, event in episode.events:
                # An END that says nothing takes no earlier label back, a LABEL does.
                if event.success is not None or event.kind == KIND_LABEL:
                    said = event.success if event.kind != KIND_START else said
            episode.label = Label(said, step if said is False else None)
        file = labels_file(self.path)
        if not file.exists():
            return
        for name, label in read_labels(file).items():
            if name not in self._episodes:
                raise DumpError(
                    f'{file}: expected episodes of {self.path.name}, found {name!r}; correct the '
                    'name, or move the file away if it belongs to another recording'
                )
            check_step(label, max(self._episodes[name].steps) + 1, f'{file}: episode {name!r}')
            self._episodes[name].label = label

    def _number(self) -> None:
        tasks = sorted({self._task(episode) for episode in self._episodes.values()})
        self._task_ids = {task: number for number, task in enumerate(tasks)}
        self._indices: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name, episode in self._episodes.items():
            task = self._task(episode)
            self._indices[name] = counts[task] = counts.get(task, -1) + 1

    def _task(self, episode: _Episode) -> str:
        tasks = [event.task for _, event in episode.events if event.task]
        return tasks[-1] if tasks else episode.instruction

    def _extra(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._extras['episodes'].get(name, {})
        return found

    # -- features

    def _find_feature(self) -> FeatureSpec:
        """Settle what was recorded, by the first good episode, and note who differs."""
        good = [episode for episode in self._episodes.values() if not episode.check()]
        if not good:
            return self._no_episode()
        name, ndim, width = good[0].feature
        for episode in good:
            if episode.feature != good[0].feature:
                episode.problem = (
                    f'expected features {name!r} with {ndim} axes and width {width} as in episode '
                    f'{good[0].episode_id!r}, found {episode.feature[0]!r} with '
                    f'{episode.feature[1]} axes and width {episode.feature[2]}; choose with '
                    '--feature where a recording holds several'
                )
        self.policy = good[0].policy
        recorded = self._recorded_spec(name, ndim, width)
        self.raw_axes = () if recorded.pooled else recorded.axes
        return recorded

    def _no_episode(self) -> FeatureSpec:
        problems = [*self._stray, *self._problems()]
        raise DumpError(
            f'{self.path}: expected at least one readable episode, found none of {len(self)}; '
            f'the first: {problems[0]}'
        )

    def _recorded_spec(self, name: str, ndim: int, width: int) -> FeatureSpec:
        try:
            stated = self._extras.get('feature')
            if stated is not None and str(spec := FeatureSpec.from_dict(stated)) == name:
                return spec
            if match := _POOLED_NAME.fullmatch(name):
                pooling = parse_pooling(match.group(2).split(','))
                return FeatureSpec(match.group(1), width, tuple(a for a, _ in pooling), pooling)
            axes = _RAW_AXES.get(ndim - 1) or tuple(f'axis{n}' for n in range(ndim - 1))
            return FeatureSpec(name or 'features', width, axes)
        except PoolingError as error:
            raise DumpError(f'{self.path}: features {name[:200]!r}: {error}') from None

    # -- second pass

    def rollouts(self, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
        self.skipped = [*self._stray, *self._problems()]
        if self.skipped and not self.options.skip_bad:
            raise DumpError(self.skipped[0])
        done = len(self.skipped)
        for steps in self._read():
            if progress:
                progress(done, len(self))
            done += 1
            try:
                rollout = self._rollout(self._episodes[steps[0].episode_id], steps)
            except DumpError as error:
                if not self.options.skip_bad:
                    raise
                self.skipped.append(str(error))
                continue
            yield rollout
        if progress:
            progress(len(self), len(self))

    def _problems(self) -> list[str]:
        return [
            f'{self.path}: episode {name!r}: {problem}; leave it out with --skip-bad'
            for name, episode in self._episodes.items()
            if (problem := episode.check())
        ]

    def _read(self, only: str | None = None) -> Iterator[list[PolicyStep]]:
        """Yield the steps of each good episode as soon as the last of them was read."""
        wanted = {
            name: len(episode.steps)
            for name, episode in self._episodes.items()
            if not episode.check() and only in (None, name)
        }
        waiting: dict[str, list[PolicyStep]] = {}
        for message in self._bag.messages((STEP,)):
            try:
                # A copy, since a view would keep everything in memory that was packed with it.
                step = step_from_cdr(bytes(message.data))
            except BagMessageError:
                continue  # told in the first pass
            name = step.episode_id
            if name not in wanted or step.feature_name != self._episodes[name].feature[0]:
                continue
            steps = waiting.setdefault(name, [])
            steps.append(step)
            if len(steps) == wanted[name]:
                yield sorted(waiting.pop(name), key=lambda s: s.step)

    def _rollout(self, episode: _Episode, steps: list[PolicyStep]) -> Rollout:
        where = f'{self.path}: episode {episode.episode_id!r}'
        extra = self._extra(episode.episode_id)
        features, lengths = self._features(where, steps)
        horizons = {step.exec_horizon for step in steps[:-1]} or {steps[0].exec_horizon}
        if len(horizons) > 1:
            raise DumpError(
                f'{where}: expected one exec_horizon, found {", ".join(map(str, sorted(horizons)))}'
            )
        stamps = np.array([step.stamp for step in steps], np.int64)
        times = np.array([step.inference_time for step in steps], np.float32)
        task = self._task(episode)
        return Rollout(
            features=features,
            task=task,
            success=episode.label.success,
            episode_id=episode.episode_id,
            task_id=extra.get('task_id', self._task_ids[task]),
            episode_index=extra.get('episode_index', self._indices[episode.episode_id]),
            instruction=episode.instruction,
            policy=episode.policy,
            feature_name=str(self.feature),
            actions=_stack(where, 'actions', [step.actions for step in steps]),
            exec_horizon=steps[0].exec_horizon,
            token_probability=_pad(where, [step.token_probability for step in steps]),
            token_entropy=_pad(where, [step.token_entropy for step in steps]),
            signals=_signals(where, steps),
            stamps=stamps if stamps.any() and extra.get('stamps', True) else None,
            inference_time=None if np.isnan(times).all() else times,
            failure_step=episode.label.failure_step,
            video=extra.get('video', ''),
            unseen=extra.get('unseen', False),
            feature_lengths=lengths,
        )

    def _features(
        self, where: str, steps: list[PolicyStep]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        rows = [step.features for step in steps]
        for step, row in enumerate(rows):
            if row.dtype != rows[0].dtype or row.dtype.name not in _FLOATS:
                raise DumpError(
                    f'{where}: expected features of one float dtype, found {row.dtype} at step '
                    f'{step}'
                )
            if not np.isfinite(row).all():
                raise DumpError(
                    f'{where}: expected finite features, found NaN or infinity at step {step}'
                )
        if not self._recorded.pooled and self.feature.pooled:
            return np.stack([_pool(self.path, self.feature, row) for row in rows]), None
        if rows[0].ndim == 1 or len({row.shape for row in rows}) == 1:
            return np.stack(rows), None
        if len({row.shape[1:] for row in rows}) > 1:
            raise DumpError(f'{where}: expected raw features whose first axis alone varies')
        lengths = np.array([len(row) for row in rows], np.int64)
        _check_padding(where, len(rows) * int(lengths.max()), int(lengths.sum()))
        padded = np.zeros((len(rows), int(lengths.max()), *rows[0].shape[1:]), rows[0].dtype)
        for step, row in enumerate(rows):
            padded[step, : len(row)] = row
        return padded, lengths


def _pool(path: Path, spec: FeatureSpec, raw: np.ndarray) -> np.ndarray:
    try:
        return spec.apply(raw)
    except PoolingError as error:
        raise DumpError(f'{path}: {error}') from error


def _base_name(feature_name: str) -> str:
    return feature_name.partition('[')[0]


def _stack(where: str, what: str, rows: list[np.ndarray | None]) -> np.ndarray | None:
    given = [row for row in rows if row is not None]
    if not given:
        return None
    if len({(row.shape, row.dtype) for row in given}) > 1 or len(given) != len(rows):
        raise DumpError(f'{where}: expected {what} of one shape and dtype at every step')
    stacked = np.stack(given)
    if stacked.dtype.kind not in 'iu' and not np.isfinite(stacked).all():
        raise DumpError(f'{where}: expected finite {what}, found NaN or infinity')
    return stacked


def _pad(where: str, rows: list[np.ndarray | None]) -> np.ndarray | None:
    widths = [0 if row is None else len(row) for row in rows]
    if max(widths) == 0:
        return None
    _check_padding(where, len(rows) * max(widths), sum(widths))
    padded = np.full((len(rows), max(widths)), np.nan, np.float32)
    for step, row in enumerate(rows):
        if row is not None:
            padded[step, : len(row)] = row
    return padded


def _signals(where: str, steps: list[PolicyStep]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for step in steps for name in step.signals)
    _check_padding(where, len(names) * len(steps), sum(len(step.signals) for step in steps))
    return {
        name: np.array([step.signals.get(name, np.nan) for step in steps], np.float32)
        for name in names
    }


def _check_padding(where: str, padded: int, given: int) -> None:
    """Refuse steps so unlike each other that a table of them is mostly empty and very large."""
    if padded > _FREE_PADDING + _MAX_PADDING * given:
        raise DumpError(
            f'{where}: expected steps with a similar number of tokens and signals, found {given} '
            f'values that need a table of {padded}'
        )


# -- what messages cannot carry


def _read_extras(path: Path, text: str | None) -> dict[str, Any]:
    """Read what :mod:`safe_training.recordings.write_bag` wrote into the metadata; empty for other recordings."""
    empty: dict[str, Any] = {'episodes': {}}
    if text is None:
        return empty
    problem = f'{path}: expected custom data {CUSTOM_KEY!r} as convert writes it, found'
    try:
        extras = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DumpError(f'{problem} {str(error)[:160]}') from None
    if type(extras) is not dict or extras.get('version') != CUSTOM_VERSION:
        raise DumpError(f'{problem} another version')
    kinds = {
        'task_id': int,
        'episode_index': int,
        'failure_step': int,
        'video': str,
        'stamps': bool,
        'unseen': bool,
    }
    episodes = extras.get('episodes')
    if type(episodes) is not dict or type(extras.get('feature')) not in (dict, type(None)):
        raise DumpError(f'{problem} another layout')
    for name, extra in episodes.items():
        if type(extra) is not dict or not all(
            type(value) is kinds.get(key) and (type(value) is not int or abs(value) < 2**62)
            for key, value in extra.items()
        ):
            raise DumpError(f'{problem} other values for episode {name[:200]!r}')
    return extras
