# SPDX-License-Identifier: Apache-2.0
"""Values for parameters that a node does not have: misspelt names are refused, others are said."""

import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Empty

from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import Parameter, ParameterError, declare_parameters
from vla_feature_bridge.ros.qos import overridable

TABLE = (
    Parameter('stale_after', 2.0, 'Time [s].'),
    Parameter('alarm_k', 1, 'Count.'),
    Parameter('rows', [''], 'Texts.'),
)


@pytest.fixture
def check():
    """Yield a function that checks arguments as they are given on a command line."""
    contexts = []

    def checked(*arguments):
        context = rclpy.Context()
        rclpy.init(args=['--ros-args', *arguments], context=context)
        contexts.append(context)
        node = Node('somebody', context=context)
        declare_parameters(node, TABLE)
        node.create_subscription(
            Empty,
            'topic',
            print,
            **overridable(QoSProfile(depth=1)),
        )
        return check_overrides(node)

    yield checked
    for context in contexts:
        rclpy.shutdown(context=context)


def test_given_parameters_of_the_node_and_of_rclpy_are_known(check):
    given = [
        'alarm_k:=2',
        'use_sim_time:=true',
        'start_type_description_service:=false',
        'qos_overrides./topic.subscription.depth:=3',
        'qos_overrides./other.subscription.depth:=3',
    ]
    assert check(*(word for text in given for word in ('-p', text))) == ''


def test_the_overrides_of_one_node_are_not_those_of_the_next():
    """Robots of one process share the profiles of the topics, and each has its own overrides."""
    shared = QoSProfile(depth=1)
    for name, depth in (('first', 3), ('second', 1)):
        context = rclpy.Context()
        rclpy.init(
            args=['--ros-args', '-p', 'qos_overrides./topic.publisher.depth:=3']
            if name == 'first'
            else [],
            context=context,
        )
        node = Node(name, context=context)
        made = node.create_publisher(Empty, 'topic', **overridable(shared))
        assert (made.qos_profile.depth, shared.depth) == (depth, 1)
        rclpy.shutdown(context=context)


@pytest.mark.parametrize(
    ('given', 'nearest'),
    [('stale_aftr', 'stale_after'), ('staleafter', 'stale_after'), ('alarm_kk', 'alarm_k')],
)
def test_a_misspelt_name_is_refused_with_the_nearest(check, given, nearest):
    with pytest.raises(ParameterError) as caught:
        check('-p', f'{given}:=3.0')
    assert f"found '{given}'; the nearest name is '{nearest}'" in str(caught.value)


def test_a_misspelt_name_in_a_file_is_refused_too(check, tmp_path):
    path = tmp_path / 'params.yaml'
    path.write_text('/**:\n  ros__parameters:\n    stale_aftr: 3.0\n')
    with pytest.raises(ParameterError, match=r"'stale_aftr'.*not below /\*\*"):
        check('--params-file', str(path))


def test_a_name_that_may_belong_to_another_node_is_said(check):
    sentence = check('-p', 'robot_description:=x', '-p', 'alarm_advice:=stop')
    assert sentence == (
        'these values were given, but /somebody has no such parameters: '
        "'alarm_advice' (the nearest name is 'alarm_k'), 'robot_description'"
    )


@pytest.mark.parametrize(
    'rows', ['[WARNING: SLOW, ALARM: ASK]', '\n      WARNING: SLOW', '\n      - WARNING: SLOW']
)
def test_texts_with_a_colon_without_quotes_are_refused(check, tmp_path, rows):
    """YAML reads them as names below the parameter, which the node would never look at."""
    path = tmp_path / 'params.yaml'
    path.write_text(f'/**:\n  ros__parameters:\n    rows: {rows}\n')
    with pytest.raises(
        ParameterError, match=r"'rows\.WARNING.* put each text with a colon in quotes"
    ):
        check('--params-file', str(path))


def test_rows_in_quotes_are_read(check, tmp_path):
    path = tmp_path / 'params.yaml'
    path.write_text("/**:\n  ros__parameters:\n    rows:\n      - 'WARNING: SLOW'\n")
    assert check('--params-file', str(path)) == ''


def test_an_empty_list_is_refused_with_how_to_write_it(check, tmp_path):
    path = tmp_path / 'params.yaml'
    path.write_text('/**:\n  ros__parameters:\n    rows: []\n')
    with pytest.raises(ParameterError, match=r"found no value; write \[''\] for an empty list"):
        check('--params-file', str(path))
