# SPDX-License-Identifier: Apache-2.0
"""The promise of a threshold from good runs, where it must hold: tasks and runs drawn alike.

Run with ``-s`` to print the table of realised rates that the documentation shows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from safe_monitor_node.bands.good_runs import SeenScores

ALPHAS = (0.05, 0.1, 0.2)
RESAMPLINGS = 1000
SEEN_TASKS, SUCCESSES, NEXT = 12, 20, 50


def realised(k, form, spread, seed=0):
    """Return the false-alarm rate of each new task, one for each resampling, at each alpha.

    The largest scores of a task are normal around the mean of the task. The means of the tasks are
    normal with the standard deviation ``spread`` times that of a task.
    """
    rng = np.random.default_rng(seed)
    rates = np.empty((RESAMPLINGS, len(ALPHAS)))
    for row in rates:
        means = spread * rng.standard_normal(SEEN_TASKS + 1)
        scores = means[:, None] + rng.standard_normal((SEEN_TASKS + 1, SUCCESSES + k + NEXT))
        seen = SeenScores({str(t): scores[t, :SUCCESSES] for t in range(SEEN_TASKS)})
        shift = seen.shift(k, form)
        center = shift.center(scores[-1, :k].mean())
        coming = scores[-1, k : k + NEXT]
        row[:] = [(coming > center + shift.quantile(alpha)).mean() for alpha in ALPHAS]
    return rates


# The plain form does not depend on the spread of the tasks.
@pytest.mark.parametrize(('form', 'spread'), [('plain', 1.0), ('shrunk', 0.5), ('shrunk', 2.0)])
@pytest.mark.parametrize('k', [1, 3, 5, 10])
@pytest.mark.slow
def test_the_rate_over_tasks_is_the_promised_rate(k, form, spread):
    rates = realised(k, form, spread)
    found, error = rates.mean(axis=0), rates.std(axis=0, ddof=1) / math.sqrt(RESAMPLINGS)
    cells = [f'{f:.3f} +- {1.96 * e:.3f}' for f, e in zip(found, error, strict=True)]
    print(f'\n| {k} | {form} | {spread:g} | {" | ".join(cells)} |', end='')
    # 36 intervals at once: each has a confidence of 99.86 %, all together 95 %.
    assert (np.abs(found - ALPHAS) < 3.2 * error).all()
