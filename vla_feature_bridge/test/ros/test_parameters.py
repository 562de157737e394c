# SPDX-License-Identifier: Apache-2.0
"""Node parameters: complete tables, wrong values refused at start-up, documentation kept true."""

import math
import re
from pathlib import Path

import pytest
import rclpy
from rclpy.exceptions import ParameterImmutableException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from safe_bringup import parameter_docs
from safe_monitor_node.nodes import monitor
from vla_feature_bridge.nodes import replay
from vla_feature_bridge.ros.parameters import Parameter, ParameterError, declare_parameters

ROOT = Path(__file__).resolve().parents[3]
TABLES = {'monitor': monitor.PARAMETERS, 'replay': replay.PARAMETERS}
EVERY = [
    pytest.param(node, parameter, id=f'{node}.{parameter.name}')
    for node, table in TABLES.items()
    for parameter in table
]
every_parameter = pytest.mark.parametrize(('node', 'parameter'), EVERY)
LARGEST_INTEGER = 2**31 - 1


@pytest.fixture(scope='module')
def context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


@pytest.fixture
def declare(context):
    """Declare a table in a new node, with overrides as from a command line."""
    nodes = []

    def declared(table, **overrides):
        node = Node(
            'somebody',
            context=context,
            start_parameter_services=False,
            enable_rosout=False,
            parameter_overrides=[RosParameter(name, value=v) for name, v in overrides.items()],
        )
        nodes.append(node)
        return node, declare_parameters(node, table)

    yield declared
    for node in nodes:
        node.destroy_node()


# --- the tables


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
        assert descriptor.read_only
        if isinstance(parameter.default, float):
            (span,) = descriptor.floating_point_range
        elif type(parameter.default) is int:
            (span,) = descriptor.integer_range
        else:
            continue
        assert (span.from_value, span.to_value) == (parameter.low, parameter.high)


# --- values


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


def test_a_parameter_cannot_be_changed_after_the_start(declare):
    node, _ = declare(monitor.PARAMETERS)
    (result,) = node.set_parameters([RosParameter('alpha', value=0.5)])
    assert not result.successful
    with pytest.raises(ParameterImmutableException):
        node.undeclare_parameter('alpha')
    assert node.get_parameter('alpha').value == 0.0


@pytest.mark.parametrize(
    ('parameter', 'type_name', 'allowed'),
    [
        (Parameter('a', 1, 'A.', 0, 5), 'int', '0 to 5'),
        (Parameter('a', 1, 'A.', 0, LARGEST_INTEGER), 'int', '0 or more'),
        (Parameter('a', 1, 'A.', 0, 123456789), 'int', '0 to 123456789'),
        (Parameter('a', 1, 'A.', 1), 'int', '1 or more'),
        (Parameter('a', 0.5, 'A.', 0.001, 1e4), 'double', '0.001 to 10000'),
        (Parameter('a', 0.5, 'A.', None, 1.0), 'double', '1 or less'),
        (Parameter('a', 0.5, 'A.'), 'double', ''),
        (Parameter('a', True, 'A.'), 'bool', ''),
        (Parameter('a', 'x', 'A.', choices=('x', 'y')), 'string', "'x', 'y'"),
        (Parameter('a', [''], 'A.'), 'string[]', ''),
    ],
)
def test_types_and_ranges_in_words(parameter, type_name, allowed):
    assert parameter.type_name == type_name
    assert parameter.allowed == allowed


def test_one_sided_ranges_are_declared_too(declare):
    table = (Parameter('count', 1, 'A.', 0), Parameter('share', 0.5, 'A.', None, 1.0))
    _, values = declare(table, count=LARGEST_INTEGER, share=-1e30)
    assert (values.count, values.share) == (LARGEST_INTEGER, -1e30)
    with pytest.raises(ParameterError, match='0 or more'):
        declare(table, count=-1)
    with pytest.raises(ParameterError, match='1 or less'):
        declare(table, share=1.5)


def test_a_value_for_an_old_name_is_refused_and_the_new_name_is_said(declare):
    table = (Parameter('frequency', 10.0, 'Steps [Hz].', old_name='rate'),)
    node, values = declare(table)
    assert values.frequency == 10.0
    assert not node.has_parameter('rate')
    with pytest.raises(
        ParameterError, match=r"/somebody: expected 'frequency', found 'rate'.*frequency:=20.0"
    ):
        declare(table, rate=20.0)


# --- documentation


def test_the_page_of_parameters_is_not_stale(capsys):
    assert parameter_docs.main() == 0
    written = (ROOT / 'docs' / 'reference' / 'parameters.md').read_text()
    assert written == capsys.readouterr().out, (
        'make it again: python -m safe_bringup.parameter_docs > docs/reference/parameters.md'
    )


@every_parameter
def test_the_page_says_everything_about_a_parameter(node, parameter):
    (row,) = re.findall(
        rf'^\| `{parameter.name}` \|.*$', parameter_docs.table(TABLES[node]), flags=re.MULTILINE
    )
    assert parameter.type_name in row
    assert parameter.description in row
    assert parameter.allowed.replace("'", '`') in row


def test_the_page_has_every_node_that_declares_parameters():
    packages = ('vla_feature_bridge', 'safe_monitor_node')
    found = {
        f'{package}.nodes.{source.stem}'
        for package in packages
        for source in (ROOT / package / package / 'nodes').glob('*.py')
        if re.search(r'^PARAMETERS\b', source.read_text(), flags=re.MULTILINE)
    }
    assert found == {module.__name__ for _, module, _ in parameter_docs.NODES}


def test_a_bar_cannot_break_the_table():
    rows = parameter_docs.table([Parameter('a', 'x|y', 'One | two.')]).splitlines()
    assert len(re.findall(r'(?<!\\)\|', rows[-1])) == len(re.findall(r'\|', rows[0]))
