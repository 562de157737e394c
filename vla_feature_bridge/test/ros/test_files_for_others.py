# SPDX-License-Identifier: Apache-2.0
"""Parameter files with other nodes only: found as rclpy reads them."""

import pytest
import rclpy
from rclpy.node import Node

from vla_feature_bridge.ros.parameter_files import files_for_others

VALUES = 'ros__parameters: {count: 3}'


@pytest.mark.parametrize(
    ('file', 'is_for_it'),
    [
        ('/robot/monitor: {%s}', True),
        ('/**/monitor: {%s}', True),
        ('/**: {%s}', True),
        ('/*/monitor: {%s}', True),
        ('/robot/*: {%s}', True),
        ('robot: {monitor: {%s}}', True),
        ('/robot/monitr: {%s}', False),
        ('monitor: {%s}', False),
        ('/**/bridge: {%s}', False),
        ('/*: {%s}', False),
        ('/other: {monitor: {%s}}', False),
    ],
)
def test_a_file_that_names_other_nodes_is_said_as_rclpy_ignores_it(tmp_path, file, is_for_it):
    path = tmp_path / 'params.yaml'
    path.write_text(file % VALUES + '\n')
    arguments = ['--ros-args', '--params-file', str(path)]
    context = rclpy.Context()
    rclpy.init(args=arguments, context=context)
    node = Node('monitor', namespace='/robot', context=context)
    try:
        taken = node.declare_parameter('count', 0).value == 3
        assert taken == is_for_it, 'this is what rclpy does'
        sentence = files_for_others(node, ['program', *arguments])
        assert (sentence == '') == is_for_it
        if not is_for_it:
            assert sentence.startswith(f'{path}: expected parameters of /robot/monitor, found ')
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_other_arguments_are_no_files(tmp_path):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node('monitor', context=context)
    (tmp_path / 'empty.yaml').write_text('')
    try:
        for arguments in (
            [],
            ['--params-file'],
            ['-p', 'x.yaml'],
            ['--params-file', str(tmp_path / 'absent.yaml')],
            ['--params-file', str(tmp_path / 'empty.yaml')],
        ):
            assert files_for_others(node, arguments) == ''
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
