# SPDX-License-Identifier: Apache-2.0
"""Declared parameters: read-only, bounded, types and ranges in words, old names refused."""

import pytest
from declared_nodes import declaring_nodes
from rclpy.exceptions import ParameterImmutableException
from rclpy.parameter import Parameter as RosParameter

from vla_feature_bridge.nodes import replay_node
from vla_feature_bridge.ros.parameters import Parameter, ParameterError

LARGEST_INTEGER = 2**31 - 1


@pytest.fixture
def declare():
    with declaring_nodes() as declared:
        yield declared


def test_a_parameter_cannot_be_changed_after_the_start(declare):
    node, _ = declare(replay_node.PARAMETERS)
    (result,) = node.set_parameters([RosParameter('gap', value=0.5)])
    assert not result.successful
    with pytest.raises(ParameterImmutableException):
        node.undeclare_parameter('gap')
    assert node.get_parameter('gap').value == 0.2


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
    refusal = (
        r"/somebody: expected the parameter 'frequency', found 'rate'.*"
        r'write frequency:=20.0\. .*another node.*/\*\*'
    )
    with pytest.raises(ParameterError, match=refusal):
        declare(table, rate=20.0)


@pytest.mark.parametrize(
    ('parameter', 'value', 'refusal'),
    [
        (Parameter('a', 0.5, 'A size.', 0.0, 9.0), 5, r'double \(0 to 9\), found 5 .* write 5\.0;'),
        (Parameter('a', 0.5, 'A size.', 0.0, 9.0), 9.5, r'double \(0 to 9\), found 9\.5 of type d'),
        (Parameter('a', 0.5, 'A size.'), True, 'type double, found true of type bool'),
        (Parameter('a', [''], 'A size.'), 'x', r"string\[\], found 'x' of type string; write \['x"),
        (Parameter('a', [''], 'A size.'), [1, 2], r'string\[\], found \[1, 2\] of type list'),
        (Parameter('a', '', 'A size.'), 3, 'type string, found 3 of type int; write the text in q'),
        (Parameter('a', 'x', 'A size.', choices=('x', 'y')), 'z', "one of 'x', 'y', found 'z'"),
    ],
)
def test_the_refused_value_and_its_right_spelling_are_said(declare, parameter, value, refusal):
    whole = f"parameter 'a' of /somebody: expected .*{refusal}.*the parameter means: A size."
    with pytest.raises(ParameterError, match=whole):
        declare((parameter,), a=value)
