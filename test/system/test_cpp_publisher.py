# SPDX-License-Identifier: Apache-2.0
"""The C++ part of the page "Publish from C++" compiles, and Python reads what it sends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ament_index_python import get_package_prefix
from rclpy.serialization import deserialize_message

from safe_msgs.msg import PolicyStep
from vla_feature_bridge.ros.messages import step_from_message

PAGE = Path(__file__).parents[2] / 'docs' / 'how-to' / 'publish_from_cpp.md'
MAIN = """
#include <cstdio>
#include <numeric>
#include <rmw/rmw.h>
#include <rosidl_typesupport_cpp/message_type_support.hpp>
#include "policy_step.hpp"

int main(int, char ** argv)
{
  std::vector<float> hidden(6), chunk(2 * 4 * 3);
  std::iota(hidden.begin(), hidden.end(), 0.5f);
  std::iota(chunk.begin(), chunk.end(), -3.0f);
  builtin_interfaces::msg::Time stamp;
  stamp.sec = 7;
  stamp.nanosec = 8;
  const auto step = policy_step(
    "pick-1", 3, stamp, tensor("hidden_states", {2, 3}, hidden),
    tensor("actions", {2, 4, 3}, chunk), 2);
  try {
    tensor("features", {5}, hidden);
    return 3;
  } catch (const std::invalid_argument &) {
  }
  const auto * support = rosidl_typesupport_cpp::get_message_type_support_handle<
    safe_msgs::msg::PolicyStep>();
  auto allocator = rcutils_get_default_allocator();
  auto bytes = rmw_get_zero_initialized_serialized_message();
  if (rmw_serialized_message_init(&bytes, 0, &allocator) != RMW_RET_OK) {return 4;}
  if (rmw_serialize(&step, support, &bytes) != RMW_RET_OK) {return 5;}
  FILE * file = fopen(argv[1], "wb");
  fwrite(bytes.buffer, 1, bytes.buffer_length, file);
  return fclose(file);
}
"""


def blocks() -> list[str]:
    """Return the C++ of the page."""
    return re.findall(r'```cpp\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)


def folders() -> tuple[list[Path], list[Path]]:
    """Return where headers and libraries of ROS and of safe_msgs are."""
    prefixes = [Path(get_package_prefix(name)) for name in ('safe_msgs', 'rclpy')]
    include = [
        folder
        for prefix in prefixes
        for folder in (prefix / 'include').iterdir()
        if folder.is_dir()
    ]
    libraries = [
        folder
        for prefix in prefixes
        for folder in (
            prefix / 'lib',
            *prefix.glob('lib/python*/site-packages/ros_*.libs'),
        )
        if folder.is_dir()
    ]
    return include, libraries


@pytest.mark.slow
def test_a_message_made_in_cpp_is_read_in_python(tmp_path: Path) -> None:
    compiler = shutil.which('c++')
    if compiler is None:
        pytest.skip('no C++ compiler is installed')
    include, libraries = folders()
    if not any((folder / 'safe_msgs' / 'msg' / 'policy_step.hpp').exists() for folder in include):
        pytest.skip('safe_msgs was installed without its C++ headers')
    header, _ = blocks()
    (tmp_path / 'policy_step.hpp').write_text(header)
    (tmp_path / 'main.cpp').write_text(MAIN)
    command = [compiler, '-std=c++17', '-Wall', '-Wextra', '-Werror', 'main.cpp', '-o', 'main']
    command += [f'-isystem{folder}' for folder in include]
    command += [f'-L{folder}' for folder in libraries]
    command += [f'-Wl,-rpath-link,{folder}' for folder in libraries]
    command += [
        *('-lsafe_msgs__rosidl_typesupport_cpp', '-lrmw_fastrtps_cpp', '-lrcutils', '-lrmw'),
        '-Wl,--allow-shlib-undefined',
    ]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    run = subprocess.run(['./main', 'step.cdr'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    step = step_from_message(deserialize_message((tmp_path / 'step.cdr').read_bytes(), PolicyStep))
    assert (step.episode_id, step.step, step.stamp) == ('pick-1', 3, 7_000_000_008)
    assert (step.feature_name, step.exec_horizon, step.action_space) == (
        'hidden_states',
        2,
        'robot',
    )
    np.testing.assert_array_equal(step.features, np.arange(6, dtype='f4').reshape(2, 3) + 0.5)
    np.testing.assert_array_equal(step.actions, np.arange(24, dtype='f4').reshape(2, 4, 3) - 3)
    assert np.isnan(step.inference_time)


def test_the_page_shows_one_header_and_one_node_of_readable_length() -> None:
    header, node = blocks()
    assert '#include "policy_step.hpp"' in node
    assert len(node.splitlines()) <= 60
    assert len(header.splitlines()) <= 60
    assert sys.byteorder == 'little', 'the example copies the bytes as they are'
