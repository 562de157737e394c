# SPDX-License-Identifier: Apache-2.0
"""One named scalar signal as the failure score.

It also works for a policy that does not expose its hidden states, and it is a strong baseline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import StepError, missing_signal
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep


@dataclass(kw_only=True, eq=False)
class Signal(StepwiseDetector):
    """Running mean of one action-space signal, by default of ``chunk_mse``.

    ``chunk_mse`` measures how far consecutive plans contradict each other. The signals are defined
    in :mod:`vla_feature_bridge.signals`; a recording may carry others.

    Parameters
    ----------
    signal : str
        Name of the signal.
    negate : bool
        Change the sign of the score. Use it for a signal that decreases before failures.
    """

    name = 'signal'
    needs = frozenset({'signals'})

    signal: str = 'chunk_mse'
    accumulate: Accumulate = 'mean'
    negate: bool = False

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
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
