# SPDX-License-Identifier: Apache-2.0
"""The linear probe: a linear function of the hidden state and of the history of the action signals.

``safe_training.fitting.probe`` fits the probe and chooses its kind. This module computes the
scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safe_monitor_node.detectors.accumulation import unsmoothed
from safe_monitor_node.detectors.base import (
    ArraySpec,
    Detector,
    DetectorError,
    StepError,
    Stream,
    checked_vector,
    missing_signal,
)
from safe_monitor_node.detectors.signal_history import (
    HISTORY,
    SignalHistory,
    signal_histories,
    smoothed,
)
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

_INPUTS = ('both', 'features', 'signals')
_METHODS = ('linear', 'distance')

# Scores are float32.
_LARGEST = 1e30
# Rollouts that are scored in one product.
_TOGETHER = 32
_NO_FEATURES = np.zeros(0, np.float32)
_ADD_SIGNAL = (
    'add the signal to the steps, or add the action chunks, from which the bridge computes its '
    'signals'
)


@dataclass(kw_only=True, eq=False)
class LinearProbe(Detector):
    """A regularised linear probe of hidden state and signal history, smoothed over time.

    Fitting standardises the features, reduces them to principal components, appends the history of
    the action signals, and trains a logistic regression in which failures and successes of each
    task have the same total weight. All linear maps are combined into one vector. The score is the
    log-odds of failure.

    A parameter with the value None or 'auto' has a fixed value: features and signals as inputs,
    ``l2`` 1 and ``smoothing`` 0.5. Rollouts without features are scored by their signals alone,
    with ``l2`` 0.3 and ``smoothing`` 0.7. With ``choose``, these parameters are chosen by
    leave-one-task-out cross-validation on the training tasks instead, as in version 0.1. If the
    Mahalanobis distance to successful steps (32 principal components) then has a better
    leave-one-task-out AUC than every probe, the score is this distance (method 'distance').

    Parameters
    ----------
    inputs : {'auto', 'both', 'features', 'signals'}
        The inputs. With 'features', a rollout needs no signals. Otherwise it must have features and
        signals, or only signals.
    signals : list of str or None
        Signals by name; None uses the signals of :mod:`vla_feature_bridge.signals`, which the
        bridge computes live. If a recording contains none of the signals of this module, None uses
        all signals in the recording.
    components : int
        Principal components of the features.
    l2 : float or None
        Strength of the regularisation, relative to the mean loss of a rollout.
    smoothing : float or None
        Weight of the past in the moving average of the score; 0 disables the average.
    method : {'auto', 'linear', 'distance'}
        The kind of score.
    choose : bool
        Choose the parameters with the value None or 'auto' on the training tasks. On tasks that
        were not used for training, the fixed values are at least as good.
    """

    name = 'linear_probe'
    needs = frozenset({'features', 'signals'})

    inputs: str = 'auto'
    signals: list[str] | None = None
    components: int = 64
    l2: float | None = None
    smoothing: float | None = None
    method: str = 'auto'
    choose: bool = False

    choice_: dict[str, Any] = field(init=False, repr=False)
    """Values in use: inputs, l2, method, smoothing, signals; and the leave-one-task-out AUC, or
    None if nothing was chosen.
    """
    projection_: np.ndarray = field(init=False, repr=False)
    """Projection of the features, (k, D): one row for method 'linear', whitened axes for method
    'distance'.
    """
    offset_: np.ndarray = field(init=False, repr=False)
    """Offset of the projection, (k,)."""
    signal_scale_: np.ndarray = field(init=False, repr=False)
    """Typical size of each signal, (S,)."""
    signal_weights_: np.ndarray = field(init=False, repr=False)
    """Weights of the signal history, (S, 4), columns as :data:`HISTORY`."""

    @property
    def reads_actions(self) -> bool:
        """True if the score depends on signals of actions."""
        if not self.fitted:
            return self.inputs != 'features'
        return self.choice_['method'] == 'linear' and bool(self.signal_weights_.any())

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        self._check_choice('inputs', ('auto', *_INPUTS))
        self._check_choice('method', ('auto', *_METHODS))
        self._check_integer('components')
        self._check_flag('choose')
        if self.l2 is not None:
            self._check_number('l2', above=0)
        if self.smoothing is not None and not 0 <= self.smoothing < 1:
            raise self._refused('smoothing', 'None, or a number of at least 0 and below 1')
        if self.signals is not None and (
            not isinstance(self.signals, list) or not all(type(n) is str for n in self.signals)
        ):
            raise self._refused('signals', 'None or a list of names')
        if self.method == 'distance' and self.inputs == 'signals':
            raise self._refused(
                'inputs',
                "inputs with features (method is 'distance')",
                advice="choose inputs='features', or choose another method",
            )

    def set_probe(
        self,
        choice: dict[str, Any],
        projection: np.ndarray,
        offset: np.ndarray,
        signal_scale: np.ndarray,
        signal_weights: np.ndarray,
    ) -> None:
        """Use a fitted probe; see the attributes."""
        self.choice_ = choice
        self.projection_ = projection
        self.offset_ = offset
        self.signal_scale_ = signal_scale
        self.signal_weights_ = signal_weights
        self.dim_ = projection.shape[1]

    def chosen(self) -> dict[str, Any]:
        """Return the parameters of the same probe with all choices made."""
        self._require_fitted()
        return {
            **self.get_params(),
            **{name: self.choice_[name] for name in ('inputs', 'method', 'l2', 'smoothing')},
            'choose': False,
            'signals': None if self.inputs == 'features' else list(self.choice_['signals']),
        }

    def raw_scores(self, features: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Return the unsmoothed scores (T,) of features (T, D) and signal history (T, S, 4)."""
        projected = features.astype(np.float64) @ self.projection_.T + self.offset_
        if self.choice_['method'] == 'distance':
            raw = np.sqrt((projected**2).sum(axis=1))
        else:
            raw = projected[:, 0] + np.tensordot(history, self.signal_weights_, axes=2)
        return np.asarray(np.clip(raw, -_LARGEST, _LARGEST))

    def step_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores (T,) without their smoothing."""
        self._require_fitted()
        return unsmoothed(scores, self.choice_['smoothing'])

    def signals_of(self, rollout: Rollout) -> np.ndarray:
        """Return the signals that the probe reads as finite float64 (T, S)."""
        return stacked_signals(rollout, self.choice_['signals'], self.name)

    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout, float32 of shape (T,)."""
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of many rollouts; see :meth:`score`."""
        self._require_fitted()
        if not rollouts:
            return []
        ends = np.cumsum([len(rollout) for rollout in rollouts])
        signals = np.concatenate([self.signals_of(rollout) for rollout in rollouts])
        history = signal_histories(signals, np.diff(ends, prepend=0), self.signal_scale_)
        raw = np.empty(ends[-1])
        # Few rollouts at a time, because their features are copied.
        for first in range(0, len(rollouts), _TOGETHER):
            group = rollouts[first : first + _TOGETHER]
            part = slice(ends[first] - len(group[0]), ends[first + len(group) - 1])
            features = np.concatenate([self._features_of(rollout) for rollout in group])
            raw[part] = self.raw_scores(features, history[part])
        smoothing = self.choice_['smoothing']
        return [
            smoothed(scores, smoothing).astype(np.float32) for scores in np.split(raw, ends[:-1])
        ]

    def _features_of(self, rollout: Rollout) -> np.ndarray:
        """Return the checked features (T, D); a probe fitted without features ignores them."""
        return self._checked_features(rollout) if self.dim_ else np.zeros((len(rollout), 0))

    def stream(self) -> Stream:
        """Return a stream that scores a new episode step by step."""
        self._require_fitted()
        return _ProbeStream(self)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the fitted arrays; ``choice`` is JSON in bytes."""
        self._require_fitted()
        text = json.dumps(self.choice_, sort_keys=True, allow_nan=False)
        return {
            'choice': np.frombuffer(text.encode(), np.uint8).copy(),
            'projection': self.projection_.copy(),
            'offset': self.offset_.copy(),
            'signal_scale': self.signal_scale_.copy(),
            'signal_weights': self.signal_weights_.copy(),
        }

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`."""
        self.check_params()
        choice = self._read_choice(state)
        signals = len(choice['signals'])
        rows = state['projection'].shape[0] if state.get('projection', np.zeros(())).ndim else 0
        if rows < 1 or (choice['method'] == 'linear' and rows != 1):
            raise DetectorError(
                where=f"detector {self.name}: array 'projection'",
                expected='one row' if choice['method'] == 'linear' else 'at least one row',
                found=f'{rows} rows',
                advice='fit the detector again',
            )
        specs = {
            'choice': ArraySpec((None,), np.uint8),
            'projection': ArraySpec((rows, dim), np.float64),
            'offset': ArraySpec((rows,), np.float64),
            'signal_scale': ArraySpec((signals,), np.float64),
            'signal_weights': ArraySpec((signals, len(HISTORY)), np.float64),
        }
        arrays = self.checked_state(state, specs)
        if not (arrays['signal_scale'] > 0).all():
            raise DetectorError(
                where=f"detector {self.name}: array 'signal_scale'",
                expected='positive numbers',
                found=f'{arrays["signal_scale"].min():g}',
                advice='fit the detector again',
            )
        del arrays['choice']
        self.set_probe(choice, **arrays)

    def _read_choice(self, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        array = state.get('choice', np.zeros(0))
        try:
            if array.dtype != np.uint8 or array.ndim != 1:
                raise ValueError(f'{array.dtype} of shape {array.shape}')
            choice = json.loads(array.tobytes().decode())
            sound = (
                choice['method'] in _METHODS
                and choice['inputs'] in _INPUTS
                and 0 <= choice['smoothing'] < 1
                and choice['l2'] > 0
                and all(type(name) is str for name in choice['signals'])
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DetectorError(
                where=f"detector {self.name}: array 'choice'",
                expected='JSON with method, inputs, smoothing, l2 and signals of a fitted probe',
                found=f'bytes that cannot be read ({error!r})',
                advice='fit the detector again',
            ) from error
        if not sound:
            raise DetectorError(
                where=f"detector {self.name}: array 'choice'",
                expected='JSON with method, inputs, smoothing, l2 and signals of a fitted probe',
                found=f'{choice}',
                advice='fit the detector again',
            )
        return dict(choice)


def stacked_signals(rollout: Rollout, names: Sequence[str], detector: str) -> np.ndarray:
    """Return the named signals of a rollout as finite float64 (T, S)."""
    where = f'rollout {rollout.episode_id!r}'
    for name in names:
        if name not in rollout.signals:
            raise missing_signal(where, name, detector, rollout.signals, _ADD_SIGNAL)
    values = np.empty((len(rollout), len(names)))
    for column, name in enumerate(names):
        values[:, column] = rollout.signals[name]
    if not np.isfinite(values).all():
        step, signal = np.argwhere(~np.isfinite(values))[0]
        raise StepError(
            where=where,
            expected=f'a finite signal {names[signal]!r}',
            found=f'{values[step, signal]} at step {step}',
        )
    return values


class _ProbeStream(Stream):
    def __init__(self, probe: LinearProbe) -> None:
        self._probe = probe
        self._names: list[str] = probe.choice_['signals']
        self._history = SignalHistory(probe.signal_scale_)
        self._smoothing: float = probe.choice_['smoothing']
        self._score: float | None = None

    def step(self, step: PolicyStep) -> float:
        probe, where = self._probe, f'step {step.step}'
        features = checked_vector(step, probe.dim_, probe.name) if probe.dim_ else _NO_FEATURES
        try:
            values = np.array([step.signals[name] for name in self._names], dtype=np.float64)
        except KeyError as error:
            name = error.args[0]
            raise missing_signal(where, name, probe.name, step.signals, _ADD_SIGNAL) from error
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values)))
            raise StepError(
                where=where,
                expected=f'a finite signal {self._names[bad]!r}',
                found=str(values[bad]),
            )
        raw = float(probe.raw_scores(features[None], self._history.add(values)[None])[0])
        past = 0.0 if self._score is None else self._smoothing
        self._score = past * (self._score or 0.0) + (1.0 - past) * raw
        return float(np.float32(self._score))
