# SPDX-License-Identifier: Apache-2.0
"""The operating curve of the published code, which tests compare with what it logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import DTypeLike

from safe_training.metrics.operating_curves import (
    PERCENTILES,
    OperatingCurve,
    operating_curve,
    some,
)
from safe_training.metrics.scored import ScoredRollout


def published_operating_curve(
    scored: Sequence[ScoredRollout], dtype: DTypeLike = np.float64
) -> OperatingCurve:
    """Return the curve that the published code logs, threshold for threshold.

    Scores s become (s - min) / (max - min + 1e-5) over all steps of all rollouts. Thresholds are
    the 101 percentiles of these, -0.01, 1.01 and the middle of each rollout's range; an alarm is a
    value >= threshold. `thresholds` are reported as t (max - min) + min, which is off the inverse
    by the 1e-5: take `operating_curve` for thresholds that can be used.

    Parameters
    ----------
    scored : sequence of ScoredRollout
        At least one rollout.
    dtype : float32 or float64
        Precision of the scores, in which they are squeezed.

    """
    curves = [rollout.scores.astype(dtype) for rollout in some(scored)]
    everything = np.concatenate(curves)
    low, high = everything.min(), everything.max()
    squeezed = [(curve - low) / (high - low + 1e-5) for curve in curves]
    thresholds = np.unique(
        np.concatenate(
            [
                np.percentile(np.concatenate(squeezed), PERCENTILES),
                [-0.01, 1.01],
                [(curve.max() + curve.min()) / 2 for curve in squeezed],
            ]
        )
    )
    plain = operating_curve(
        [replace(rollout, scores=curve) for rollout, curve in zip(scored, squeezed, strict=True)],
        np.nextafter(thresholds, -np.inf),
    )
    return replace(plain, thresholds=thresholds * (high - low) + low)
