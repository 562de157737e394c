# SPDX-License-Identifier: Apache-2.0
"""Checks the statistics of a rollout: no infinity, and NaN only for missing values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from safe_training.recordings.errors import LEAVE_OUT, DumpError
from vla_feature_bridge.rollout import Rollout


def checked_statistics(rollout: Rollout, where: Path | str) -> Rollout:
    """Return the rollout after a check of its token statistics, signals and inference times.

    Detectors also refuse such values, but only when they are fitted. Then one value stops the fit
    on all rollouts, and the error does not contain the name of the file.

    Parameters
    ----------
    rollout : Rollout
    where : Path or str
        The file, for messages.

    Raises
    ------
    DumpError
        A value is infinite, or the value of a token is NaN although the step has later tokens.
    """
    for name, array in (
        ('token_probability', rollout.token_probability),
        ('token_entropy', rollout.token_entropy),
    ):
        if array is not None:
            _check_tokens(where, rollout, name, np.asarray(array, np.float64))
    others = {f'the signal {name!r}': values for name, values in rollout.signals.items()}
    if rollout.inference_time is not None:
        others['inference_time'] = rollout.inference_time
    for name, values in others.items():
        infinite = np.isinf(values)
        if infinite.any():
            raise _refusal(where, rollout, name, 'infinity', int(np.argmax(infinite)))
    return rollout


def _check_tokens(where: Path | str, rollout: Rollout, name: str, array: np.ndarray) -> None:
    infinite = np.isinf(array).any(axis=1)
    if infinite.any():
        raise _refusal(where, rollout, name, 'infinity', int(np.argmax(infinite)))
    missing = np.isnan(array)
    # The steps of a recording may have different numbers of tokens: NaN fills the end of a row.
    inside = (missing[:, :-1] & ~missing[:, 1:]).any(axis=1)
    if inside.any():
        raise _refusal(where, rollout, name, 'NaN before the last token', int(np.argmax(inside)))


def _refusal(where: Path | str, rollout: Rollout, name: str, found: str, step: int) -> DumpError:
    return DumpError(
        where=f'{where}: episode {rollout.episode_id!r}',
        expected=f'{name} with finite values',
        found=f'{found} at step {step}',
        advice=LEAVE_OUT,
    )
