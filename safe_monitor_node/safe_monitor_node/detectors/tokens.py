# SPDX-License-Identifier: Apache-2.0
"""Token uncertainty: how unsure the policy was of the tokens that it emitted in one step.

Baselines of Gu et al. (arXiv 2506.09937, section 5); quantities as in the language-model
literature (maximum and mean of negative log-probability and of entropy over the tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.base import StepError
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep

# A policy may store a probability of 0 after rounding, and its logarithm would be infinite. The
# smallest normal float32 replaces it: 87.3 nats.
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)

# Tolerance: rounding in half precision can make a probability larger than 1 or an entropy smaller
# than 0 by this amount.
_ROUNDING = 1e-2


@dataclass(kw_only=True, eq=False)
class _TokenDetector(StepwiseDetector):
    needs = frozenset({'tokens'})

    def _checked(self, step: PolicyStep, values: np.ndarray | None, what: str) -> np.ndarray:
        """Return one finite float64 number for each token, or raise :class:`StepError`."""
        where = f'step {step.step}'
        if values is None or values.size == 0:
            raise StepError(
                where=where,
                expected=f'the {what} of each emitted token for detector {self.name}',
                found='none',
                advice='use a policy that emits tokens, or choose another detector',
            )
        if values.ndim != 1:
            raise StepError(
                where=where,
                expected=f'one {what} for each token, shape (tokens,), for detector {self.name}',
                found=f'shape {values.shape}',
            )
        numbers = np.asarray(values, dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise StepError(
                where=where,
                expected=f'a finite {what} of each token',
                found='NaN or infinity',
            )
        return numbers

    def _neg_log_prob(self, step: PolicyStep) -> np.ndarray:
        probability = self._checked(step, step.token_probability, 'probability')
        if probability.min() < 0.0 or probability.max() > 1.0 + _ROUNDING:
            raise StepError(
                where=f'step {step.step}',
                expected='token probabilities from 0 to 1',
                found=f'{probability.min():g} to {probability.max():g}',
                advice='check that the policy does not publish logits or log-probabilities',
            )
        return -np.log(np.clip(probability, _LEAST_PROBABILITY, 1.0))

    def _entropy(self, step: PolicyStep) -> np.ndarray:
        entropy = self._checked(step, step.token_entropy, 'entropy')
        if entropy.min() < -_ROUNDING:
            raise StepError(
                where=f'step {step.step}',
                expected='token entropies of at least 0',
                found=f'{entropy.min():g}',
            )
        return np.maximum(entropy, 0.0)


@dataclass(kw_only=True, eq=False)
class TokenMaxNegLogProb(_TokenDetector):
    """Largest negative log-probability [nats] among the tokens of a step.

    It belongs to the least probable token.
    """

    name = 'token_max_neg_log_prob'

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the largest negative log-probability of the tokens."""
        return float(self._neg_log_prob(step).max())


@dataclass(kw_only=True, eq=False)
class TokenAvgNegLogProb(_TokenDetector):
    """Mean negative log-probability [nats] of the tokens of a step."""

    name = 'token_avg_neg_log_prob'

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the mean negative log-probability of the tokens."""
        return float(self._neg_log_prob(step).mean())


@dataclass(kw_only=True, eq=False)
class TokenMaxEntropy(_TokenDetector):
    """Largest entropy [nats] among the token distributions of a step."""

    name = 'token_max_entropy'

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the largest entropy of the tokens."""
        return float(self._entropy(step).max())


@dataclass(kw_only=True, eq=False)
class TokenAvgEntropy(_TokenDetector):
    """Mean entropy [nats] of the token distributions of a step."""

    name = 'token_avg_entropy'

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the mean entropy of the tokens."""
        return float(self._entropy(step).mean())
