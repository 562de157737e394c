# SPDX-License-Identifier: Apache-2.0
"""Parameters that change at run time: checked before, applied after, all of a request or none."""

from types import SimpleNamespace

import pytest
from declared_nodes import declaring_nodes
from rclpy.parameter import Parameter as RosParameter

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.parameter_changes import ParameterChanges
from vla_feature_bridge.ros.parameters import AT_ONCE, Parameter

TABLE = (
    Parameter('low', 1, 'Lower.', 0, 9, changes=AT_ONCE),
    Parameter('high', 2, 'Upper.', 0, 9, changes=AT_ONCE),
    Parameter('way', 'up', 'Way.', choices=('up', 'down'), changes=AT_ONCE),
    Parameter('fixed', 0.5, 'Fixed.', 0.0, 1.0),
)


@pytest.fixture
def changing():
    """Yield a node with a table, its values, and the values of every change that was applied."""
    with declaring_nodes() as declare:
        node, values = declare(TABLE)
        applied = []

        def check(changed: SimpleNamespace) -> None:
            if changed.low > changed.high:
                raise SafeError(where='low', expected='at most high', found=str(changed.low))

        ParameterChanges(node, TABLE, values, check, lambda: applied.append(dict(vars(values))))
        yield node, values, applied


def give(**values):
    return [RosParameter(name, value=value) for name, value in values.items()]


def test_a_change_is_in_the_values_before_it_is_applied(changing):
    node, values, applied = changing
    assert node.set_parameters_atomically(give(low=3, high=4)).successful
    assert (values.low, values.high) == (3, 4)
    assert applied == [{'low': 3, 'high': 4, 'way': 'up', 'fixed': 0.5}]


@pytest.mark.parametrize(
    ('given', 'reason'),
    [
        ({'high': 5, 'low': 6}, 'low: expected at most high, found 6'),
        ({'high': 5, 'way': 'left'}, "expected one of 'up', 'down', found 'left' of type string"),
        ({'high': 10}, 'high'),
        ({'high': 5, 'low': 1.5}, 'type'),
        ({'high': 5, 'fixed': 0.6}, 'read-only'),
    ],
    ids=['contradiction', 'choice', 'range', 'type', 'read-only'],
)
def test_a_refused_value_changes_nothing_of_its_request(changing, given, reason):
    node, values, applied = changing
    result = node.set_parameters_atomically(give(**given))
    assert not result.successful
    assert reason in result.reason
    assert vars(values) == {'low': 1, 'high': 2, 'way': 'up', 'fixed': 0.5}
    assert node.get_parameter('high').value == 2
    assert applied == []


def test_a_parameter_cannot_be_deleted(changing):
    node, _, applied = changing
    assert not node.set_parameters([RosParameter('low')])[0].successful
    assert node.get_parameter('low').value == 1
    assert applied == []


def test_parameters_of_rclpy_are_not_ours(changing):
    node, _, applied = changing
    assert node.set_parameters(give(use_sim_time=True))[0].successful
    assert applied == []
