# SPDX-License-Identifier: Apache-2.0
"""The dashboard node beside a real monitor: its stream, its labels, its refusals, its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from safe_bringup.live import Process
from safe_msgs.msg import EpisodeEvent

DASHBOARD = 'safe_monitor_node.nodes.dashboard'
TOKEN = 'a-long-token_0123456789'


@pytest.fixture
def run_dashboard(own_domain, tmp_path):
    started = []

    def start(**parameters):
        process = Process(DASHBOARD, {'port': 0, **parameters}, tmp_path / 'dashboard.log')
        started.append(process)
        deadline = time.monotonic() + 20
        while not (found := re.search(r'is at http://([^:/]+):(\d+)/', process.log())):
            assert time.monotonic() < deadline, process.log()
            assert process.exit_status is None, process.log()
            time.sleep(0.05)
        return found[1], int(found[2])

    yield start
    for process in started:
        assert process.stop() == 0, process.log()
        assert 'Traceback' not in process.log(), process.log()


def events(address):
    """Yield the robots of each event of a stream, by name."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request('GET', '/events')
    response = connection.getresponse()
    assert response.status == 200
    for line in response:
        if line.startswith(b'data: '):
            yield {row['name']: row for row in json.loads(line[6:])['robots']}


def wait_for(stream, condition, seconds=20):
    deadline = time.monotonic() + seconds
    for robots in stream:
        if condition(robots):
            return robots
        assert time.monotonic() < deadline, robots
    raise AssertionError('the stream ended')


def post(address, body):
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request('POST', '/label', json.dumps(body), {'Content-Type': 'application/json'})
    return json.loads(connection.getresponse().read())


def wait_until_it_listens(probe, stream):
    """Wait until the dashboard has found the robot ``/`` and receives its scores."""
    wait_for(stream, lambda robots: '/' in robots)
    # The other subscription is that of the probe.
    probe.spin_until(lambda: probe.node.count_subscribers('safe/score') >= 2, 'it listens')


def test_scores_and_states_of_a_monitor_arrive_in_the_browser(
    probe, run_monitor, run_dashboard, mlp_folder, quiet
):
    run_monitor(detector_folder=mlp_folder)
    run_monitor(('-r', '__ns:=/arm/left'), detector_folder=mlp_folder)
    stream = events(run_dashboard(period=0.05))
    probe.wait_until_active()
    wait_for(stream, lambda robots: {'/', '/arm/left'} <= robots.keys())
    published = [probe.step(quiet(t)) for t in range(5)]
    points = []
    while len(points) < 5:
        points += next(stream)['/']['points']
    assert [step for step, *_ in points] == [0, 1, 2, 3, 4]
    for (_, score, threshold), message in zip(points, published, strict=True):
        assert score == pytest.approx(message.score, rel=1e-5)
        assert threshold == pytest.approx(message.threshold, rel=1e-5)


def test_a_label_in_the_browser_is_an_event_on_the_topic(
    probe, run_monitor, run_dashboard, mlp_folder, quiet
):
    run_monitor(detector_folder=mlp_folder)
    address = run_dashboard()
    labels = probe.listen_to_events()
    probe.wait_until_active()
    stream = events(address)
    wait_until_it_listens(probe, stream)
    probe.step(quiet(0, episode='an "episode"'))
    wait_for(stream, lambda robots: robots.get('/', {}).get('points'))
    body = {'robot': '/', 'episode': 'an "episode"', 'outcome': 2}
    deadline = time.monotonic() + 10
    while not (answer := post(address, body))['success']:
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    assert 'an "episode"' in answer['message']
    probe.spin_until(lambda: labels, 'the label is published')
    found = labels[-1]
    assert (found.kind, found.outcome) == (EpisodeEvent.KIND_LABEL, EpisodeEvent.OUTCOME_FAILURE)
    assert found.episode_id == 'an "episode"'
    answer = post(address, {**body, 'robot': '/nobody'})
    assert answer == {'success': False, 'message': 'no monitor of this robot is known'}


def test_a_monitor_that_is_gone_is_said_in_seconds_and_takes_no_label(
    probe, run_monitor, run_dashboard, mlp_folder, quiet
):
    monitor = run_monitor(detector_folder=mlp_folder)
    address = run_dashboard()
    probe.wait_until_active()
    stream = events(address)
    wait_until_it_listens(probe, stream)
    probe.step(quiet(0))
    wait_for(stream, lambda robots: robots.get('/', {}).get('points'))
    assert monitor.stop() == 0
    gone = wait_for(stream, lambda r: r['/'].get('facts', {}).get('word') == 'GONE', 10)
    assert gone['/']['facts']['severity'] == 'danger'
    answer = post(address, {'robot': '/', 'episode': 'e', 'outcome': 1})
    assert not answer['success']


@pytest.mark.parametrize(
    ('parameters', 'said'),
    [
        ({'address': '0.0.0.0'}, 'set the parameter token'),
        ({'token': 'short'}, 'at least 16'),
        ({'address': '192.0.2.1', 'token': TOKEN}, 'an address of this computer'),
        ({'port': 70000}, '0 to 65535'),
    ],
)
def test_what_cannot_be_served_ends_the_start_with_the_reason(own_domain, parameters, said):
    command = [sys.executable, '-m', DASHBOARD, '--ros-args']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
    assert TOKEN not in done.stderr


def test_with_a_token_another_address_is_served_and_the_log_keeps_the_secret(
    run_dashboard, tmp_path
):
    _, port = run_dashboard(address='0.0.0.0', token=TOKEN)
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    connection.request('GET', '/')
    assert connection.getresponse().status == 401
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    connection.request('GET', '/', headers={'Authorization': f'Bearer {TOKEN}'})
    assert connection.getresponse().status == 200
    assert TOKEN not in (tmp_path / 'dashboard.log').read_text()


@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_with_open_browsers(own_domain, tmp_path, end):
    process = Process(DASHBOARD, {'port': 0}, tmp_path / 'log')
    deadline = time.monotonic() + 20
    while not (found := re.search(r'is at http://([^:/]+):(\d+)/', process.log())):
        assert time.monotonic() < deadline, process.log()
        time.sleep(0.05)
    stream = events((found[1], int(found[2])))
    next(stream)
    os.kill(process.pid, end)
    deadline = time.monotonic() + 10
    while process.exit_status is None:
        assert time.monotonic() < deadline, process.log()
        time.sleep(0.05)
    assert process.stop() == 0, process.log()
    assert 'Traceback' not in process.log()
