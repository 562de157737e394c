# SPDX-License-Identifier: Apache-2.0
"""Figures of probabilities of failure."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from safe_training.metrics.reliability import ProbabilityReport
from safe_training.reporting.figures.style import FAILURE, SUCCESS, open_axis


def reliability_diagram(report: ProbabilityReport, title: str) -> Figure:
    """Draw the frequency of failures as a function of the predicted probability.

    Parameters
    ----------
    report : ProbabilityReport
        Report of rollouts that still run.
    title : str
    """
    found, brier = report.reliability, report.brier
    given, size = np.asarray(found.bin_confidence), np.asarray(found.bin_count)
    frequency = np.asarray(found.bin_frequency)
    figure = Figure(figsize=(5.0, 5.6), layout='constrained')
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axis.plot([0, 1], [0, 1], color='0.4', linestyle=':', label='perfect calibration')
    used = size > 0
    axis.vlines(given[used], given[used], frequency[used], color=FAILURE, linewidth=1.2, alpha=0.5)
    axis.plot(given[used], frequency[used], color=SUCCESS, marker='o', label='this detector')
    axis.set_ylabel('share that failed')
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    errors = (
        f'Brier score {brier.detector:.3f} (step number {brier.clock:.3f}, '
        f'constant {brier.base_rate:.3f})'
    )
    axis.set_title(f'{title}\n{errors}', fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    edges = np.linspace(0, 1, len(size) + 1)
    below.bar(edges[:-1], size, width=np.diff(edges), align='edge', color='0.75', edgecolor='white')
    below.set_xlabel('probability of failure, while the rollout runs')
    below.set_ylabel('count')
    open_axis(axis)
    open_axis(below)
    return figure
