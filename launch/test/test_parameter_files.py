# SPDX-License-Identifier: Apache-2.0
"""``params/NODE.yaml`` shows every parameter of the node and sets only what is not a default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import rclpy
import yaml

from safe_bringup.parameter_docs import NODES

PARAMS = Path(__file__).parents[1] / 'params'
TABLES = {name: module.PARAMETERS for name, module, _ in NODES}


def test_there_is_a_file_for_each_node() -> None:
    assert {path.stem for path in PARAMS.glob('*.yaml')} == set(TABLES)


@pytest.mark.parametrize(
    ('node', 'changed'),
    [
        ('black_box', {}),
        ('bridge', {}),
        ('dashboard', {}),
        ('fleet', {}),
        ('markers', {}),
        ('monitor', {}),
        ('overlay', {}),
        ('replay', {'frequency': 20.0, 'limit': 12}),
    ],
)
def test_a_file_sets_only_what_differs_from_the_defaults(
    node: str, changed: dict[str, object]
) -> None:
    text = (PARAMS / f'{node}.yaml').read_text()
    assert yaml.safe_load(text)[f'/**/{node}']['ros__parameters'] == changed


@pytest.mark.parametrize('node', sorted(TABLES))
def test_a_file_shows_every_parameter_with_its_default_and_its_sentence(node: str) -> None:
    text = (PARAMS / f'{node}.yaml').read_text()
    set_here = yaml.safe_load(text)[f'/**/{node}']['ros__parameters']
    # What a person does: remove {}, and remove the # in front of the lines of the parameters.
    names = '|'.join(p.name for p in TABLES[node])
    shown = re.sub(rf'^    # (?=({names}): )', '    ', text.replace(' {}', ''), flags=re.M)
    found = yaml.safe_load(shown)[f'/**/{node}']['ros__parameters']
    expected = {p.name: p.default for p in TABLES[node]}
    assert found == {**expected, **set_here}
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in expected.items()
    }
    comments = ' '.join(re.sub(r'\s*#\s*', ' ', text).split())
    assert [p.name for p in TABLES[node] if p.description not in comments] == []


def test_the_files_are_parameter_files_of_rclpy() -> None:
    for path in PARAMS.glob('*.yaml'):
        context = rclpy.Context()
        rclpy.init(args=['--ros-args', '--params-file', str(path)], context=context)
        rclpy.shutdown(context=context)
