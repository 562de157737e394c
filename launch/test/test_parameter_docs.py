# SPDX-License-Identifier: Apache-2.0
"""The reference page of parameters is made from what the nodes declare, and is complete."""

import re
from pathlib import Path

import pytest

from safe_bringup import parameter_docs
from vla_feature_bridge.ros.parameters import Parameter

TOP = Path(__file__).parents[2]


def test_the_page_of_parameters_is_not_stale(capsys):
    assert parameter_docs.main([]) == 0
    written = (TOP / 'docs' / 'reference' / 'parameters.md').read_text()
    assert written == capsys.readouterr().out, (
        'make it again: python -m safe_bringup.parameter_docs docs/reference/parameters.md'
    )


@pytest.mark.parametrize(
    ('module', 'parameter'),
    [
        pytest.param(module, parameter, id=f'{name}.{parameter.name}')
        for name, module, _ in parameter_docs.NODES
        for parameter in module.PARAMETERS
    ],
)
def test_the_page_says_everything_about_a_parameter(module, parameter):
    (row,) = re.findall(
        rf'^\| `{parameter.name}` \|.*$',
        parameter_docs.table(module.PARAMETERS),
        flags=re.MULTILINE,
    )
    assert parameter.type_name in row
    assert parameter.description in row
    assert parameter.allowed.replace("'", '`') in row
    assert f'| {parameter.changes} |' in row


def test_the_page_has_every_node_that_declares_parameters():
    packages = ('vla_feature_bridge', 'safe_monitor_node')
    sources = [
        source
        for package in packages
        for source in sorted((TOP / package / package / 'nodes').glob('*.py'))
    ]
    # A table stands in the module of the node, or in NODE_parameters.py beside it.
    declaring = {
        f'{source.parts[-3]}.nodes.{source.stem}'
        for source in sources
        if re.search(r'^PARAMETERS\b', source.read_text(), flags=re.MULTILINE)
    }
    assert declaring == {module.__name__ for _, module, _ in parameter_docs.NODES}


def test_a_bar_cannot_break_the_table():
    rows = parameter_docs.table([Parameter('a', 'x|y', 'One | two.')]).splitlines()
    assert len(re.findall(r'(?<!\\)\|', rows[-1])) == len(re.findall(r'\|', rows[0]))
