# SPDX-License-Identifier: Apache-2.0
"""The monitor node as a robot meets it: its own process, fed good and bad messages over DDS."""

import dataclasses
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from probe import Probe, suspend
from rclpy.parameter import Parameter
from scripted_episodes import make_step, scripted

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.nodes.monitor_node import MonitorNode
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from safe_msgs.srv import LoadDetector
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.ros.parameters import ParameterError

WIDTH = 128


@pytest.fixture
def alarming(rollouts, mlp_folder):
    """A rollout with an alarm after at least two quiet steps, and the step of its alarm."""
    loaded = load_detector(mlp_folder)
    threshold = loaded.band.at(0.2)
    for rollout in rollouts:
        if rollout.task not in loaded.known_tasks:
            continue
        step = threshold.first_crossing(loaded.detector.score(rollout))
        if step is not None and 2 <= step < len(rollout) - 3:
            return rollout, step
    pytest.fail('no rollout of the shipped set alarms late enough for this test')


def states(alarms):
    return [a.state for a in alarms]


def test_an_alarm_is_latched_advises_to_stop_and_ends_with_the_episode(
    probe, run_monitor, mlp_folder, alarming
):
    rollout, alarm_step = alarming
    run_monitor(detector_folder=mlp_folder, warning_alpha=0.2)
    probe.wait_until_active()
    probe.start(rollout.episode_id)
    for t in range(alarm_step + 3):
        score = probe.step(rollout.step(t))
        assert score.alarm == (t >= alarm_step)
        assert score.margin == pytest.approx(score.score - score.threshold, abs=1e-6)
        given = load_detector(mlp_folder).probability_at(score.score, t)
        assert score.probability == pytest.approx(given, abs=1e-4)
        assert 0 < score.latency < 1
    probe.spin_until(lambda: probe.stops[-1], 'safe/stop is true')
    alarm = probe.alarms[-1]
    assert (alarm.state, alarm.step, alarm.advice) == (
        FailureAlarm.STATE_ALARM,
        alarm_step,
        FailureAlarm.ADVICE_STOP,
    )
    assert alarm.episode_id == rollout.episode_id
    assert 'is above the threshold' in alarm.reason
    probe.spin_until(
        lambda: probe.status and probe.status.level == DiagnosticStatus.ERROR,
        'diagnostics show the alarm',
    )
    probe.end(rollout.episode_id)
    probe.spin_until(lambda: not probe.stops[-1], 'safe/stop is released')
    expected = [FailureAlarm.STATE_NOMINAL, FailureAlarm.STATE_ALARM, FailureAlarm.STATE_UNKNOWN]
    assert states(probe.alarms)[-3:] == expected


def test_the_alarm_reaches_a_supervisor_that_joins_late(
    probe, run_monitor, mlp_folder, alarming, own_domain
):
    rollout, alarm_step = alarming
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    for t in range(alarm_step + 1):
        probe.step(rollout.step(t))
    late = Probe()
    try:
        late.spin_until(lambda: late.alarms, 'the latched alarm arrives')
        assert late.alarms[0].state == FailureAlarm.STATE_ALARM
        assert late.alarms[0].step == alarm_step
    finally:
        late.close()


def test_debounce_needs_k_of_n_and_reset_clears_the_alarm(probe, run_monitor, mlp_folder, alarming):
    rollout, alarm_step = alarming
    run_monitor(detector_folder=mlp_folder, alarm_k=2, alarm_n=2, alarm_advice='slow')
    probe.wait_until_active()
    for t in range(alarm_step + 1):
        score = probe.step(rollout.step(t))
    assert score.state == FailureScore.STATE_WARNING
    loud = rollout.step(alarm_step)
    loud.step = alarm_step + 1
    assert probe.step(loud).state == FailureScore.STATE_ALARM
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_ALARM, 'the alarm arrives'
    )
    assert probe.alarms[-1].advice == FailureAlarm.ADVICE_SLOW
    assert not probe.stops[-1]
    response = probe.reset()
    assert response.success
    assert 'ALARM' in response.message
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_UNKNOWN, 'the alarm is cleared'
    )


@pytest.mark.parametrize(
    ('break_step', 'problem'),
    [
        (lambda s: setattr(s, 'features', np.full(WIDTH, np.nan, np.float32)), 'NaN'),
        (lambda s: setattr(s, 'features', np.zeros(WIDTH + 1, np.float32)), r'(129,)'),
        (lambda s: setattr(s, 'feature_name', 'other[token=mean]'), 'other[token=mean]'),
    ],
    ids=['nan', 'width', 'pooling'],
)
def test_a_step_that_cannot_be_scored_is_invalid_and_the_node_lives_on(
    probe, run_monitor, mlp_folder, break_step, problem, quiet
):
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL
    bad = quiet(1)
    break_step(bad)
    score = probe.step(bad)
    assert score.state == FailureScore.STATE_INVALID
    assert np.isnan(score.score)
    probe.spin_until(
        lambda: probe.status and probe.status.level == DiagnosticStatus.ERROR,
        'the problem is diagnosed',
    )
    assert problem in probe.facts().get('last problem', '')
    probe.spin_until(lambda: probe.stops[-1], 'a blind monitor asks to stop')
    # The history is broken: the rest of the episode stays invalid, the next one is scored again.
    assert probe.step(quiet(2)).state == FailureScore.STATE_INVALID
    probe.end('e')
    assert probe.step(quiet(0, 'next')).state == FailureScore.STATE_NOMINAL


def test_actions_in_another_space_are_invalid_and_both_names_are_diagnosed(
    probe, run_monitor, tmp_path
):
    folder = dataclasses.replace(scripted(), action_space='robot').save(tmp_path / 'detector')
    run_monitor(detector_folder=folder)
    probe.wait_until_active()
    assert probe.step(make_step(0, action_space='robot')).state == FailureScore.STATE_NOMINAL
    score = probe.step(make_step(1, action_space='normalized'))
    assert score.state == FailureScore.STATE_INVALID
    assert np.isnan(score.score)
    probe.spin_until(
        lambda: 'action' in probe.facts().get('last problem', ''), 'the problem is diagnosed'
    )
    problem = probe.facts()['last problem']
    assert "space 'normalized'" in problem and "space 'robot'" in problem
    assert probe.step(make_step(0, episode='b')).state == FailureScore.STATE_NOMINAL


def test_a_message_that_lies_about_its_size_is_invalid(probe, run_monitor, mlp_folder, quiet):
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    message = step_to_message(quiet(0))
    message.features.shape = [WIDTH * 1000]
    probe.publish(message)
    probe.spin_until(lambda: probe.scores, 'the message is answered')
    assert probe.scores[0].state == FailureScore.STATE_INVALID
    probe.spin_until(
        lambda: 'bytes' in probe.facts().get('last problem', ''), 'the size is diagnosed'
    )


def test_missing_steps_make_the_rest_of_the_episode_invalid_unless_allowed(
    probe, run_monitor, mlp_folder, quiet
):
    run_monitor(detector_folder=mlp_folder, max_missing_steps=1)
    probe.wait_until_active()
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL
    assert probe.step(quiet(2)).state == FailureScore.STATE_NOMINAL
    assert probe.step(quiet(5)).state == FailureScore.STATE_INVALID


def test_a_repeated_step_is_ignored_and_said(probe, run_monitor, mlp_folder, quiet):
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    probe.step(quiet(0))
    probe.step(quiet(1))
    probe.publish(step_to_message(quiet(1)))
    # A sentinel: whatever answers next belongs to step 2, so the repetition published nothing.
    assert probe.step(quiet(2)).step == 2
    assert [s.step for s in probe.scores] == [0, 1, 2]
    probe.spin_until(lambda: '1 step was ignored' in probe.status.message, 'it is diagnosed')
    assert probe.status.level == DiagnosticStatus.WARN
    assert probe.facts()['steps repeated'] == '1'


def test_a_late_start_does_not_restart_the_episode(probe, run_monitor, lstm_folder, rollouts):
    rollout = rollouts[3]
    loaded = load_detector(lstm_folder)
    offline = loaded.detector.score(rollout)
    run_monitor(detector_folder=lstm_folder)
    probe.wait_until_active()
    for t in range(4):
        score = probe.step(rollout.step(t))
        probe.start(rollout.episode_id)
        probe.executor.spin_once(timeout_sec=0.1)
    assert score.score == pytest.approx(offline[3], abs=1e-5)
    assert score.probability == pytest.approx(loaded.probability_at(offline[3], 3), abs=1e-5)


@pytest.mark.parametrize('with_end', [True, False], ids=['END', 'no END'])
def test_an_alarm_in_steps_that_the_next_start_overtakes_is_not_lost(
    probe, run_monitor, mlp_folder, alarming, quiet, with_end
):
    rollout, alarm_step = alarming
    monitor = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    probe.start(rollout.episode_id)
    probe.step(rollout.step(0))
    suspend(monitor.pid)
    try:
        # All of them wait together, in two topics.
        for t in range(1, alarm_step + 1):
            probe.publish(step_to_message(rollout.step(t)))
        if with_end:
            probe.event(rollout.episode_id, EpisodeEvent.KIND_END)
        probe.start('next', 'pour')
        probe.publish(step_to_message(quiet(0, 'next')))
        # DDS must have delivered them.
        probe.spin_for(0.5)
    finally:
        os.kill(monitor.pid, signal.SIGCONT)
    probe.spin_until(lambda: probe.scores[-1].episode_id == 'next', 'the next episode is scored')
    assert [s.step for s in probe.scores] == [*range(alarm_step + 1), 0]
    assert [s.alarm for s in probe.scores][-2:] == [True, False]
    assert FailureScore.STATE_INVALID not in [s.state for s in probe.scores]
    # safe/alarm has a depth of 1: the ALARM may be replaced before the probe reads it.
    probe.spin_until(lambda: probe.alarms[-1].episode_id == 'next', 'the alarm has ended')


def test_stale_when_features_stop_and_never_nominal_then(probe, run_monitor, mlp_folder, quiet):
    run_monitor(detector_folder=mlp_folder, stale_after=0.5)
    probe.wait_until_active()
    probe.step(quiet(0))
    probe.spin_until(lambda: not probe.stops[-1], 'safe/stop is false')
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_STALE, 'the monitor says STALE'
    )
    assert probe.alarms[-1].advice == FailureAlarm.ADVICE_STOP
    probe.spin_until(lambda: probe.stops[-1], 'safe/stop is true while stale')
    assert probe.step(quiet(1)).state == FailureScore.STATE_NOMINAL


def test_past_the_band_nothing_is_called_nominal(probe, run_monitor, mlp_folder, quiet):
    length = load_detector(mlp_folder).band.length
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    for t in range(length):
        score = probe.step(quiet(t))
    assert score.state != FailureScore.STATE_INVALID
    score = probe.step(quiet(length))
    assert score.state in (FailureScore.STATE_INVALID, FailureScore.STATE_ALARM)
    assert np.isnan(score.threshold)
    probe.spin_until(
        lambda: 'number of steps of the band' in probe.facts().get('last problem', ''),
        'it is diagnosed',
    )


def test_a_damaged_folder_is_diagnosed_and_another_one_can_be_loaded(
    probe, run_monitor, mlp_folder, lstm_folder, tmp_path, quiet
):
    damaged = shutil.copytree(mlp_folder, tmp_path / 'damaged')
    weights = damaged / 'weights.safetensors'
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    process = run_monitor(detector_folder=damaged)
    probe.spin_until(
        lambda: probe.status is not None and probe.status.level == DiagnosticStatus.ERROR,
        'the failure is diagnosed',
    )
    assert str(weights) in probe.status.message
    assert 'sha256' in probe.status.message
    assert process.exit_status is None
    refused = probe.load_detector(damaged)
    assert not refused.success
    assert str(weights) in refused.message
    accepted = probe.load_detector(mlp_folder)
    assert accepted.success, accepted.message
    probe.wait_until_active()
    assert probe.step(quiet(0)).detector == 'safe_mlp'
    # While an episode runs, a new detector waits for the next one.
    waiting = probe.load_detector(lstm_folder)
    assert waiting.success
    assert 'next episode' in waiting.message
    assert probe.step(quiet(1)).detector == 'safe_mlp'
    probe.end('e')
    assert probe.step(quiet(0, 'next')).detector == 'safe_lstm'


def test_an_alpha_that_was_not_calibrated_is_refused_with_the_list(probe, run_monitor, mlp_folder):
    run_monitor(detector_folder=mlp_folder, alpha=0.123)
    probe.spin_until(
        lambda: probe.status is not None and probe.status.level == DiagnosticStatus.ERROR,
        'the failure is diagnosed',
    )
    assert '0.123' in probe.status.message
    assert '0.2' in probe.status.message


def test_no_service_call_ends_the_node(probe, run_monitor, mlp_folder, quiet):
    process = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    refused = probe.load_detector('x' * 300)
    assert not refused.success
    assert 'cannot be read' in refused.message
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL
    assert process.exit_status is None


def test_a_repeated_first_step_clears_no_alarm(probe, run_monitor, mlp_folder, alarming):
    rollout, alarm_step = alarming
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    for t in range(alarm_step + 1):
        score = probe.step(rollout.step(t))
    assert score.alarm
    probe.publish(step_to_message(rollout.step(0)))
    # A sentinel: the next answer belongs to the next step, and the alarm is still there.
    score = probe.step(rollout.step(alarm_step + 1))
    assert score.step == alarm_step + 1
    assert score.alarm


def test_without_autostart_a_loaded_detector_waits_to_be_configured(probe, run_monitor, mlp_folder):
    run_monitor(autostart=False)
    answer = probe.load_detector(mlp_folder)
    assert answer.success
    assert 'when the monitor is configured' in answer.message
    probe.spin_until(lambda: probe.status is not None, 'diagnostics come')
    assert probe.status.message == 'not configured'


def test_a_detector_without_torch_is_active_soon_and_takes_little_memory(
    probe, run_monitor, mlp_folder, quiet, tmp_path
):
    clock = make_detector('clock')
    clock.load_state({}, WIDTH)
    loaded = load_detector(mlp_folder)
    folder = dataclasses.replace(loaded, detector=clock).save(tmp_path / 'clock')
    process = run_monitor(detector_folder=folder)
    probe.wait_until_active()
    times = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()[11:13]
    # Of the processor, not of the wall: other tests may run beside this one.
    assert sum(map(int, times)) / os.sysconf('SC_CLK_TCK') < 1.5
    assert probe.step(quiet(0)).detector == 'clock'
    status = Path(f'/proc/{process.pid}/status').read_text()
    assert int(status.split('VmRSS:')[1].split()[0]) < 150 * 1024, 'kB'
    assert 'libtorch' not in Path(f'/proc/{process.pid}/maps').read_text()


def test_an_error_while_threads_are_limited_is_the_answer_of_the_service(
    probe, mlp_folder, monkeypatch
):
    def failing(count):
        raise OSError('libopenblas.so (deleted)')

    node = MonitorNode(context=probe.context)
    try:
        monkeypatch.setattr('safe_monitor_node.nodes.monitor_node.limit_threads', failing)
        request = LoadDetector.Request(folder=str(mlp_folder))
        answer = node.answers.load_detector(request, LoadDetector.Response())
        assert not answer.success
        assert 'libopenblas' in answer.message
        # Without a known BLAS library, the parameter has no effect on NumPy: a warning, no error.
        monkeypatch.setattr('safe_monitor_node.nodes.monitor_node.limit_threads', lambda count: 0)
        assert node.answers.load_detector(request, LoadDetector.Response()).success
    finally:
        node.destroy_node()


def test_the_device_in_diagnostics_is_the_robot(probe):
    node = MonitorNode(context=probe.context, namespace='robot1')
    try:
        published = []
        node.outputs._diagnostics = SimpleNamespace(publish=published.append)
        node.outputs.publish_diagnostics()
        assert published[0].status[0].hardware_id == 'robot1'
    finally:
        node.destroy_node()


def test_the_old_name_of_a_parameter_is_refused_with_the_new_one(probe):
    with pytest.raises(ParameterError, match=r'adaptation_rate.*write adaptation_step:=0\.05'):
        MonitorNode(
            context=probe.context,
            parameter_overrides=[Parameter('adaptation_rate', value=0.05)],
        )


def test_the_fault_of_a_detector_is_logged_once_with_its_traceback(
    probe, mlp_folder, quiet, capfd, monkeypatch
):
    node = MonitorNode(
        context=probe.context,
        parameter_overrides=[Parameter('detector_folder', value=str(mlp_folder))],
    )
    info = {'publication_sequence_number': 1, 'source_timestamp': 0}
    try:
        node.autostart()
        # Every monitor of this process has this detector: the weights come back at the end.
        first = node.session.monitor.calibrated.detector.network_.layers[0]
        bad = torch.nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        monkeypatch.setattr(first, 'weight', bad)
        node._on_step(step_to_message(quiet(0)), info)
        node._on_step(step_to_message(quiet(1)), info)
        assert node.session.monitor.counts.invalid == 2
        assert 'detector safe_mlp failed with RuntimeError' in node.session.first_problem
    finally:
        node.destroy_node()
    assert capfd.readouterr().err.count('Traceback (most recent call last)') == 1


# --- bands of tasks, and labels


@pytest.fixture
def task_folder(mlp_folder, tmp_path):
    """The detector of ``mlp_folder`` with a band of its own, one higher, for the task 'pour'."""
    loaded = load_detector(mlp_folder)
    shape = dataclasses.replace(loaded.band.shape, center=loaded.band.shape.center + 1.0)
    own = dataclasses.replace(loaded.band, upper=loaded.band.upper + 1.0, shape=shape)
    band = dataclasses.replace(loaded.band, tasks={'pour': own})
    return dataclasses.replace(loaded, band=band).save(tmp_path / 'with_tasks')


class Expected:
    """The thresholds that labels must lead to, made from whole rollouts."""

    def __init__(self, folder, adaptation_step):
        self._loaded = load_detector(folder)
        self.band = AdaptiveBand(self._loaded.band, 0.2, adaptation_step)

    def at(self, step):
        return pytest.approx(self.band.thresholds()[0].at(step), rel=1e-6)

    def update(self, rollout, steps, alarmed):
        scores = self._loaded.detector.score(rollout)[:steps]
        return self.band.observe('', self.band.nonconformity('', scores), alarmed)


def play(probe, rollout, episode, steps, outcome=EpisodeEvent.OUTCOME_UNKNOWN):
    """Play the first steps of a rollout as an episode with its END; returns its scores."""
    scores = []
    for t in range(steps):
        step = rollout.step(t)
        step.episode_id = episode
        scores.append(probe.step(step))
    probe.end(episode, outcome)
    return scores


def test_an_episode_is_held_against_the_band_of_its_task(probe, run_monitor, task_folder, quiet):
    band = load_detector(task_folder).band
    run_monitor(detector_folder=task_folder)
    probe.wait_until_active()
    assert probe.step(quiet(0)).threshold == pytest.approx(band.at(0.2).at(0))
    probe.start('e', 'pour')
    probe.spin_until(lambda: probe.facts().get('task') == 'pour', 'the late START is handled')
    assert probe.step(quiet(1)).threshold == pytest.approx(band.at(0.2, 'pour').at(1))
    assert probe.facts()['band'] == "the band of task 'pour'"
    probe.end('e')
    instructed = quiet(0, 'next')
    instructed.instruction = 'pour'
    assert probe.step(instructed).threshold == pytest.approx(band.at(0.2, 'pour').at(0))
    assert probe.step(quiet(0, 'other')).threshold == pytest.approx(band.at(0.2).at(0))


def test_labels_move_the_threshold_of_the_next_episode_once_each(
    probe, run_monitor, mlp_folder, alarming, quiet
):
    rollout, alarm_step = alarming
    expected = Expected(mlp_folder, 0.05)
    run_monitor(detector_folder=mlp_folder, adaptation_step=0.05)
    probe.wait_until_active()
    assert play(probe, rollout, 'a', alarm_step + 1)[-1].alarm
    events = probe.listen_to_events()

    response = probe.label_episode('', EpisodeEvent.OUTCOME_SUCCESS)
    assert response.success
    assert "'a', outcome a success: the thresholds are updated" in response.message
    observation = expected.update(rollout, alarm_step + 1, alarmed=True)
    assert probe.step(quiet(0, 'b')).threshold == expected.at(0)

    # Withdrawn by an event, which moves no threshold while an episode runs.
    probe.event('a', EpisodeEvent.KIND_LABEL, EpisodeEvent.OUTCOME_FAILURE)
    facts = 'adaptation of the band of all tasks'
    probe.spin_until(
        lambda: '0 of 0 labelled' in probe.facts().get(facts, ''), 'the label is withdrawn'
    )
    assert probe.step(quiet(1, 'b')).threshold == expected.at(1)
    expected.band.undo('', observation)
    probe.end('b')
    assert probe.step(quiet(0, 'c')).threshold == expected.at(0)
    probe.end('c')

    # Everything that the service published has come back by now, and had no effect once more.
    probe.event('a', EpisodeEvent.KIND_LABEL, EpisodeEvent.OUTCOME_SUCCESS)
    expected.update(rollout, alarm_step + 1, alarmed=True)
    probe.spin_until(
        lambda: '1 of 1 labelled' in probe.facts().get(facts, ''), 'the label has its effect'
    )
    assert 'realised 1, promised 0.2' in probe.facts()[facts]
    assert probe.step(quiet(0, 'd')).threshold == expected.at(0)
    (own,) = [event for event in events if 'label_episode' in event.reason]
    assert (own.episode_id, own.kind, own.outcome) == ('a', 2, EpisodeEvent.OUTCOME_SUCCESS)
    assert own.header.stamp.sec > 0


def test_an_own_label_that_comes_back_after_another_one_counts_for_nothing(
    probe, mlp_folder, quiet
):
    parameters = {'detector_folder': str(mlp_folder), 'adaptation_step': 0.05}
    node = MonitorNode(
        context=probe.context,
        parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()],
    )

    def take(event):
        node._on_episode(event, {'source_timestamp': time.time_ns()})

    try:
        node.autostart()
        node._on_step(
            step_to_message(quiet(0)), {'publication_sequence_number': 1, 'source_timestamp': 0}
        )
        published = []
        node.answers._labels = SimpleNamespace(publish=published.append)
        node.answers._label('', EpisodeEvent.OUTCOME_SUCCESS)
        (own,) = published
        end = EpisodeEvent(episode_id='e', kind=EpisodeEvent.KIND_END)
        take(end)
        node.session.finish_episode()
        moving = node.session.monitor.adaptation.of('')
        assert moving.successes == 1
        failure = EpisodeEvent.OUTCOME_FAILURE
        take(EpisodeEvent(episode_id='e', kind=EpisodeEvent.KIND_LABEL, outcome=failure))
        take(own)
        assert moving.successes == 0, 'the latest label counts'
        take(own)
        assert moving.successes == 1, 'played from a bag it is a label like any other'
        take(EpisodeEvent(episode_id='e', kind=EpisodeEvent.KIND_END, outcome=9))
        take(end)
        assert moving.successes == 1, 'an END that says nothing withdraws no label'
    finally:
        node.destroy_node()


@pytest.mark.slow
def test_updates_survive_a_restart_and_a_damaged_file_is_refused(
    probe, run_monitor, mlp_folder, alarming, quiet, tmp_path
):
    rollout, alarm_step = alarming
    file = tmp_path / 'updates.json'
    parameters = {
        'detector_folder': mlp_folder,
        'adaptation_step': 0.05,
        'adaptation_file': str(file),
    }
    first = run_monitor(**parameters)
    probe.wait_until_active()
    play(probe, rollout, 'a', alarm_step + 1, EpisodeEvent.OUTCOME_SUCCESS)
    expected = Expected(mlp_folder, 0.05)
    expected.update(rollout, alarm_step + 1, alarmed=True)
    assert probe.step(quiet(0, 'b')).threshold == expected.at(0)
    assert '"successes": 1' in file.read_text()
    first.stop()

    probe.stops.clear()
    second = run_monitor(**parameters)
    probe.wait_until_active()
    assert probe.step(quiet(0, 'c')).threshold == expected.at(0)
    second.stop()

    data = bytearray(file.read_bytes())
    data[data.index(b'"level"') + 10] ^= 1
    file.write_bytes(data)
    third = run_monitor(**parameters)
    probe.spin_until(
        lambda: str(file) in probe.status.message and probe.status.level == DiagnosticStatus.ERROR,
        'the damaged file is diagnosed',
    )
    assert 'move the file away' in probe.status.message
    assert third.exit_status is None
    assert file.read_bytes() == data, 'what was refused is not touched'


def test_another_detector_adapts_anew_and_leaves_the_file_alone(
    probe, run_monitor, mlp_folder, lstm_folder, quiet, tmp_path
):
    file = tmp_path / 'updates.json'
    run_monitor(detector_folder=mlp_folder, adaptation_step=0.05, adaptation_file=str(file))
    probe.wait_until_active()
    probe.step(quiet(0, 'a'))
    probe.end('a')
    probe.label_episode('a', EpisodeEvent.OUTCOME_SUCCESS)
    before = file.read_bytes()
    assert b'"successes": 1' in before
    answer = probe.load_detector(lstm_folder)
    assert answer.success
    assert 'starts from the calibrated thresholds and is only in memory' in answer.message
    probe.step(quiet(0, 'b'))
    probe.end('b')
    answer = probe.label_episode('', EpisodeEvent.OUTCOME_SUCCESS)
    assert 'thresholds are updated' in answer.message
    assert 'not among the last' in probe.label_episode('a', EpisodeEvent.OUTCOME_SUCCESS).message
    assert file.read_bytes() == before
    message = probe.load_detector(mlp_folder).message
    assert 'its adaptation starts from the calibrated thresholds' in message
    assert 'only in memory' not in message
    probe.spin_until(lambda: b'"successes": 0' in file.read_bytes(), 'the file is started anew')


def test_labels_are_published_without_adaptation_and_wrong_ones_refused(
    probe, run_monitor, mlp_folder, quiet
):
    process = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    nothing = probe.label_episode('', EpisodeEvent.OUTCOME_SUCCESS)
    assert not nothing.success
    assert (
        'episode_id: expected the id of an episode, because no episode has run' in nothing.message
    )
    wrong = probe.label_episode('e', 9)
    assert not wrong.success
    assert 'found 9' in wrong.message
    events = probe.listen_to_events()
    earlier = probe.label_episode('recorded earlier', EpisodeEvent.OUTCOME_FAILURE)
    assert earlier.success
    assert 'adaptation_step is 0' in earlier.message
    probe.spin_until(lambda: events, 'the label is published')
    assert [event.episode_id for event in events] == ['recorded earlier']
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL
    assert probe.label_episode('', EpisodeEvent.OUTCOME_UNKNOWN).message.startswith("episode 'e'")
    assert process.exit_status is None


def test_a_file_without_adaptation_is_refused(probe, run_monitor, mlp_folder, tmp_path):
    file = str(tmp_path / 'updates.json')
    run_monitor(detector_folder=mlp_folder, adaptation_file=file, good_runs=0)
    probe.spin_until(
        lambda: probe.status is not None and probe.status.level == DiagnosticStatus.ERROR,
        'the failure is diagnosed',
    )
    assert 'adaptation_step is 0' in probe.status.message
    answer = probe.label_episode('e', EpisodeEvent.OUTCOME_SUCCESS)
    assert answer.success
    assert 'published, without an effect' in answer.message
