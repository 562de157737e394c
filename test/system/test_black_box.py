# SPDX-License-Identifier: Apache-2.0
"""The black box as a process over DDS: what it records, and faults of its disk and its inputs."""

from __future__ import annotations

import csv
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from black_box_bench import BlackBoxBench, content_of
from diagnostic_msgs.msg import DiagnosticStatus
from probe import RELIABLE
from rclpy.serialization import deserialize_message

from safe_bringup.live import Process
from safe_monitor_node.nodes.black_box_topics import MOST_TOPICS
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore, PolicyStep
from safe_training.cli.main import main as safe_training
from safe_training.recordings.sources import open_source
from vla_feature_bridge.ros import StepPublisher

NAME = re.compile(r'\d{8}T\d{6}\.\d{3}Z_(?P<episode>[A-Za-z0-9_-]{1,40})_[0-9a-f]{8}\.mcap')
ALL_TOPICS = {
    '/vla/policy_step',
    '/vla/episode',
    '/safe/score',
    '/safe/alarm',
    '/safe/stop',
    '/diagnostics',
}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / 'recordings'


@pytest.fixture
def run_black_box(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start black boxes; each must end with 0 on interrupt, or be killed, without a traceback."""
    started: list[Process] = []

    def start(**parameters: Any) -> Process:
        log = tmp_path / f'black_box{len(started)}.log'
        started.append(Process('safe_monitor_node.nodes.black_box', parameters, log))
        return started[-1]

    yield start
    for process in started:
        status = process.stop()
        assert status in (0, -signal.SIGKILL), process.log()
        assert 'Traceback' not in process.log(), process.log()


@pytest.fixture
def bench(
    run_black_box: Callable[..., Process], recordings: Path
) -> Iterator[Callable[..., BlackBoxBench]]:
    """Start a black box and a probe: ``bench(**parameters)``."""
    made: list[BlackBoxBench] = []

    def start(folder: Path = recordings, alarms: bool = True, **parameters: Any) -> BlackBoxBench:
        made.append(BlackBoxBench(run_black_box, folder, alarms, **parameters))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def alarming(rollouts, mlp_folder):
    """A rollout with an alarm after at least two quiet steps, and the step of its alarm."""
    loaded = load_detector(mlp_folder)
    for rollout in rollouts:
        step = loaded.band.at(0.2).first_crossing(loaded.detector.score(rollout))
        if step is not None and 2 <= step < len(rollout) - 3:
            return rollout, step
    pytest.fail('no rollout of the shipped set alarms late enough for this test')


def episode_of(path: Path) -> str:
    match = NAME.fullmatch(path.name)
    assert match, path.name
    return match['episode']


def partial_files(folder: Path) -> list[Path]:
    return sorted(folder.glob('.*.partial.mcap'))


# --- what is recorded


@pytest.mark.slow
def test_an_alarm_is_recorded_with_its_whole_episode_and_the_file_opens_everywhere(
    bench, run_monitor, mlp_folder, alarming, quiet, capsys
):
    rollout, alarm_step = alarming
    run_monitor(detector_folder=mlp_folder)
    box = bench(alarms=False, seconds_before=0.2, seconds_after=0.5)
    probe = box.probe
    box.until_active()
    probe.start('first', 'open the drawer')
    for t in range(3):
        probe.step(quiet(t, 'first'))
    probe.end('first')
    box.spin(0.5)
    probe.start(rollout.episode_id, rollout.task)
    sent = 0
    for t in range(alarm_step + 3):
        step = rollout.step(t)
        step.stamp = time.time_ns()
        probe.step(step)
        sent += 1
        # The episode begins long before the time that is recorded before an alarm.
        box.spin(0.1)
    (file,) = box.until_written(1)

    found = content_of(file)
    assert set(found) == ALL_TOPICS
    steps = [deserialize_message(data, PolicyStep) for _, data in found['/vla/policy_step']]
    assert [s.step for s in steps] == list(range(sent)), 'the whole episode, and no other'
    assert {s.episode_id for s in steps} == {rollout.episode_id}
    events = [deserialize_message(data, EpisodeEvent) for _, data in found['/vla/episode']]
    assert events[-1].kind == EpisodeEvent.KIND_START
    assert events[-1].task == rollout.task
    scores = [deserialize_message(data, FailureScore) for _, data in found['/safe/score']]
    assert [(s.step, s.score) for s in scores] == [
        (s.step, s.score) for s in probe.scores if s.episode_id == rollout.episode_id
    ]
    alarms = [deserialize_message(data, FailureAlarm) for _, data in found['/safe/alarm']]
    assert [a.step for a in alarms if a.state == FailureAlarm.STATE_ALARM] == [alarm_step]
    assert len(found['/safe/stop']) > 5
    assert found['/diagnostics']
    times = [stamp for entries in found.values() for stamp, _ in entries]
    assert abs(max(times) - time.time_ns()) < 30e9
    alarm_at = next(
        stamp for (stamp, _), a in zip(found['/safe/alarm'], alarms, strict=True) if a.step
    )
    assert 0.2 < (max(times) - alarm_at) * 1e-9 < 1.5, 'a moment after the alarm'

    # info, label and convert of safe_training.
    assert safe_training(['info', str(file)]) == 0
    assert 'rosbag2' in capsys.readouterr().out
    labels = file.parent / 'labels.csv'
    with labels.open('w', newline='') as stream:
        csv.writer(stream).writerows([('episode_id', 'outcome'), (rollout.episode_id, 'failure')])
    assert safe_training(['label', str(file), '--csv', str(labels)]) == 0
    converted = file.parent / 'converted'
    assert safe_training(['convert', str(file), str(converted), '--json']) == 0
    (again,) = open_source(converted).rollouts()
    assert (again.episode_id, again.success) == (rollout.episode_id, False)
    assert again.features.tobytes() == rollout.features[:sent].tobytes()

    # Its steps, played to the monitor, are scored as before.
    probe.end(rollout.episode_id)
    before = [s.score for s in probe.scores][-sent:]
    count = len(probe.scores)
    for message in steps:
        message.episode_id = 'played'
        probe.publish(message)
        box.spin(0.02)
    probe.spin_until(lambda: len(probe.scores) >= count + sent, 'the recording is scored again')
    assert [s.score for s in probe.scores][-sent:] == before


def test_two_alarms_in_quick_succession_are_one_file_and_a_later_one_is_another(bench, quiet):
    box = bench(seconds_after=1.0)
    box.play('a', quiet, 3)
    box.alarm('a')
    box.spin(0.4)
    box.alarm('b')
    box.spin(0.3)
    box.alarm('c')
    files = box.until_written(1)
    assert [episode_of(file) for file in files] == ['a']
    alarms = [deserialize_message(d, FailureAlarm) for _, d in content_of(files[0])['/safe/alarm']]
    loud = [a.episode_id for a in alarms if a.state == FailureAlarm.STATE_ALARM]
    assert loud == ['a', 'b', 'c']
    box.alarm('d')
    files = box.until_written(2)
    assert [episode_of(file) for file in files] == ['a', 'd']
    assert box.facts['recordings lost'] == '0'


def test_an_alarm_that_the_latch_holds_over_episodes_is_recorded_once_until_it_is_reset(
    bench, run_monitor, mlp_folder, alarming, quiet
):
    rollout, alarm_step = alarming
    run_monitor(detector_folder=mlp_folder, latch='reset')
    box = bench(alarms=False, seconds_before=0.2, seconds_after=0.0)
    probe = box.probe
    box.until_active()

    def play(episode: str, source: Callable[[int], Any], count: int) -> None:
        probe.start(episode)
        for t in range(count):
            step = source(t)
            step.episode_id = episode
            assert probe.step(step).episode_id == episode
        probe.event(episode, EpisodeEvent.KIND_END)
        box.spin(0.3)

    play('first', rollout.step, alarm_step + 1)
    box.until_written(1)
    for episode in ('second', 'third'):
        play(episode, quiet, 2)
        probe.spin_until(lambda e=episode: probe.alarms[-1].episode_id == e, 'it is held')
        assert probe.alarms[-1].state == FailureAlarm.STATE_ALARM
    assert probe.reset().success
    play('fourth', rollout.step, alarm_step + 1)
    assert [episode_of(file) for file in box.until_written(2)] == ['first', 'fourth']


def test_an_alarm_after_the_seconds_of_an_earlier_one_gets_a_file_of_its_own(bench, quiet):
    box = bench(seconds_after=1.0)
    box.play('a', quiet, 3)
    box.alarm('a')
    box.spin(0.8)
    box.alarm('b')  # extends the first file to 1.8 s
    box.spin(0.5)
    box.alarm('c')  # more than 1 s after the first alarm
    files = box.until_written(2)
    assert [episode_of(file) for file in files] == ['a', 'c']


def test_a_state_that_repeats_makes_no_second_file_and_blindness_only_on_request(bench, quiet):
    box = bench(seconds_after=0.1, record_on='alarm_or_blind')
    box.play('a', quiet, 3)
    box.state(FailureAlarm.STATE_INVALID, 'a')
    assert [episode_of(file) for file in box.until_written(1)] == ['a']
    for _ in range(3):
        box.state(FailureAlarm.STATE_INVALID, 'a')
        box.spin(0.3)
    assert box.facts['recordings written'] == '1'
    box.state(FailureAlarm.STATE_WARNING, 'a')
    box.alarm('b')
    assert [episode_of(file) for file in box.until_written(2)] == ['a', 'b']


def test_save_records_without_an_alarm(bench, quiet):
    box = bench(seconds_after=0.1)
    box.play('by hand', quiet, 3)
    response = box.save()
    assert response.success
    assert str(box.folder) in response.message
    (file,) = box.until_written(1)
    assert episode_of(file) == 'by_hand'
    assert len(content_of(file)['/vla/policy_step']) == 3


def test_an_alarm_that_was_latched_before_the_start_makes_no_file(bench, quiet):
    box = bench(seconds_after=0.1)
    box.alarm('a')
    box.until_written(1)
    box.process.stop()
    box.restart(seconds_after=0.1)
    box.spin(1.0)
    assert len(box.files) == 1
    box.alarm('b')
    assert len(box.until_written(1)) == 2


def test_an_interrupt_writes_what_is_pending(bench, quiet):
    box = bench(seconds_after=60.0)
    box.play('a', quiet, 3)
    box.alarm('a')
    box.probe.spin_until(
        lambda: box.facts.get('recordings that wait for their end') == '1', 'the alarm is noticed'
    )
    assert box.process.stop() == 0
    (file,) = box.files
    assert len(content_of(file)['/vla/policy_step']) == 3


HOSTILE = [
    '../../x',
    '/etc/passwd',
    'e' * 300,
    '',
    '.',
    'nul\u2400\u202egpj.exe',
    'a\nb\tc',
    '~/$(rm -rf .)',
    '\U0001f916' * 20,
    '-rf',
]


def test_hostile_episode_ids_become_plain_names_in_the_folder(bench, recordings):
    box = bench(seconds_after=0.0)
    for count, episode in enumerate(HOSTILE, start=1):
        box.alarm(episode)
        box.until_written(count)
    outside = {path.name for path in recordings.parent.iterdir()} - {'recordings'}
    assert not [name for name in outside if not name.endswith('.log')]
    assert len(box.files) == len(HOSTILE)
    for file in box.files:
        assert episode_of(file)
    for file, episode in zip(box.files, HOSTILE, strict=True):
        alarms = [deserialize_message(d, FailureAlarm) for _, d in content_of(file)['/safe/alarm']]
        assert alarms[-1].episode_id == episode, 'the message keeps the true id'


# --- faults of the disk


def test_a_full_disk_is_said_costs_no_step_and_is_over_when_there_is_room(
    bench, run_monitor, mlp_folder, alarming, tmp_path
):
    rollout, alarm_step = alarming
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounted = (
        subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)], capture_output=True
        ).returncode
        == 0
    )
    try:
        run_monitor(detector_folder=mlp_folder)
        box = bench(folder=disk, alarms=False, seconds_after=0.1)
        if mounted:
            (disk / 'other').write_bytes(bytes(1020 * 1024))
            reason = 'No space left on device'
        else:
            reason = 'File too large'
            resource.prlimit(box.process.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
        probe = box.probe
        box.until_active()
        for t in range(len(rollout)):
            assert probe.step(rollout.step(t)).step == t, 'no step is lost'
        box.until_says(DiagnosticStatus.ERROR, reason)
        assert 'the recording is lost' in box.status.message
        assert box.facts['recordings lost'] == '1'
        assert not box.files
        assert not partial_files(disk)
        if not mounted:
            return
        (disk / 'other').unlink()
        probe.end(rollout.episode_id)
        for t in range(alarm_step + 1):
            step = rollout.step(t)
            step.episode_id = 'again'
            probe.step(step)
        assert [episode_of(file) for file in box.until_written(1)] == ['again']
        box.until_says(DiagnosticStatus.OK, 'keeps the last seconds')
    finally:
        if mounted:
            subprocess.run(['umount', '-l', str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(bench, tmp_path):
    (tmp_path / 'file').write_text('')
    box = bench(folder=tmp_path / 'file' / 'folder')
    box.until_says(DiagnosticStatus.ERROR, 'expected a folder that can be written')
    assert box.process.exit_status is None
    assert not box.save().success


def test_no_folder_is_refused_at_the_start(bench):
    box = bench(folder=Path("''"))
    box.until_says(DiagnosticStatus.ERROR, 'expected the folder of the recordings')


def test_a_folder_that_is_deleted_while_running_is_made_again(bench, quiet, recordings):
    box = bench(seconds_after=0.1)
    box.play('a', quiet, 2)
    shutil.rmtree(recordings)
    box.alarm('a')
    assert [episode_of(file) for file in box.until_written(1)] == ['a']


def test_a_folder_that_cannot_be_listed_is_said_before_the_next_alarm(bench, recordings):
    box = bench(seconds_after=0.0)
    moved = recordings.with_name('moved')
    recordings.rename(moved)
    recordings.write_text('a file')
    box.until_says(DiagnosticStatus.ERROR, 'expected a folder whose files can be listed')
    recordings.unlink()
    moved.rename(recordings)
    box.until_says(DiagnosticStatus.OK, 'keeps the last seconds')


def test_a_second_black_box_in_the_same_folder_is_refused(bench):
    first = bench()
    second = bench(alarms=False)
    texts = set()

    def heard() -> set[str]:
        for box in (first, second):
            if box.status is not None:
                texts.add(box.status.message)
        return {text for text in texts if 'expected a folder that no other black box uses' in text}

    second.probe.spin_until(heard, 'the second black box is refused')


def test_a_killed_process_leaves_no_half_file_and_the_next_one_names_it(bench, recordings):
    box = bench(seconds_after=0.0, memory_mb=400.0)
    big = np.zeros(2_000_000, np.uint8).tobytes()
    for index in range(60):
        message = PolicyStep(episode_id='big', step=index)
        message.features.dtype, message.features.shape = 'uint8', [len(big)]
        message.features.data = big
        box.probe.publish(message)
        box.spin(0.01)
    box.probe.spin_until(
        lambda: float(box.facts.get('memory [MB]', '0').split()[0]) > 115, 'all is in memory'
    )
    box.alarm('big')
    deadline = time.monotonic() + 20
    while not partial_files(recordings):
        assert time.monotonic() < deadline, 'no file is being written'
        box.probe.executor.spin_once(timeout_sec=0)
    os.kill(box.process.pid, signal.SIGKILL)
    box.process.stop()
    assert not box.files, 'a half file has no final name'
    (partial,) = partial_files(recordings)
    box.restart(seconds_after=0.0)
    box.until_says(DiagnosticStatus.WARN, str(partial))
    assert str(partial) in box.process.log()
    # What is whole of it can be read, as the advice says.
    if partial.stat().st_size > 10_000_000:
        assert len(list(open_source(partial, skip_bad=True).labels)) <= 1
    partial.unlink()
    box.alarm('next')
    box.until_written(1)
    box.until_says(DiagnosticStatus.OK, 'keeps the last seconds')


# --- bounds


def test_the_oldest_recordings_are_deleted_but_no_labelled_one(bench, recordings):
    box = bench(seconds_after=0.0, max_files=3)
    (recordings / 'notes.txt').write_text('not ours')
    (recordings / 'other.mcap').write_text('not ours')
    for count in range(1, 4):
        box.alarm(f'e{count}')
        box.until_written(count)
    ours = [file for file in box.files if NAME.fullmatch(file.name)]
    labelled = ours[0].with_name(f'{ours[0].name}.labels.csv')
    labelled.write_text('episode_id,success\n')
    for count in range(4, 7):
        box.alarm(f'e{count}')
        box.until_written(count)
    ours = [episode_of(file) for file in box.files if NAME.fullmatch(file.name)]
    assert ours == ['e1', 'e5', 'e6']
    assert box.facts['recordings deleted'] == '3'
    assert (recordings / 'notes.txt').is_file()
    assert (recordings / 'other.mcap').is_file()
    assert labelled.is_file()


def test_the_size_of_the_folder_is_bounded(bench):
    box = bench(seconds_before=0.1, seconds_after=0.0, max_folder_mb=1.0, whole_episodes=False)
    message = PolicyStep()
    message.features.dtype, message.features.shape = 'uint8', [400_000]
    message.features.data = bytes(400_000)
    for count in range(1, 5):
        message.episode_id = f'e{count}'
        box.spin(0.3)
        box.probe.publish(message)
        box.spin(0.05)
        box.alarm(f'e{count}')
        box.until_written(count)
        assert sum(file.stat().st_size for file in box.files) <= 1_000_000
    assert [episode_of(file) for file in box.files] == ['e3', 'e4']


def test_a_full_folder_can_refuse_and_says_so(bench):
    box = bench(seconds_after=0.0, max_files=1, when_full='refuse')
    box.alarm('e1')
    box.until_written(1)
    box.alarm('e2')
    box.until_says(DiagnosticStatus.ERROR, 'expected at most 1 recordings')
    assert [episode_of(file) for file in box.files] == ['e1']
    assert box.facts['recordings lost'] == '1'


def test_the_memory_is_bounded_and_what_is_missing_is_said(bench):
    box = bench(seconds_after=0.2, memory_mb=2.0)
    message = PolicyStep(episode_id='e')
    message.features.dtype, message.features.shape = 'uint8', [500_000]
    message.features.data = bytes(500_000)
    for index in range(10):
        message.step = index
        box.probe.publish(message)
        box.spin(0.02)
    box.alarm('e')
    (file,) = box.until_written(1)
    steps = [
        deserialize_message(data, PolicyStep).step
        for _, data in content_of(file)['/vla/policy_step']
    ]
    assert steps == [7, 8, 9]
    box.until_says(DiagnosticStatus.WARN, 'memory_mb is too small')
    used = float(box.facts['memory [MB]'].split()[0])
    assert used <= 2.0
    assert b'memory_mb was too small' in file.read_bytes()


# --- the monitor


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_a_black_box_that_dies_or_hangs_costs_the_monitor_no_step(
    bench, run_monitor, mlp_folder, quiet, number
):
    run_monitor(detector_folder=mlp_folder)
    box = bench(alarms=False)
    probe = box.probe
    box.until_active()
    sent, began = [], time.monotonic()
    for count in range(200):
        if count == 100:
            os.kill(box.process.pid, number)
        episode, index = f'e{count // 20}', count % 20
        box.send(quiet(index, episode))
        sent.append((episode, index))
        box.spin(began + (count + 1) / 50 - time.monotonic())
    probe.spin_until(lambda: len(probe.scores) >= len(sent), 'every step is scored')
    assert [(s.episode_id, s.step) for s in probe.scores] == sent
    assert FailureScore.STATE_INVALID not in {s.state for s in probe.scores}
    if number == signal.SIGSTOP:
        os.kill(box.process.pid, signal.SIGCONT)


def test_a_policy_that_waits_for_its_monitor_does_not_take_the_black_box_for_one(
    bench, run_monitor, mlp_folder, quiet
):
    box = bench(alarms=False)
    box.probe.leave()
    box.spin(1.0)
    first = quiet(0)
    publisher = StepPublisher(
        box.probe.node, first.feature_name, first.exec_horizon, wait_for_monitor=2.0, strict=True
    )
    assert not publisher._monitor_listens()
    run_monitor(detector_folder=mlp_folder)
    box.probe.spin_until(publisher._monitor_listens, 'the monitor listens')
    publisher.start(task='task')
    publisher.publish(first.features, first.actions)
    box.probe.spin_until(lambda: box.probe.scores, 'the first step is scored')
    assert box.probe.scores[0].state == FailureScore.STATE_NOMINAL
    assert box.save().success
    (file,) = box.until_written(1)
    found = content_of(file)
    assert len(found['/vla/policy_step']) == 1
    starts = [deserialize_message(data, EpisodeEvent) for _, data in found['/vla/episode']]
    assert [event.kind for event in starts] == [EpisodeEvent.KIND_START]


def test_the_scores_of_each_of_several_detectors_are_recorded(bench):
    box = bench(seconds_after=0.1)
    node = box.probe.node
    publishers = [
        node.create_publisher(FailureScore, f'safe/{name}/score', RELIABLE) for name in ('a', 'b')
    ]
    box.probe.spin_until(
        lambda: all(publisher.get_subscription_count() for publisher in publishers),
        'the black box listens to the scores of two detectors',
    )
    for step in range(3):
        for publisher in publishers:
            publisher.publish(FailureScore(episode_id='e', step=step))
    box.spin(0.2)
    box.alarm('e')
    (file,) = box.until_written(1)
    found = content_of(file)
    for name in ('a', 'b'):
        scores = [deserialize_message(d, FailureScore) for _, d in found[f'/safe/{name}/score']]
        assert [score.step for score in scores] == [0, 1, 2]
    assert len(found['/safe/alarm']) >= 2


def test_garbage_on_the_topics_is_recorded_and_does_not_end_the_node(bench, tmp_path):
    box = bench(seconds_after=0.1)
    publisher = box.probe._steps
    publisher.publish(b'\x00\x01\x00\x00')
    publisher.publish(b'\x00\x01\x00\x00' + b'\xff' * 40)
    publisher.publish(os.urandom(200))
    box.spin(0.3)
    box.alarm('e')
    (file,) = box.until_written(1)
    assert len(content_of(file)['/vla/policy_step']) == 3
    box.until_says(DiagnosticStatus.WARN, '3 messages could not be read')


def test_scores_that_are_too_many_are_said(bench):
    box = bench()
    node = box.probe.node
    for number in range(MOST_TOPICS):
        node.create_publisher(FailureScore, f'safe/detector{number}/score', RELIABLE)
    box.probe.spin_until(
        lambda: box.status is not None and 'detectors are not recorded' in box.status.message,
        'it is diagnosed',
    )
    assert f'at most {MOST_TOPICS} topics' in box.status.message
