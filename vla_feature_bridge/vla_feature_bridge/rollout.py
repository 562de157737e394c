# SPDX-License-Identifier: Apache-2.0
"""The recorded steps of one episode, stacked, with the task and the outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep, StepField


class RolloutError(SafeError):
    """The arrays of a rollout do not match each other.

    The message contains the rollout and the array.
    """


@dataclass(eq=False)
class Rollout:
    """All steps of one episode; T is their number.

    Attributes
    ----------
    features : ndarray, shape (T, D) pooled or (T, ..., D) raw, any float dtype
    feature_lengths : ndarray of int, shape (T,), or None
        Raw features only: true length of the first raw axis (the tokens) at each step; the rest of
        ``features`` is padding. None if no step is padded.
    task : str
        Name of the task, by which splits and macro averages group rollouts.
    success : bool or None
        The outcome; None if the rollout has no label.
    episode_id : str
        Unique name; ``task/episode_index`` if not given.
    task_id, episode_index : int
        As recorded in the source.
    instruction, policy : str
    feature_name : str
        ``str(FeatureSpec)`` of the features.
    actions : ndarray, shape (T, samples, horizon, action_dim), or None
        Sample 0 is the executed sample.
    exec_horizon : int
        Number of actions of a chunk that were executed before the next inference; the nominal
        number under real-time chunking.
    token_probability, token_entropy : ndarray, shape (T, tokens), or None
        NaN where a step emitted fewer tokens; entropy [nats].
    signals : dict of str to ndarray, shape (T,)
    stamps : ndarray of int64, shape (T,), or None
        Time of the observation of each step [ns].
    inference_time : ndarray, shape (T,), or None
        Duration of each inference [s].
    failure_step : int or None
        Step at which the failure began, as a person saw it.
    video : str
        Path of the video, relative to the source; empty if none.
    unseen : bool
        True if the source marks this task as unseen: no detector is trained on it.
    action_space : str
        Name of the space of ``actions``, such as :data:`vla_feature_bridge.step.ROBOT`; empty if
        unknown.
    """

    features: np.ndarray
    task: str
    success: bool | None = None
    episode_id: str = ''
    task_id: int = 0
    episode_index: int = 0
    instruction: str = ''
    policy: str = ''
    feature_name: str = ''
    actions: np.ndarray | None = None
    exec_horizon: int = 1
    token_probability: np.ndarray | None = None
    token_entropy: np.ndarray | None = None
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    stamps: np.ndarray | None = None
    inference_time: np.ndarray | None = None
    failure_step: int | None = None
    video: str = ''
    unseen: bool = False
    feature_lengths: np.ndarray | None = None
    action_space: str = ''

    def __post_init__(self) -> None:
        if not self.episode_id:
            self.episode_id = f'{self.task}/{self.episode_index}'
        if self.features.ndim < 2 or self.features.shape[0] == 0:
            raise RolloutError(
                where=f'rollout {self.episode_id!r}',
                expected='features of shape (T, ..., D) with T >= 1',
                found=f'shape {self.features.shape}',
            )
        for known in STEP_FIELDS:
            self._check(known.stacked, getattr(self, known.stacked), known.axes)
        self._check('feature_lengths', self.feature_lengths, ())
        for name, values in self.signals.items():
            self._check(f'signal {name!r}', values, ())
        if self.feature_lengths is not None:
            longest = self.features.shape[1] if self.features.ndim > 2 else 0
            if self.feature_lengths.min() < 1 or self.feature_lengths.max() > longest:
                raise RolloutError(
                    where=f'rollout {self.episode_id!r}',
                    expected=f'feature_lengths from 1 to {longest}, which is the length of the '
                    f'first raw axis of features of shape {self.features.shape}',
                    found=f'{self.feature_lengths.min()} to {self.feature_lengths.max()}',
                )

    def _check(self, name: str, array: np.ndarray | None, axes: tuple[str, ...]) -> None:
        if array is not None and (array.ndim != 1 + len(axes) or array.shape[0] != len(self)):
            wanted = ', '.join([str(len(self)), *axes])
            raise RolloutError(
                where=f'rollout {self.episode_id!r}',
                expected=f'{name} of shape ({wanted}), with one entry for each step',
                found=f'shape {array.shape}',
            )

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def failed(self) -> bool:
        """True for a failure, the positive class; unlabelled rollouts raise RolloutError."""
        if self.success is None:
            raise RolloutError(
                where=f'rollout {self.episode_id!r}',
                expected='an outcome',
                found='none',
                advice='label the rollout with: python -m safe_training label SOURCE',
            )
        return not self.success

    def step(self, t: int) -> PolicyStep:
        """Return step ``t`` as a live policy publishes it; its arrays are views.

        Raises
        ------
        IndexError
            The rollout has no such step.
        """
        if not 0 <= t < len(self):
            raise IndexError(
                f'rollout {self.episode_id!r}: expected a step from 0 to {len(self) - 1}, found {t}'
            )
        features = self.features[t]
        if self.feature_lengths is not None:
            features = features[: int(self.feature_lengths[t])]
        return PolicyStep(
            features=features,
            feature_name=self.feature_name,
            episode_id=self.episode_id,
            step=t,
            policy=self.policy,
            instruction=self.instruction,
            exec_horizon=self.exec_horizon,
            signals={name: float(values[t]) for name, values in self.signals.items()},
            action_space=self.action_space,
            **{field.name: _entry(field, getattr(self, field.stacked), t) for field in STEP_FIELDS},
        )


def _entry(field: StepField, array: np.ndarray | None, t: int) -> Any:
    if array is None:
        return field.default
    if field.kind == 'values':
        row = array[t]
        return row[~np.isnan(row)]
    if field.kind == 'tensor':
        return array[t]
    return int(array[t]) if field.kind == 'stamp' else float(array[t])
