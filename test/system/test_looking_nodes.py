# SPDX-License-Identifier: Apache-2.0
"""What all nodes that show robots have in common: a clean end, and wrong parameters are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from safe_bringup.live import Process

NODES = ('dashboard', 'markers', 'overlay')
MODULE = 'safe_monitor_node.nodes.'


@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('node', NODES)
def test_a_signal_ends_it_cleanly(probe, tmp_path, node, end):
    parameters = {'port': 0} if node == 'dashboard' else {}
    process = Process(MODULE + node, parameters, tmp_path / 'log')
    try:
        probe.spin_until(lambda: node in probe.node.get_node_names(), 'the node runs', 30)
        os.kill(process.pid, end)
        probe.spin_until(lambda: process.exit_status is not None, 'the node ends')
    finally:
        status = process.stop()
    assert status == 0, process.log()
    assert 'Traceback' not in process.log()


@pytest.mark.parametrize(
    ('node', 'parameter', 'said'),
    [
        ('dashboard', 'lables:=true', "the nearest name is 'labels'"),
        ('dashboard', 'history:=1', '20 to 10000'),
        ('markers', 'frameid:=base', "the nearest name is 'frame_id'"),
        ('markers', 'size:=0.0', '0.01 to 100'),
        ('overlay', 'image_topics:=camera', "the nearest name is 'image_topic'"),
        ('overlay', 'jpeg_quality:=101', '1 to 100'),
    ],
)
def test_a_wrong_parameter_ends_the_start_with_the_reason(own_domain, node, parameter, said):
    command = [sys.executable, '-m', MODULE + node, '--ros-args', '-p', parameter]
    if node == 'dashboard':
        command += ['-p', 'port:=0']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f'it runs: {error.stderr!r}')
    assert done.returncode == 1
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
