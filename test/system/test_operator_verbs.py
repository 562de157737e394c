# SPDX-License-Identifier: Apache-2.0
"""The verbs of an operator beside real monitors: ``python -m safe_monitor_node VERB``."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool

from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore, PolicyStep
from vla_feature_bridge.ros.qos import ALARM_QOS, SCORE_QOS

SAFE = [sys.executable, '-m', 'safe_monitor_node']


def safe(*words, **kwargs):
    return subprocess.run(
        [*SAFE, *words], capture_output=True, text=True, timeout=60, check=False, **kwargs
    )


def episodes(quiet):
    """Yield steps of one episode after the other, each shorter than the band."""
    for t in itertools.count():
        yield quiet(t % 20, f'e{t // 20}')


def meanwhile(probe, *words, steps=()):
    """Run a verb while steps are published; returns its status, output and errors."""
    process = subprocess.Popen(
        [*SAFE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    waiting = iter(steps)
    while process.poll() is None:
        step = next(waiting, None)
        if step is not None:
            probe.step(step)
        probe.executor.spin_once(timeout_sec=0.25)
    out, err = process.communicate()
    return process.returncode, out, err


def test_the_status_is_that_of_the_worst_robot(probe, run_monitor, mlp_folder, quiet):
    run_monitor(detector_folder=mlp_folder)
    run_monitor(('-r', '__ns:=/arm'), detector_folder=mlp_folder)
    probe.wait_until_active()
    status, out, err = meanwhile(probe, 'status', '--wait', '6', steps=episodes(quiet))
    first, second = out.splitlines()
    assert first.startswith('/ NOMINAL episode e')
    assert second.startswith('/arm UNKNOWN')
    assert status == 3, 'UNKNOWN is worse than NOMINAL'
    assert err == ''
    status, out, _ = meanwhile(probe, 'status', '--robot', '/', '--json', '--wait', '5')
    (facts,) = [json.loads(line) for line in out.splitlines()]
    assert facts['state'] in ('NOMINAL', 'STALE') and facts['robot'] == '/'
    assert status == {'NOMINAL': 0, 'STALE': 5}[facts['state']]
    done = safe('status', '--robot', 'leg', '--wait', '6')
    assert done.returncode == 1
    assert 'the robots are /, /arm' in done.stderr


def test_the_status_waits_for_a_state_that_arrives_late(probe):
    probe.node.create_publisher(FailureScore, '/late/safe/score', SCORE_QOS)
    states = probe.node.create_publisher(FailureAlarm, '/late/safe/alarm', ALARM_QOS)
    process = subprocess.Popen(
        [*SAFE, 'status', '--robot', 'late', '--wait', '4'], stdout=subprocess.PIPE, text=True
    )
    # A subscriber exists when the status has found the robot.
    probe.spin_until(states.get_subscription_count, 'the robot is found')
    time.sleep(4.0)
    assert process.poll() is None, 'it still waits for the state'
    states.publish(FailureAlarm(state=FailureAlarm.STATE_ALARM, episode_id='e', reason='late'))
    out, _ = process.communicate(timeout=20)
    assert out.startswith('/late ALARM')
    assert process.returncode == 8


def test_services_are_called_and_their_answers_are_printed(
    probe, run_monitor, mlp_folder, lstm_folder, quiet, tmp_path
):
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    labels = []
    probe.node.create_subscription(EpisodeEvent, 'vla/episode', labels.append, 10)
    probe.step(quiet(0))
    status, out, err = meanwhile(probe, 'label', 'failure')
    assert status == 0, err
    assert out.startswith('/monitor: ') and "'e'" in out
    probe.spin_until(lambda: labels, 'the label is published')
    assert (labels[-1].kind, labels[-1].outcome) == (2, 2)
    status, out, _ = meanwhile(probe, 'reset')
    assert status == 0 and 'the state before was ' in out
    # A relative path, from the folder of the command.
    done = safe('load', lstm_folder.name, cwd=lstm_folder.parent)
    assert done.returncode == 0, done.stderr
    assert 'safe_lstm' in done.stdout
    done = safe('load', str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr


def test_one_of_several_monitors_must_be_chosen(probe, run_monitor, mlp_folder):
    run_monitor(('-r', '__ns:=/a'), detector_folder=mlp_folder)
    run_monitor(('-r', '__ns:=/b'), detector_folder=mlp_folder)
    probe.spin_until(
        lambda: (
            {'/a/monitor', '/b/monitor'}
            <= {f'{space}/{name}' for name, space in probe.node.get_node_names_and_namespaces()}
        ),
        'both monitors run',
    )
    done = safe('reset')
    assert done.returncode == 1
    assert 'found /a/monitor, /b/monitor; add --robot with one of /a, /b' in done.stderr
    done = safe('reset', '--robot', 'a')
    assert '/a/monitor: ' in done.stdout + done.stderr
    done = safe('reset', '--robot', '/c', '--wait', '4')
    assert done.returncode == 1
    assert '/a/monitor, /b/monitor' in done.stderr


def test_two_monitors_of_one_name_are_said_to_be_two(probe, run_monitor, mlp_folder):
    run_monitor(detector_folder=mlp_folder)
    run_monitor(detector_folder=mlp_folder)
    probe.spin_until(lambda: probe.node.get_node_names().count('monitor') == 2, 'both monitors run')
    probe.spin_until(lambda: probe.status is not None and probe.status.values, 'one is active')
    said = ''
    for _ in range(6):  # a new process may find one of them first
        done = safe('reset', '--wait', '20')
        assert done.returncode == 0, done.stderr
        assert '/monitor: the state before was ' in done.stdout
        said += done.stderr
        if said:
            break
    assert 'reset: /monitor: expected one node of this name, found 2' in said


def test_the_doctor_says_what_to_start_if_no_policy_runs(run_monitor, mlp_folder):
    run_monitor(detector_folder=mlp_folder)
    deadline = time.monotonic() + 60.0
    out = ''
    wanted = '/vla/policy_step: expected a publisher, found none; start the policy ('
    # A monitor that has just become active has not looked for publishers yet.
    while wanted not in out and time.monotonic() < deadline:
        out = safe('doctor').stdout
    assert wanted in out


def test_without_a_monitor_the_verbs_say_what_to_do(own_domain):
    done = safe('label', 'success', '--wait', '1')
    assert done.returncode == 1
    assert 'expected a monitor within 1 s, found none; start a monitor (' in done.stderr
    done = safe('doctor', '--wait', '1')
    assert done.returncode == 1
    assert 'no other node is visible' in done.stdout
    assert 'expected a monitor, found none' in done.stdout
    assert done.stderr == ''


def test_a_monitor_that_hangs_is_said_to_hang(probe, run_monitor, mlp_folder):
    monitor = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    os.kill(monitor.pid, signal.SIGSTOP)
    try:
        done = safe('reset', '--wait', '2')
        assert done.returncode == 1
        # Whether a new process still finds it depends on the last words of its discovery.
        assert 'hangs' in done.stderr
        done = safe('doctor', '--wait', '4')
        assert done.returncode == 1
        assert 'hangs' in done.stdout
    finally:
        os.kill(monitor.pid, signal.SIGCONT)


def test_the_doctor_names_a_monitor_that_stops_to_answer_while_it_looks(
    probe, run_monitor, mlp_folder
):
    run_monitor(('-r', '__ns:=/arm'), detector_folder=mlp_folder)
    suspended = run_monitor(detector_folder=mlp_folder)
    active = [f'{name}: failure monitor' for name in ('arm/monitor', 'monitor')]
    heard = set()

    def hear(array):
        heard.update(status.name for status in array.status if status.message.startswith('UNKN'))

    probe.node.create_subscription(DiagnosticArray, '/diagnostics', hear, 10)
    probe.spin_until(lambda: heard >= set(active), 'both are active', timeout=60.0)
    doctor = subprocess.Popen(
        [*SAFE, 'doctor', '--wait', '6'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        # The doctor is connected, so that it has heard good diagnostics of both.
        probe.spin_until(
            lambda: any(
                info.node_name == f'safe_doctor_{doctor.pid}'
                for info in probe.node.get_subscriptions_info_by_topic('/diagnostics')
            ),
            'the doctor looks',
            timeout=60.0,
        )
        end = time.monotonic() + 3.0
        probe.spin_until(lambda: time.monotonic() > end, 'diagnostics come')
        os.kill(suspended.pid, signal.SIGSTOP)
        out, err = doctor.communicate(timeout=30)
    finally:
        os.kill(suspended.pid, signal.SIGCONT)
        doctor.kill()
    assert (doctor.returncode, err) == (1, '')
    alone, both = out[out.index('/monitor (robot /)') :], out[: out.index('/monitor (robot /)')]
    assert 'problem  /monitor/get_state: expected an answer, found none' in alone
    assert 'its last diagnostics came ' in alone
    assert '/arm/monitor (robot /arm)' in both
    assert '/arm/monitor/get_state' not in both
    assert 'active, with detector' in both


def test_the_doctor_finds_nothing_wrong_with_a_good_set_up(probe, run_monitor, mlp_folder, quiet):
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    # Two diagnoses are needed, one a second; on a busy machine, discovery takes seconds.
    words = ['doctor', '--wait', '8', '--detector', str(mlp_folder)]
    status, out, err = meanwhile(probe, *words, steps=episodes(quiet))
    assert status == 0, out
    assert err == ''
    assert '0 problems found' in out
    assert 'steps scored, 0 steps invalid' in out, out
    assert '/safe/stop: /probe gets it' in out
    assert 'safe_mlp of features' in out


def test_the_doctor_names_a_wrong_namespace_and_a_stop_that_nobody_gets(
    probe, run_monitor, mlp_folder
):
    run_monitor(('-r', '__ns:=/arm'), detector_folder=mlp_folder)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    probe.node.create_subscription(Bool, '/arm/safe/stop', lambda m: None, latched)
    # As a recorder does.
    probe.node.create_subscription(PolicyStep, '/arm/vla/policy_step', lambda m: None, 10)
    alarms = []
    probe.node.create_subscription(FailureAlarm, '/arm/safe/alarm', alarms.append, 10)
    probe.spin_until(lambda: probe.status is not None and probe.status.values, 'it runs')
    time.sleep(1.0)
    status, out, _ = meanwhile(probe, 'doctor', '--wait', '4')
    assert status == 1
    assert '/vla/policy_step: /probe publishes steps, and no monitor subscribes' in out
    assert '/arm/safe/stop: /probe gets no message (' in out
    assert '/arm/safe/stop: only /probe subscribes, to record it' in out
    assert '/arm/vla/policy_step: expected a publisher, found none' in out


def test_the_doctor_gives_the_reason_why_a_monitor_is_not_configured(probe, run_monitor, tmp_path):
    run_monitor(detector_folder=tmp_path / 'missing')
    probe.spin_until(lambda: probe.status is not None, 'it runs')
    status, out, _ = meanwhile(probe, 'doctor', '--wait', '3')
    assert status == 1
    assert 'not configured: ' in out and 'missing' in out
    done = safe('doctor', '--wait', '1', '--detector', str(tmp_path))
    assert f'problem  {tmp_path}' in done.stdout


@pytest.mark.parametrize('verb', ['status', 'doctor'])
def test_ctrl_c_ends_a_verb_quietly(own_domain, verb):
    process = subprocess.Popen(
        [*SAFE, verb, '--wait', '60'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(3.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert 'Traceback' not in err
