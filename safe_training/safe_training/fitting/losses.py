# SPDX-License-Identifier: Apache-2.0
"""Training losses of SAFE-MLP and SAFE-LSTM (Gu et al., arXiv 2506.09937, 4.2).

B rollouts, T padded steps. ``valid`` (B, T) is 1 on real steps; ``failed`` (B,) is 1 for failures,
the positive class. Weights are ordered (fail, success).
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class ClassWeights(NamedTuple):
    """Weights of the two classes' losses."""

    fail: float
    success: float


def class_weights(
    n_fail: int, n_success: int, lambda_fail: float, lambda_success: float
) -> ClassWeights:
    """Return ``lambda_c * N / (n_c + 1)`` for both classes."""
    total = n_fail + n_success
    return ClassWeights(
        lambda_fail * total / (n_fail + 1), lambda_success * total / (n_success + 1)
    )


def time_weights(valid: torch.Tensor) -> torch.Tensor:
    """Return weights (B, T) that decrease with time: ``5 exp(-3 t / L) + 1``, with mean 1."""
    lengths = valid.sum(dim=1, keepdim=True)
    t = torch.arange(valid.shape[1], dtype=valid.dtype, device=valid.device)
    raw = (5.0 * torch.exp(-3.0 * t / lengths) + 1.0) * valid
    return raw / (raw.sum(dim=1, keepdim=True) / lengths)


def hinge_steps(
    scores: torch.Tensor,
    failed: torch.Tensor,
    weights: torch.Tensor,
    threshold: float | None = None,
) -> torch.Tensor:
    """Return the loss (B, T) of accumulated scores.

    It is lowest for low scores of successes and high scores of failures.

    Successes ``relu(S)``; failures ``-w S``, or ``w relu(threshold - S)`` with a threshold.
    """
    rise = -scores if threshold is None else torch.relu(threshold - scores)
    return torch.where(failed[:, None] > 0, weights * rise, torch.relu(scores))


def cross_entropy_steps(
    scores: torch.Tensor, failed: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the binary cross-entropy (B, T) of probabilities, weighted on failures."""
    target = failed[:, None].expand_as(scores)
    loss = torch.nn.functional.binary_cross_entropy(scores, target, reduction='none')
    return torch.where(target > 0, weights * loss, loss)


def rollout_losses(
    steps: torch.Tensor, valid: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return the loss of each rollout (B,): the mean of the losses (B, T) over valid steps.

    If ``generator`` is given, return the loss of one valid step that is drawn uniformly.
    """
    if generator is None:
        return (steps * valid).sum(dim=1) / valid.sum(dim=1)
    chosen = torch.multinomial(valid, 1, generator=generator)
    return steps.gather(1, chosen).squeeze(1)


def window_losses(
    scores: torch.Tensor, failed: torch.Tensor, valid: torch.Tensor, window: int
) -> torch.Tensor:
    """Return the multiple-instance loss of each rollout (B,).

    The instances of a rollout are the means of the probabilities ``scores`` (B, T) over ``window``
    consecutive steps; a shorter rollout has one instance, its mean. The loss is the cross-entropy
    of the largest instance: a failure needs only one window with a high value, and all windows of a
    success must be low (Maron and Lozano-Perez, "A framework for multiple-instance learning", NIPS
    1997).
    """
    total = torch.cumsum(scores * valid, dim=1)
    before = torch.nn.functional.pad(total, (window, 0))[:, : total.shape[1]]
    steps = torch.arange(1, total.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    means = (total - before) / steps.clamp(max=window)
    whole = steps >= valid.sum(dim=1, keepdim=True).clamp(max=window)
    largest = means.masked_fill(~whole | (valid == 0), 0.0).amax(dim=1)
    # The differences of sums have rounding errors.
    return torch.nn.functional.binary_cross_entropy(
        largest.clamp(0.0, 1.0), failed, reduction='none'
    )


def weighted_total(
    losses: torch.Tensor, failed: torch.Tensor, weights: ClassWeights
) -> torch.Tensor:
    """Return the sum of rollout losses (B,), weighted by class and divided by B."""
    class_weight = torch.where(failed > 0, weights.fail, weights.success).to(losses.dtype)
    return (class_weight * losses).sum() / losses.shape[0]


def hard_negative(
    scores: torch.Tensor, failed: torch.Tensor, valid: torch.Tensor, margin: float, beta: float
) -> torch.Tensor:
    """Return the squared hinge around 0.5 on each rollout's largest score, averaged over the batch.

    ``beta > 0`` uses the soft maximum ``logsumexp(beta s) / beta``, which is larger than the true
    maximum by at most ``log(T) / beta``; ``beta <= 0`` uses the true maximum.
    """
    masked = scores.masked_fill(valid == 0, -torch.inf)
    peak = masked.amax(dim=1) if beta <= 0 else torch.logsumexp(beta * masked, dim=1) / beta
    gap = torch.where(failed > 0, 0.5 + margin - peak, peak - (0.5 - margin))
    return torch.relu(gap).square().mean()


def sum_of_squares(module: torch.nn.Module) -> torch.Tensor:
    """Return the sum of the squared parameters, without biases."""
    squares = [p.square().sum() for name, p in module.named_parameters() if 'bias' not in name]
    return torch.stack(squares).sum()
