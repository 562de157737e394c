# SPDX-License-Identifier: Apache-2.0
"""One named scalar signal as a failure score: all that a closed policy allows, and hard to beat."""

from __future__ import annotations

import math

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError, StepError
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep


class Signal(StepwiseDetector):
    """The running mean of one action-space signal, by default of ``chunk_mse``.

    ``chunk_mse`` measures how far consecutive plans contradict each other. The signals are defined
    in :mod:`vla_feature_bridge.signals`; recordings that carry further ones may name those.

    Parameters
    ----------
    signal : str
        Name of the signal.
    accumulate : {'mean', 'none', 'sum'}
        Running mean over the episode, the signal itself, or its sum.
    negate : bool
        For a signal that falls before failures.
    """

    name = 'signal'
    needs = frozenset({'signals'})

    def __init__(
        self,
        *,
        signal: str = 'chunk_mse',
        accumulate: Accumulate = 'mean',
        negate: bool = False,
    ) -> None:
        self.signal = signal
        self.accumulate = accumulate
        self.negate = negate

    def check_parameters(self) -> None:
        super().check_parameters()
        if not isinstance(self.signal, str):
            raise DetectorError(f'{self.name}: signal must be a name, found {self.signal!r}')

    def quantity(self, step: PolicyStep, before: Before | None) -> float:
        value = step.signals.get(self.signal)
        if value is None:
            there = ', '.join(sorted(step.signals)) or 'none'
            raise StepError(
                f'step {step.step}: detector {self.name} needs the signal {self.signal!r}, this '
                f'step has {there}; choose another (signal=NAME), or record the actions'
            )
        if not math.isfinite(value):
            raise StepError(f'step {step.step}: the signal {self.signal!r} is {value}')
        return -value if self.negate else value
