# SPDX-License-Identifier: Apache-2.0
"""``params/NODE.yaml`` holds every parameter of the node, with its default and its description."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from safe_bringup.parameter_docs import NODES

PARAMS = Path(__file__).parents[1] / 'params'
TABLES = {name: module.PARAMETERS for name, module, _ in NODES}


def test_there_is_a_file_for_each_node() -> None:
    assert {path.stem for path in PARAMS.glob('*.yaml')} == set(TABLES)


@pytest.mark.parametrize(
    ('node', 'left_away', 'changed'),
    [
        ('bridge', set(), {}),
        ('monitor', set(), {}),
        ('replay', {'tasks'}, {'frequency': 20.0, 'limit': 12}),
    ],
)
def test_parameter_file_holds_every_parameter_with_its_default_and_its_sentence(
    node: str, left_away: set[str], changed: dict[str, object]
) -> None:
    text = (PARAMS / f'{node}.yaml').read_text()
    found = yaml.safe_load(text)[f'/**/{node}']['ros__parameters']
    expected = {p.name: p.default for p in TABLES[node] if p.name not in left_away}
    assert found == {**expected, **changed}
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in expected.items()
    }
    comments = ' '.join(re.sub(r'\s*#\s*', ' ', text).split())
    assert [p.name for p in TABLES[node] if p.description not in comments] == []
