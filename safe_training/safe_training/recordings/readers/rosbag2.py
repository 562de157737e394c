# SPDX-License-Identifier: Apache-2.0
"""Reads rosbag2 recordings of ``vla/policy_step`` and ``vla/episode``, without ROS 2 installed.

Topics are found by their message type, so namespaces and other topics do not matter. Every step
carries the id of its episode. Task and outcome come from EpisodeEvents; a csv beside the recording
(:mod:`safe_training.recordings.labels`) has priority over the events, because it was written later.
An episode without an outcome has no label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safe_training.recordings.errors import LEAVE_OUT, DumpError
from safe_training.recordings.label_files import custom_data, labels_of
from safe_training.recordings.labels import Label, check_step
from safe_training.recordings.readers.base import (
    EpisodeProgress,
    ReadOptions,
    Source,
    no_readable_episode,
    wanted_feature,
)
from safe_training.recordings.readers.rosbag2_arrays import (
    pooled,
    stacked_features,
    stacked_fields,
    stacked_signals,
)
from safe_training.recordings.readers.rosbag2_episodes import (
    CUSTOM_KEY,
    CUT,
    Episode,
    lost_extras,
    read_extras,
    unlabelled_note,
)
from safe_training.recordings.readers.statistics import checked_statistics
from safe_training.recordings.untrusted.bag import detect_bag, open_bag
from safe_training.recordings.untrusted.bag_budget import Message, Topic
from safe_training.recordings.untrusted.cdr import (
    EVENT,
    KIND_END,
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

_POOLED_NAME = re.compile(r'([^\[\]]*)\[([^\[\]]+)\]')
#: Names of the axes of a raw tensor, outermost first, used if the recording does not contain them.
_RAW_AXES = {0: (), 1: ('token',), 2: ('denoise', 'horizon')}


class RosbagSource(Source):
    """A recording made by ``ros2 bag record``, or written by ``convert``."""

    kind = 'rosbag2'
    looks_for = 'metadata.yaml, *.mcap or *.db3 (rosbag2 recording)'

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        self._bag = open_bag(path, whole=not options.skip_bad)
        self._extras = read_extras(path, custom_data(self._bag, CUSTOM_KEY))
        self._unreadable: list[str] = []
        self._other_features: dict[str, None] = {}
        self._episodes: dict[str, Episode] = {}
        self._layouts: dict[Topic, str] = {}
        self._scan()
        self.notes += lost_extras(self._episodes, self._extras['episodes'])
        self._label()
        self._number()
        self._recorded = self._find_feature()
        if names := self.unlabelled:
            self.notes.append(unlabelled_note(path, names))
        if self._other_features:
            others = ', '.join(map(repr, self._other_features))
            self.notes.append(f'steps with these features are not read: {others}')

    @staticmethod
    def detect(path: Path) -> str | None:
        """Return the reason why the path is recognised as a recording; None if it is not."""
        return detect_bag(path)

    def __len__(self) -> int:
        return len(self._episodes) + len(self._unreadable) + len(self._bag.losses)

    @cached_property
    def feature(self) -> FeatureSpec:
        """The feature of the rollouts: the recorded feature, or pooled as in the options."""
        recorded = self._recorded
        if recorded.pooled:
            if self.options.pooling not in (None, recorded.pooling) or (
                self.options.keep == 'raw' and recorded.axes
            ):
                pairs = ['='.join(pair) for pair in self.options.pooling or ()]
                raise DumpError(
                    where=str(self.path),
                    expected=f'the pooling of this recording, {recorded}',
                    found=f'--pooling {", ".join(pairs)}' if pairs else '--keep raw',
                    advice='remove this option, or record raw features (raw features can be '
                    'pooled with any pooling)',
                )
            return recorded
        wanted = wanted_feature(self.path, recorded.name, recorded.axes, self.options)
        if not wanted.pooled:
            return recorded
        name = next(name for name, episode in self._episodes.items() if not episode.check())
        first = next(self._read(only=name))
        return replace(wanted, dim=pooled(str(self.path), wanted, first[0].features).shape[-1])

    @property
    def labels(self) -> dict[str, Label]:
        """Outcome and failure step of every readable episode; the outcome is None if unknown."""
        return {name: e.label for name, e in self._episodes.items() if not e.check()}

    @property
    def unlabelled(self) -> list[str]:
        """Ids of the readable episodes without an outcome."""
        return [name for name, label in self.labels.items() if label.success is None]

    def describe(self, episode_id: str) -> dict[str, Any]:
        """Return facts by which a person can recognise an episode; reads no arrays."""
        episode = self._episodes[episode_id]
        return {
            'task': episode.task,
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
        last, seen, cut = '', 0, set()
        for message in self._bag.messages((STEP, EVENT)):
            if len(self._bag.losses) > seen:
                seen = len(self._bag.losses)
                cut.add(last)
            try:
                if message.topic.type == EVENT:
                    event = event_from_cdr(message.data)
                    events.setdefault(event.episode_id, []).append((message.time, event))
                    if event.kind == KIND_END and event.episode_id == last:
                        last = ''
                else:
                    step = step_from_cdr(message.data, self._layout(message.topic))
                    self._note(message, step)
                    last = step.episode_id
            except BagMessageError as error:
                self._leave_out(f'{self.path}: topic {message.topic.name[:200]!r}: {error}')
        if self._bag.losses:
            cut.add(last)
        self._check_topics()
        # A recording can contain events of earlier episodes, because a recorder receives the last
        # events when it starts.
        for name, episode in self._episodes.items():
            episode.events = sorted(events.get(name, ()), key=lambda pair: pair[0])
            if name in cut:
                episode.problem = episode.problem or CUT

    def _note(self, message: Message, step: PolicyStep) -> None:
        wanted = self.options.feature
        if wanted not in (None, step.feature_name, step.feature_name.partition('[')[0]):
            if len(self._other_features) < 8:
                self._other_features[step.feature_name[:200]] = None
            return
        episode = self._episodes.get(step.episode_id)
        if episode is None:
            episode = self._episodes[step.episode_id] = Episode.begun_by(step, message.time)
        episode.add(step, message.time)

    def _leave_out(self, message: str) -> None:
        if not self.options.skip_bad:
            raise DumpError(f'{message}; {LEAVE_OUT}')
        self._unreadable.append(message)

    def _check_topics(self) -> None:
        for topic in self._bag.topics:
            if topic.type in (STEP, EVENT):
                self._layout(topic)
        if self._episodes or self._unreadable:
            return
        if self._bag.losses:
            raise no_readable_episode(self, self._bag.losses)
        if self._other_features:
            raise DumpError(
                where=str(self.path),
                expected=f'steps with the feature {self.options.feature!r}',
                found=f'only the features {", ".join(map(repr, self._other_features))}',
                advice='give one of these names as --feature',
            )
        found = ', '.join(f'{t.name[:80]!r} ({t.type[:80]!r})' for t in self._bag.topics[:8])
        raise DumpError(
            where=str(self.path),
            expected=f'messages of type {STEP}',
            found=f'no matching message in the topics {found}' if found else 'no topic',
            advice='record with: ros2 bag record vla/policy_step vla/episode',
        )

    def _layout(self, topic: Topic) -> str:
        """Return the layout of the messages of a topic, by its definition."""
        if topic not in self._layouts:
            try:
                layout = check_definition(topic.type, topic.encoding, topic.definition)
            except BagMessageError as error:
                raise DumpError(f'{self.path}: topic {topic.name[:200]!r}: {error}') from None
            self._layouts[topic] = layout
        return self._layouts[topic]

    # -- task and outcome

    def _label(self) -> None:
        for name, episode in self._episodes.items():
            step = self._extra(name).get('failure_step')
            if step is not None and step not in episode.steps and not self._bag.losses:
                raise DumpError(
                    where=f'{self.path}: episode {name!r}',
                    expected=f'failure_step as the number of one of the {len(episode.steps)} steps',
                    found=str(step),
                    advice='the metadata is damaged: convert the rollout set to a recording again',
                )
            success = episode.stated_success
            episode.label = Label(success, step if success is False else None)
        found, notes = labels_of(self.path, self._episodes, incomplete=bool(self._bag.losses))
        self.notes += notes
        for name, (label, file) in found.items():
            if self._episodes[name].check():
                continue  # The episode is left out.
            check_step(label, max(self._episodes[name].steps) + 1, f'{file}: episode {name!r}')
            self._episodes[name].label = label

    def _number(self) -> None:
        tasks = sorted({episode.task for episode in self._episodes.values()})
        self._task_ids = {task: number for number, task in enumerate(tasks)}
        self._indices: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name, episode in self._episodes.items():
            task = episode.task
            self._indices[name] = counts[task] = counts.get(task, -1) + 1

    def _extra(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._extras['episodes'].get(name, {})
        return found

    # -- features

    def _find_feature(self) -> FeatureSpec:
        """Return the feature of the first good episode.

        Episodes with a different feature or action space are reported as bad.
        """
        good = [episode for episode in self._episodes.values() if not episode.check()]
        if not good:
            return self._no_episode()
        name, ndim, width = good[0].feature
        for episode in good:
            if episode.feature != good[0].feature:
                episode.problem = (
                    f'expected the feature {name!r} (axes: {ndim}, width: {width}), as in '
                    f'episode {good[0].episode_id!r}, found the feature {episode.feature[0]!r} '
                    f'(axes: {episode.feature[1]}, width: {episode.feature[2]}); if the '
                    'recording contains several features, choose one feature with --feature NAME'
                )
            elif episode.action_space != good[0].action_space:
                episode.problem = (
                    f'expected the action space {good[0].action_space!r}, as in episode '
                    f'{good[0].episode_id!r}, found {episode.action_space!r}'
                )
        self.policy = good[0].policy
        recorded = self._recorded_spec(name, ndim, width)
        self.raw_axes = () if recorded.pooled else recorded.axes
        return recorded

    def left_out(self) -> list[str]:
        """Return the reasons why parts of the recording and episodes cannot be read."""
        return [*self._bag.losses, *self._unreadable, *self._problems()]

    def _no_episode(self) -> FeatureSpec:
        raise no_readable_episode(self, self.left_out())

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
        """Yield the rollouts in the order of the recording time of their last steps."""
        self.skipped = self.left_out()
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
            f'{self.path}: episode {name!r}: {problem}; leave the episode out with --skip-bad'
            for name, episode in self._episodes.items()
            if (problem := episode.check())
        ]

    def _read(self, only: str | None = None) -> Iterator[list[PolicyStep]]:
        """Yield the steps of each good episode as soon as its last step is read."""
        wanted = {
            name: len(episode.steps)
            for name, episode in self._episodes.items()
            if not episode.check() and only in (None, name)
        }
        waiting: dict[str, list[PolicyStep]] = {}
        for message in self._bag.messages((STEP,)):
            try:
                # A copy: a view would keep the whole unpacked chunk in memory.
                step = step_from_cdr(bytes(message.data), self._layout(message.topic))
            except BagMessageError:
                continue  # reported in the first pass
            name = step.episode_id
            if name not in wanted or step.feature_name != self._episodes[name].feature[0]:
                continue
            steps = waiting.setdefault(name, [])
            steps.append(step)
            if len(steps) == wanted[name]:
                yield sorted(waiting.pop(name), key=lambda s: s.step)

    def _rollout(self, episode: Episode, steps: list[PolicyStep]) -> Rollout:
        where = f'{self.path}: episode {episode.episode_id!r}'
        extra = self._extra(episode.episode_id)
        pooling = self.feature if self.feature.pooled and not self._recorded.pooled else None
        features, lengths = stacked_features(where, steps, pooling)
        horizons = {step.exec_horizon for step in steps[:-1]} or {steps[0].exec_horizon}
        if len(horizons) > 1:
            raise DumpError(
                where=where,
                expected='one value of exec_horizon at all steps',
                found=', '.join(map(str, sorted(horizons))),
                advice=LEAVE_OUT,
            )
        fields = stacked_fields(where, steps)
        if not extra.get('stamps', True):
            fields['stamps'] = None
        task = episode.task
        rollout = Rollout(
            features=features,
            task=task,
            success=episode.label.success,
            episode_id=episode.episode_id,
            task_id=extra.get('task_id', self._task_ids[task]),
            episode_index=extra.get('episode_index', self._indices[episode.episode_id]),
            instruction=episode.instruction,
            policy=episode.policy,
            feature_name=str(self.feature),
            exec_horizon=steps[0].exec_horizon,
            signals=stacked_signals(where, steps),
            failure_step=episode.label.failure_step,
            video=extra.get('video', ''),
            unseen=extra.get('unseen', False),
            action_space=episode.action_space,
            feature_lengths=lengths,
            **fields,
        )
        return checked_statistics(rollout, self.path)
