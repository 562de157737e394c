# SPDX-License-Identifier: Apache-2.0
"""The files that tests of several packages read: published numbers and recorded rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TOP = Path(__file__).resolve().parents[2]
"""The top of the checkout."""
DATA = TOP / 'test' / 'data'
GOLDEN = TOP / 'test' / 'golden'


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of ``test/golden/NAME.npz``, by name."""
    with np.load(GOLDEN / f'{name}.npz', allow_pickle=False) as archive:
        return dict(archive)


def golden_json(name: str) -> Any:
    """Return what ``test/golden/NAME.json`` holds."""
    return json.loads((GOLDEN / f'{name}.json').read_text(encoding='utf-8'))


def assert_golden(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Hold an array against a published one by the published criterion: |a - b| <= tol (1 + |b|).

    Parameters
    ----------
    found : array or tensor
    expected : array
    tolerance : float
    """
    found = np.asarray(found.detach() if hasattr(found, 'detach') else found)
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    beyond = np.abs(found - expected) - tolerance * (1 + np.abs(expected))
    assert (beyond <= 0).all(), f'beyond the tolerance by up to {np.nanmax(beyond):.3g}'
