# SPDX-License-Identifier: Apache-2.0
"""Builds failure detectors offline: reads dumps and bags, fits, calibrates, evaluates."""

from safe_training import fit_density as _fit_density  # noqa: F401
from safe_training import fit_embedding as _fit_embedding  # noqa: F401
from safe_training import fit_handcrafted as _fit_handcrafted  # noqa: F401
from safe_training import fit_probe as _fit_probe  # noqa: F401
from safe_training import fitting as _fitting  # noqa: F401  (makes Detector.fit work)
