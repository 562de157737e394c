# SPDX-License-Identifier: Apache-2.0
"""Every parameter of every node: described, bounded, and a wrong value is refused at start-up."""

import math
import re

import pytest
from declared_nodes import declaring_nodes

from safe_bringup.parameter_docs import NODES
from vla_feature_bridge.ros.parameters import ParameterError

TABLES = {name: module.PARAMETERS for name, module, _ in NODES}
every_parameter = pytest.mark.parametrize(
    ('node', 'parameter'),
    [
        pytest.param(node, parameter, id=f'{node}.{parameter.name}')
        for node, table in TABLES.items()
        for parameter in table
    ],
)


@pytest.fixture
def declare():
    with declaring_nodes() as declared:
        yield declared


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_names_are_unique(table):
    names = [parameter.name for parameter in table]
    assert len(set(names)) == len(names)


@every_parameter
def test_every_parameter_is_described_and_bounded(node, parameter):
    assert re.fullmatch(r'[a-z][a-z0-9_]*', parameter.name)
    assert re.fullmatch(r'[A-Z`].*\.', parameter.description), 'a sentence'
    if isinstance(parameter.default, (bool, str, list)):
        assert parameter.low is None
        assert parameter.high is None
    else:
        assert parameter.low is not None
        assert parameter.high is not None
        assert parameter.low <= parameter.default <= parameter.high
        for bound in (parameter.low, parameter.high):
            assert math.isfinite(bound)
            assert bound == type(parameter.default)(bound)
    if parameter.choices:
        assert parameter.default in parameter.choices


@pytest.mark.parametrize('node', TABLES)
def test_the_node_takes_the_defaults_and_describes_them(node, declare):
    declared, values = declare(TABLES[node])
    for parameter in TABLES[node]:
        assert getattr(values, parameter.name) == parameter.default
        assert type(getattr(values, parameter.name)) is type(parameter.default)
        descriptor = declared.describe_parameter(parameter.name)
        assert descriptor.description == parameter.description
        assert descriptor.read_only == (not parameter.changes)
        if isinstance(parameter.default, float):
            (span,) = descriptor.floating_point_range
        elif type(parameter.default) is int:
            (span,) = descriptor.integer_range
        else:
            continue
        assert (span.from_value, span.to_value) == (parameter.low, parameter.high)


def beyond(parameter):
    """Return values that a parameter must refuse."""
    match parameter.default:
        case bool():
            return [1, 'true', 0.0]
        case int():
            return [int(parameter.low) - 1, int(parameter.high) + 1, 1.0, '1', True]
        case float():
            step = 1e-3 * max(1.0, abs(parameter.high))
            outside = [parameter.low - step, parameter.high + step]
            return [*outside, math.nan, math.inf, -math.inf, 1, '1.0', True]
        case str():
            return [1, True, [''], *(['sideways', ''] if parameter.choices else [])]
        case list():
            return ['', 1, [1], [True]]


@every_parameter
def test_a_wrong_value_is_refused_with_what_is_allowed(node, parameter, declare):
    for value in beyond(parameter):
        with pytest.raises(ParameterError) as caught:
            declare(TABLES[node], **{parameter.name: value})
        message = str(caught.value)
        assert f"parameter '{parameter.name}' of /somebody" in message, value
        assert parameter.allowed in message, value


@every_parameter
def test_an_allowed_value_is_taken(node, parameter, declare):
    match parameter.default:
        case bool():
            allowed = [True, False]
        case int() | float():
            kind = type(parameter.default)
            allowed = [kind(parameter.low), kind(parameter.high)]
        case str():
            allowed = parameter.choices or ['', 'anything', 'Tür 7']
        case list():
            allowed = [[''], ['a'], ['a', 'b c']]
    for value in allowed:
        _, values = declare(TABLES[node], **{parameter.name: value})
        assert getattr(values, parameter.name) == value
