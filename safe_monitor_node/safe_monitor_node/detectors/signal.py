# SPDX-License-Identifier: Apache-2.0
"""One named scalar signal as the failure score.

It also works if a policy gives no hidden states. It is a strong baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from safe_monitor_node.detectors.accumulation import (
    ACCUMULATE,
    FAST,
    SLOW,
    Accumulation,
    Accumulator,
    SmoothAccumulator,
    unsmoothed,
)
from safe_monitor_node.detectors.base import (
    ArraySpec,
    DetectorError,
    StepError,
    missing_signal,
)
from safe_monitor_node.detectors.stepwise import (
    LARGEST,
    Before,
    UntrainedDetector,
    check_data,
    fit_untrained,
)
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

SignalForm = Literal['smooth', 'none', 'sum', 'mean']


@dataclass(kw_only=True, eq=False)
class Signal(UntrainedDetector):
    """One action-space signal, smoothed over the episode; by default ``chunk_mse``.

    ``chunk_mse`` measures the difference between consecutive plans. The signals are defined in
    :mod:`vla_feature_bridge.signals`; a recording may contain other signals.

    With the default form 'smooth', the signal ``x_t`` is compressed to ``q_t = log(1 + x_t / s)``
    and averaged twice: ``u_t = 0.85 u_(t-1) + 0.15 q_t``, ``y_t = 0.7 y_(t-1) + 0.3 u_t``, ``y_0 =
    u_0 = q_0``. The score is ``y_t``. Fitting computes one number from successes alone: the scale
    ``s``, the median of the values of the signal that are not 0. If the chunks of a policy do not
    overlap, it has no ``chunk_mse``, and the fit refuses its rollouts. The other forms have no
    fitted numbers.

    Parameters
    ----------
    signal : str
        Name of the signal.
    accumulate : {'smooth', 'none', 'sum', 'mean'}
        Form of the score. 'smooth': see above. 'none': the signal of the current step. 'sum' or
        'mean': sum or mean of the signal from step 0 to the current step.
    negate : bool
        Change the sign of the score. Use it for a signal that decreases before failures.
    """

    name = 'signal'
    needs = frozenset({'signals'})

    signal: str = 'chunk_mse'
    accumulate: SignalForm = 'smooth'  # type: ignore[assignment]
    negate: bool = False

    scale_: float = field(init=False, repr=False)
    """Scale ``s`` of the form 'smooth'."""

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_choice('accumulate', ('smooth', *ACCUMULATE))
        if not isinstance(self.signal, str):
            raise self._refused('signal', 'the name of a signal')

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the signal."""
        value = step.signals.get(self.signal)
        if value is None:
            raise missing_signal(
                f'step {step.step}',
                self.signal,
                self.name,
                step.signals,
                'choose another signal (signal=NAME), or add the action chunks, from which the '
                'bridge computes its signals',
            )
        if not math.isfinite(value):
            raise StepError(
                where=f'step {step.step}',
                expected=f'a finite signal {self.signal!r}',
                found=str(value),
            )
        return -value if self.negate else value

    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout, float32 of shape (T,)."""
        self._require_fitted()
        values = np.asarray(rollout.signals.get(self.signal, np.nan), np.float64)
        own = type(self).quantity is Signal.quantity
        if not own or values.shape != (len(rollout),) or not np.abs(values).max() < LARGEST:
            # The base class scores step by step: its error contains the step that cannot be scored.
            return super().score(rollout)
        add = self.accumulation().add
        signed = -values if self.negate else values
        return np.array([add(value) for value in signed.tolist()], dtype=np.float32)

    def accumulation(self) -> Accumulation:
        """Return the accumulation that computes scores from the signal of a new episode."""
        if self.accumulate == 'smooth':
            return SmoothAccumulator(self.scale_)
        return Accumulator(self.accumulate)

    def step_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the compressed signal (T,) of the form 'smooth', otherwise the signal."""
        if self.accumulate == 'smooth':
            return unsmoothed(unsmoothed(scores, FAST), SLOW)
        return super().step_values(scores)

    def _fitter(self) -> Callable[..., None]:
        return _fit_smooth if self.accumulate == 'smooth' else fit_untrained

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the fitted arrays: the scale, shape (1,), of the form 'smooth'."""
        self._require_fitted()
        return {'scale': np.array([self.scale_])} if self.accumulate == 'smooth' else {}

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`."""
        self.check_params()
        if self.accumulate == 'smooth':
            arrays = self.checked_state(state, {'scale': ArraySpec((1,), np.float64)})
            scale = float(arrays['scale'][0])
            if not scale > 0:
                raise DetectorError(
                    where=f"detector {self.name}: array 'scale'",
                    expected='a positive number',
                    found=f'{scale:g}',
                    advice='fit the detector again',
                )
            self.scale_ = scale
            self.dim_ = dim
        else:
            super().load_state(state, dim)


def _fit_smooth(
    detector: Signal,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Store the typical size of the signal in successes. Failures are not used.

    Raises
    ------
    DetectorError
        A rollout lacks the signal, no rollout is a success, or the signal is always 0 or NaN.
    """
    _check_informative(detector, rollouts)
    check_data(detector, rollouts)
    successes = [rollout for rollout in rollouts if not rollout.failed]
    if not successes:
        raise DetectorError(
            where=detector.name,
            expected='successes from which the scale of the signal is computed',
            found=f'0 successes and {len(rollouts)} failures',
            advice='add successes, or choose another split',
        )
    _check_informative(detector, successes)
    sizes = _sizes(detector, successes)
    if not np.isfinite(sizes).all():
        bad = next(r for r in successes if not np.isfinite(r.signals[detector.signal]).all())
        raise DetectorError(
            where=f'rollout {bad.episode_id!r}',
            expected=f'a finite signal {detector.signal!r}',
            found='NaN or infinity',
            advice='correct the recording, or leave this rollout out',
        )
    scale = float(np.median(sizes))
    detector.load_state({'scale': np.array([scale])}, rollouts[0].features.shape[-1])


def _sizes(detector: Signal, rollouts: Sequence[Rollout]) -> np.ndarray:
    """Return the absolute values of the signal that are not 0, over the steps of all rollouts."""
    values = [np.asarray(r.signals[detector.signal], np.float64).ravel() for r in rollouts]
    sizes = np.abs(np.concatenate(values))
    return np.asarray(sizes[sizes != 0])


def _check_informative(detector: Signal, rollouts: Sequence[Rollout]) -> None:
    """Raise :class:`DetectorError` if the signal is 0 or NaN at every step of the rollouts."""
    if any(detector.signal not in rollout.signals for rollout in rollouts):
        return  # The error of this check contains the name of the rollout.
    if np.isnan(_sizes(detector, rollouts)).all():
        cause = (
            'the action chunks of consecutive steps do not overlap: the policy executes all '
            'actions of a chunk, or emits one action per inference; '
            if detector.signal == 'chunk_mse'
            else ''
        )
        raise DetectorError(
            where=detector.name,
            expected=f'a signal {detector.signal!r} that is not 0 at some steps',
            found=f'only 0 or NaN in {len(rollouts)} rollouts',
            advice=f'{cause}use a detector that reads the hidden state, such as mahalanobis',
        )
