# SPDX-License-Identifier: Apache-2.0
"""The published evaluations, one after the other."""

import pytest
from published_evaluation import World, read_world


@pytest.fixture(params=[0, 1, 2], ids=lambda number: f'world{number}')
def world(request: pytest.FixtureRequest) -> World:
    return read_world(request.param)
