# SPDX-License-Identifier: Apache-2.0
"""A fitted detector with its band. A monitor needs nothing else."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_runs import GoodRunsError, SeenScores
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_monitor_node.detectors import Detector
from vla_feature_bridge.pooling import FeatureSpec


@dataclass(frozen=True, eq=False)
class CalibratedDetector:
    """A fitted detector, its band and their provenance.

    A detector folder stores one calibrated detector. Two objects are equal only if they are the
    same object.

    Attributes
    ----------
    detector : Detector
        Fitted, ready to score.
    feature : FeatureSpec
        What the features are and how they were pooled.
    band : Band
        Thresholds at each step, for each promised false-alarm rate.
    alpha : float
        Default false-alarm rate. The band must contain this alpha.
    provenance : dict
        Rollouts and software versions that were used to fit and calibrate the detector, as JSON
        values.
    weights_sha256 : str
        SHA-256 of the weights file in the detector folder, in hexadecimal; empty if the detector
        was not loaded from a folder.
    action_space : str
        Name of the space of the actions that the detector was fitted on; empty if unknown.
    probability : ProbabilityMap or None
        Probability of failure as a function of score and time; None if it was not fitted.
    seen_scores : SeenScores or None
        Largest scores of the successes of the seen tasks, from which good runs of a new task make
        its threshold; None if they are not stored.
    """

    detector: Detector
    feature: FeatureSpec
    band: Band
    alpha: float
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ''
    action_space: str = ''
    probability: ProbabilityMap | None = None
    seen_scores: SeenScores | None = None

    @property
    def reads_features(self) -> bool:
        """False if the score depends on actions and signals alone.

        Steps then need no features, and features of any name and width are ignored.
        """
        return 'features' in self.detector.needs and self.feature.dim > 0

    def action_problem(self, action_space: str) -> str:
        """Return why actions of this space do not match the detector; empty if they match.

        They match if one of the two spaces is unknown (empty), or if the detector does not read
        actions.
        """
        spaces = {action_space, self.action_space} - {''}
        if len(spaces) < 2 or not self.detector.reads_actions:
            return ''
        return (
            f'expected actions in the space {self.action_space!r} that the detector was fitted on, '
            f'found actions in the space {action_space!r}'
        )

    def probability_at(self, score: float, step: int) -> float:
        """Return the probability that an episode that still runs at a step will fail.

        NaN if the detector has no map of the probability.

        Parameters
        ----------
        score : float
            Score at this step; NaN gives NaN.
        step : int
            Step of the episode, 0-based.
        """
        return math.nan if self.probability is None else self.probability.at(score, step)

    @property
    def known_tasks(self) -> frozenset[str]:
        """Tasks that the detector was fitted on, and tasks that have a band of their own.

        Tasks that the detector was fitted on are also known by their instructions.
        """
        lists = (self.provenance.get(name) for name in ('seen_tasks', 'seen_instructions'))
        named = (str(task) for tasks in lists if isinstance(tasks, list) for task in tasks)
        stored = () if self.seen_scores is None else self.seen_scores.largest
        return frozenset({*named, *stored, *self.band.tasks})

    def scores_for_good_runs(self) -> SeenScores:
        """Return the scores that a threshold from good runs needs.

        Raises
        ------
        GoodRunsError
            The detector has no such scores.
        """
        if self.seen_scores is not None:
            return self.seen_scores
        reason = self.provenance.get('no_seen_scores')
        raise GoodRunsError(
            where=f'detector {self.detector.name}',
            expected='the largest scores of the successes of the seen tasks, which a threshold '
            'from good runs needs',
            found=f'none ({reason})' if reason else 'none',
            advice='fit the detector again with: python -m safe_training fit, on successes of at '
            'least 2 seen tasks',
        )

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a detector folder and return its path; see ``storage.detector_folder``.

        Parameters
        ----------
        folder : path
            The folder must not exist. With ``overwrite``, it may also be an empty folder or a
            detector folder.

        Raises
        ------
        DetectorFolderError
            The folder exists, or detector, band and features do not match. Nothing is written in
            this case.
        """
        from safe_monitor_node.storage.detector_folder import save_detector

        return save_detector(folder, self, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CalibratedDetector:
        """Return the calibrated detector that a folder holds, after checking all of the folder.

        Raises
        ------
        DetectorFolderError
            A file or entry is missing or damaged, or detector, band and features do not match. The
            message contains the file name.
        """
        from safe_monitor_node.storage.detector_folder import load_detector

        return load_detector(folder)
