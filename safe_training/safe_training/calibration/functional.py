# SPDX-License-Identifier: Apache-2.0
"""The functional conformal band: a threshold for each step, with a promised false-alarm rate.

The band is the one-sided functional conformal band of the SAFE paper (after Diquigiovanni, Fontana
and Vantini, "The importance of being a band", Statistica Sinica 35, 2025). Successes are divided at
random into center rollouts and calibration rollouts. The center rollouts give a mean curve mu(t)
and a modulation M(t) > 0; every calibration curve x gets the nonconformity s = max_t (x(t) - mu(t))
/ M(t); the band is upper(t) = mu(t) + w M(t) with w the ceil((n + 1)(1 - alpha))-th smallest of the
n nonconformities.

Why the promise holds for rollouts of unequal length: Each curve is extended with its last value to
the common length. This uses only the curve itself, so that exchangeable rollouts give exchangeable
curves. mu and M are computed from the center part, which contains neither the calibration curves
nor the new rollout. Therefore the rank of the nonconformity s of a new success among the
calibration values is uniform, and P(s > w) <= alpha. The monitor sees the new rollout only up to
its true length. The maximum over fewer steps is not larger, so P(any alarm while it runs) <= P(s >
w) <= alpha. The extension never causes an alarm after the end of an episode; it only makes the band
conservative. The promise is marginal: it is an average over the draw of the calibration rollouts
and of one new *successful* rollout that is exchangeable with them. It does not hold for a task or
scene from a different distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.adaptive_threshold import conformal_rank, exact_fraction
from safe_monitor_node.bands.band import Band, BandShape
from safe_training.calibration.curves import (
    ALPHAS,
    CalibrationError,
    Quantile,
    Successes,
    checked_alphas,
    checked_curves,
    curve_matrix,
    edge_extended,
    infinite_note,
)

Modulation = Literal['max_deviation', 'std', 'constant']

# Lower limit of the width of a step, relative to the average width. Without a lower limit, a step
# at which the center curves are nearly equal determines w for the whole band: the published limit
# of 1e-8 gave bands with values of 1.5e7.
_MODULATION_FLOOR = 0.1
# Scores are float32. A spread that is smaller than this fraction of the score is only rounding.
_NO_SPREAD = 1e-6


def calibrate(
    scores: Sequence[ArrayLike] | Successes,
    alphas: Sequence[float] = ALPHAS,
    *,
    max_steps: int,
    generator: np.random.Generator,
    center_fraction: float = 0.3,
    modulation: Modulation = 'max_deviation',
    quantile: Quantile = 'finite_sample',
) -> Band:
    """Return a band calibrated on scores of successes.

    The detector must not have been fitted on these rollouts.

    Parameters
    ----------
    scores : sequence of N arrays (T_i,), or Successes
        Score curve of each successful rollout, over its true length. If `Successes` contain names
        of episodes, the provenance of the band stores these names.
    alphas : sequence of float
        Promised false-alarm rates per successful episode, each in (0, 1).
    max_steps : int
        Number of steps of the band: at least the longest rollout that will ever be scored,
        normally the time limit of an episode. Curves are extended to it with their last value.
    generator : numpy.random.Generator
        Selects the rollouts of the center part at random. When detectors are compared, use the same
        seed for all detectors, so that all are calibrated on the same rollouts.
    center_fraction : float
        Share of the rollouts that determine the shape of the band, in (0, 1); rounded down, at
        least one rollout. The other rollouts are ranked. If there is only one rollout, it is the
        center and no rollout is ranked.
    modulation, quantile
        See `functional_band`.

    Returns
    -------
    Band
        Kind 'functional_<modulation>'. If the calibration part is too small for an alpha, the
        thresholds of this alpha are +inf. `provenance['note']` then contains the smallest alpha
        with finite thresholds.

    Raises
    ------
    CalibrationError
        There are no rollouts; scores are empty, not finite or have the wrong shape; a rollout is
        longer than max_steps; or a parameter is out of range.
    """
    successes = scores if isinstance(scores, Successes) else Successes(scores)
    curves = checked_curves(successes.scores, max_steps)
    if not 0.0 < center_fraction < 1.0:
        raise CalibrationError(
            where='calibration',
            expected='center_fraction inside (0, 1)',
            found=str(center_fraction),
        )
    extended = np.stack([edge_extended(curve, max_steps) for curve in curves])
    order = generator.permutation(len(curves))
    n_center = max(1, math.floor(exact_fraction(center_fraction) * len(curves)))
    center, ranked = order[:n_center].tolist(), order[n_center:].tolist()
    band = functional_band(extended[center], extended[ranked], alphas, modulation, quantile)
    provenance = {
        **band.provenance,
        'calibrated_on': successes.described,
        'n_successes': len(curves),
        'center_fraction': float(center_fraction),
        'center': center,
        'calibration': ranked,
    }
    if successes.episodes:
        provenance['center_rollouts'] = [successes.episodes[index] for index in center]
        provenance['calibration_rollouts'] = [successes.episodes[index] for index in ranked]
    return replace(band, provenance=provenance)


def functional_band(
    center_curves: ArrayLike,
    calibration_curves: ArrayLike,
    alphas: Sequence[float] = ALPHAS,
    modulation: Modulation = 'max_deviation',
    quantile: Quantile = 'finite_sample',
) -> Band:
    """Return the one-sided functional conformal band of curves of equal length.

    Parameters
    ----------
    center_curves : (n1, T) array, n1 >= 1
        Curves that give mu(t), their mean, and the modulation M(t).
    calibration_curves : (n2, T) array
        Curves that are ranked. n2 may be 0 with the finite-sample quantile: every threshold is
        then +inf.
    alphas : sequence of K float
        Promised false-alarm rates, in any order; the band holds them ascending.
    modulation : {'max_deviation', 'std', 'constant'}
        'max_deviation' ("Tfunc" in the paper's code): M(t) = max |x(t) - mu(t)| over the center
        curves; curves whose largest deviation has a rank above ceil((n1 + 1)(1 - alpha)) are
        excluded as outliers. 'std': the standard deviation (ddof 1). 'constant': 1/T.
    quantile : {'finite_sample', 'published'}
        'finite_sample': w is the k-th smallest nonconformity with k = ceil((n2 + 1)(1 - alpha)) in
        exact arithmetic, or +inf if k > n2. The modulation has a lower limit of a tenth of its mean
        over the steps. It is constant if the center curves have no spread. The lower limit uses
        only the center part, so the promise still holds. Thresholds are rounded up in the last
        digits, so that a curve equal to the k-th curve is not above the threshold. 'published': as
        in the code of the paper, for comparison. w is NumPy's interpolated quantile, for which the
        coverage is too low if n2 is small. The only lower limit of M is an added 1e-8.

    Raises
    ------
    CalibrationError
        Shapes or values do not match, there is no center curve, or an alpha is outside (0, 1). For
        'published' also: there is no calibration curve, or the standard deviation of one center
        curve is needed.
    """
    center, calibration = checked_parts(center_curves, calibration_curves, modulation, quantile)
    sorted_alphas = checked_alphas(alphas)
    shape = None
    if quantile == 'finite_sample':
        upper, shape = _finite_sample_rows(center, calibration, sorted_alphas, modulation)
    else:
        upper = np.stack(
            [_published_band(center, calibration, alpha, modulation) for alpha in sorted_alphas]
        )
    n_center, n_calibration = center.shape[0], calibration.shape[0]
    provenance: dict[str, Any] = {
        'alphas': sorted_alphas,
        'modulation': modulation,
        'quantile': quantile,
        'max_steps': center.shape[1],
        'n_center': n_center,
        'n_calibration': n_calibration,
    }
    note = infinite_note(sorted_alphas, upper, n_calibration)
    if note:
        provenance['note'] = note
    return Band(
        alphas=np.array(sorted_alphas),
        upper=upper,
        kind=f'functional_{modulation}',
        n_calibration=n_calibration,
        n_center=n_center,
        provenance=provenance,
        shape=shape,
    )


def checked_parts(
    center_curves: ArrayLike, calibration_curves: ArrayLike, modulation: str, quantile: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check the options; return both parts as curves of equal length."""
    center = curve_matrix(center_curves, 'center_curves')
    calibration = curve_matrix(calibration_curves, 'calibration_curves', steps=center.shape[1])
    if center.shape[0] == 0 or center.shape[1] == 0:
        raise CalibrationError(
            where='calibration, center_curves',
            expected='shape (n1, T) with n1 >= 1 and T >= 1',
            found=str(center.shape),
        )
    if modulation not in get_args(Modulation):
        raise CalibrationError(
            where='calibration, modulation',
            expected=f'one of {", ".join(get_args(Modulation))}',
            found=repr(modulation),
        )
    if quantile not in get_args(Quantile):
        raise CalibrationError(
            where='calibration, quantile',
            expected=f'one of {", ".join(get_args(Quantile))}',
            found=repr(quantile),
        )
    return center, calibration


def floored_modulation(
    center: NDArray[np.float64], mu: NDArray[np.float64], alpha: float, modulation: Modulation
) -> NDArray[np.float64]:
    """Return M(t), shape (T,), with its lower limit; constant if the curves have no spread."""
    width = modulation_of(center, mu, conformal_rank(center.shape[0], alpha), modulation)
    if width.max() <= _NO_SPREAD * np.abs(center).max():
        width = np.ones_like(width)
    return np.maximum(width, _MODULATION_FLOOR * width.mean())


def _finite_sample_rows(
    center: NDArray[np.float64],
    calibration: NDArray[np.float64],
    alphas: Sequence[float],
    modulation: Modulation,
) -> tuple[NDArray[np.float64], BandShape]:
    """Return the thresholds (K, T), one row per alpha, and the shape of the band."""
    n2 = calibration.shape[0]
    mu = center.mean(axis=0)
    rows, widths, ranked = [], [], []
    for alpha in alphas:
        width = floored_modulation(center, mu, alpha, modulation)
        nonconformity = np.sort(((calibration - mu) / width).max(axis=1))
        rank = conformal_rank(n2, alpha)
        scaled = nonconformity[rank - 1] * width if rank <= n2 else np.full(mu.size, np.inf)
        rounding = 8 * np.finfo(np.float64).eps * (np.abs(mu) + np.abs(scaled))
        rows.append(mu + scaled + rounding)
        widths.append(width)
        ranked.append(nonconformity)
    return np.stack(rows), BandShape(mu, np.stack(widths), np.stack(ranked))


def _published_band(
    center: NDArray[np.float64],
    calibration: NDArray[np.float64],
    alpha: float,
    modulation: Modulation,
) -> NDArray[np.float64]:
    n1, n2 = center.shape[0], calibration.shape[0]
    if n2 == 0:
        raise CalibrationError(
            where='calibration',
            expected="at least one calibration curve for the quantile 'published'",
            found='none',
            advice="add successes, or use the quantile 'finite_sample'",
        )
    if modulation == 'std' and n1 == 1:
        raise CalibrationError(
            where='calibration',
            expected="two or more center curves for the modulation 'std'",
            found='one',
            advice="use the modulation 'max_deviation' or 'constant', or the quantile "
            "'finite_sample'",
        )
    mu = center.mean(axis=0)
    rank = int(np.ceil((n1 + 1) * (1 - alpha)))
    width = modulation_of(center, mu, rank, modulation)
    if modulation != 'constant':
        width = width + 1e-8
    nonconformity = ((calibration - mu) / width).max(axis=1)
    return mu + np.quantile(nonconformity, 1 - alpha) * width


def modulation_of(
    center: NDArray[np.float64], mu: NDArray[np.float64], rank: int, modulation: Modulation
) -> NDArray[np.float64]:
    """Return M(t) without lower limit, shape (T,).

    For max_deviation, `rank` determines which outliers are excluded.
    """
    n, steps = center.shape
    if modulation == 'constant':
        return np.full(steps, 1.0 / steps)
    if modulation == 'std':
        return center.std(axis=0, ddof=1) if n > 1 else np.zeros(steps)
    deviations = np.abs(center - mu)
    if rank > n:
        return np.asarray(deviations.max(axis=0))
    largest = deviations.max(axis=1)
    kept = largest <= np.sort(largest)[rank - 1]
    return np.asarray(deviations[kept].max(axis=0))
