# SPDX-License-Identifier: Apache-2.0
"""A Chromium for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, find_chromium


@pytest.fixture(scope='session', autouse=True)
def executable() -> str:
    """Return the path of Chromium; without one, no test of this folder runs."""
    found = find_chromium()
    if found is None:
        pytest.skip('no Chromium on this machine')
    return found


@pytest.fixture
def browser(executable: str, tmp_path: Path) -> Iterator[Chromium]:
    """Yield a running browser with a profile of its own."""
    chromium = Chromium(executable, tmp_path / 'profile')
    try:
        yield chromium
    finally:
        chromium.close()
