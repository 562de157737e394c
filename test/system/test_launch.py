# SPDX-License-Identifier: Apache-2.0
"""The launch files under ``ros2 launch``: the graph comes up, and ends by itself or on Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from probe import Probe
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters
from shared_files import DATA

from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import FailureScore
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire import StepSender

LAUNCH = Path(__file__).parents[2] / 'launch'
TIMEOUT = 60.0
"""Longest time for what takes a few seconds on an idle machine [s]."""

# `launch` itself proves nothing: the folder of that name in the checkout can be imported too.
needs_launch = pytest.mark.skipif(
    any(find_spec(name) is None for name in ('launch_ros', 'ros2cli', 'ros2launch')),
    reason='launch_ros or ros2launch is missing: they come with a ROS 2 distribution, not PyPI',
)


class Launched:
    """``ros2 launch`` in a session of its own, at a terminal of its own."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        count = len(list(folder.glob('ros2_launch*.log')))
        self._output = folder / f'ros2_launch{count}.log'
        self._keyboard, terminal = os.openpty()
        with self._output.open('w') as output:
            self._popen = subprocess.Popen(
                [sys.executable, '-c', 'import sys; from ros2cli.cli import main; sys.exit(main())']
                + ['launch', *arguments],
                cwd=folder,
                stdin=terminal,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The first process of a session takes stdin as the terminal that Ctrl-C comes from.
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                env={**os.environ, 'ROS_LOG_DIR': str(folder / 'ros'), 'OMP_NUM_THREADS': '1'},
            )
        os.close(terminal)

    @property
    def output(self) -> str:
        return self._output.read_text(errors='replace')

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def wait(self) -> int:
        """Return the exit status once the launch has ended, with everything that it had started."""
        try:
            status = self._popen.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            pytest.fail(f'still running after {TIMEOUT:g} s')
        assert not self._group_lives(), f'processes were left behind:\n{self.output}'
        return status

    def press_ctrl_c(self) -> None:
        """Let the terminal interrupt every process of the group."""
        os.write(self._keyboard, b'\x03')

    def interrupt_only_launch(self) -> None:
        """Send SIGINT to the launch process alone, as a process manager may."""
        self._popen.send_signal(signal.SIGINT)

    def interrupt_group(self) -> None:
        """Send SIGINT to every process of the group, as ``timeout`` does."""
        self.signal_group(signal.SIGINT)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group."""
        os.killpg(self._popen.pid, number)

    @property
    def all_ended(self) -> bool:
        """Whether the launch has ended, and every process that it had started."""
        return self.ended and not self._group_lives()

    def close(self) -> None:
        """Kill what is left."""
        if self._group_lives():
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        os.close(self._keyboard)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._popen.pid, 0)
        except ProcessLookupError:
            return False
        return True


@pytest.fixture
def ros2_launch(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Run ``ros2 launch`` in an empty folder; nothing of it outlives the test."""
    started: list[Launched] = []

    def start(*arguments: str) -> Launched:
        started.append(Launched(list(arguments), tmp_path))
        return started[-1]

    yield start
    for launched in started:
        launched.close()
        print(launched.output)  # pytest shows it where the test failed


def demo_arguments(rollouts: Path, detector: Path, **others: object) -> list[str]:
    """Arguments of demo.launch.py for rollouts and a detector that are there."""
    named = {'rollout_set': rollouts, 'detector_folder': detector, **others}
    return [f'{name}:={value}' for name, value in named.items()]


def assert_ended_cleanly(launched: Launched, *processes: str) -> None:
    """Each process ended with status 0 and none left a traceback."""
    for process in processes:
        assert f'{process}]: process has finished cleanly' in launched.output
    assert 'Traceback' not in launched.output
    assert 'escalating' not in launched.output


# --- the demo


@needs_launch
@pytest.mark.parametrize(
    'launch_file', [('safe_bringup', 'demo.launch.py'), (str(LAUNCH / 'demo.launch.py'),)]
)
def test_demo_plays_to_its_end_and_takes_the_graph_down(
    launch_file: tuple[str, ...],
    ros2_launch: Callable[..., Launched],
    probe: Probe,
    rollouts: RolloutSet,
    rollout_folder: Path,
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(
        *launch_file, *demo_arguments(rollout_folder, mlp_folder, limit=3, frequency=20)
    )
    probe.spin_until(lambda: launched.ended, 'everything was played', TIMEOUT)
    assert launched.wait() == 0
    for _ in range(50):  # what had arrived by then
        probe.executor.spin_once(timeout_sec=0.01)
    assert {s.episode_id for s in probe.scores} <= set(rollouts.episode_ids[:3])
    last = [s.step for s in probe.scores if s.episode_id == rollouts.episode_ids[2]]
    assert last == list(range(rollouts.lengths[2]))
    assert_ended_cleanly(launched, 'monitor-1', 'replay-2')


@needs_launch
@pytest.mark.parametrize(
    ('options', 'interrupt'),
    [
        pytest.param([], Launched.press_ctrl_c, id='ctrl-c'),
        # Not at a terminal, the launch process passes the interrupt on: nodes may get it twice.
        pytest.param(['--noninteractive'], Launched.interrupt_only_launch, id='launch only'),
        pytest.param(['--noninteractive'], Launched.interrupt_group, id='twice'),
    ],
)
def test_demo_comes_down_cleanly_on_an_interrupt(
    options: list[str],
    interrupt: Callable[[Launched], None],
    ros2_launch: Callable[..., Launched],
    probe: Probe,
    rollout_folder: Path,
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(
        *options, 'safe_bringup', 'demo.launch.py', *demo_arguments(rollout_folder, mlp_folder)
    )
    probe.spin_until(lambda: probe.scores, 'scores flow', TIMEOUT)
    interrupt(launched)
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'monitor-1', 'replay-2')


@needs_launch
def test_demo_names_the_failed_process_and_takes_the_graph_down(
    ros2_launch: Callable[..., Launched], rollout_folder: Path, mlp_folder: Path
) -> None:
    launched = ros2_launch(
        'safe_bringup',
        'demo.launch.py',
        *demo_arguments(rollout_folder, mlp_folder, tasks='no-such-task'),
    )
    assert launched.wait() == 1
    assert "found 'no-such-task'" in launched.output
    assert 'process replay-2 ended with status 1 before the end of the replay' in launched.output


@needs_launch
@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('limit:=many', "limit: expected a whole number, found 'many'"),
        (
            'detector_folder:=absent',
            'detector_folder: expected a folder with the file detector.json, found no',
        ),
        (
            'rollout_set:=absent',
            'rollout_set: expected a folder with the file rollout_set.json, found no',
        ),
        (
            'replay_params:=absent.yaml',
            'replay_params: expected a parameter file, found no file absent.yaml',
        ),
        ('log_level:=loud', 'Argument "log_level" provided value "loud" is not valid'),
    ],
)
def test_demo_refuses_a_wrong_argument_by_its_name_and_starts_nothing(
    argument: str,
    message: str,
    ros2_launch: Callable[..., Launched],
    rollout_folder: Path,
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(
        'safe_bringup', 'demo.launch.py', *demo_arguments(rollout_folder, mlp_folder), argument
    )
    assert launched.wait() == 1
    assert message in launched.output
    assert 'process started' not in launched.output


@needs_launch
@pytest.mark.slow
def test_demo_makes_what_is_missing_and_plays_tasks_never_trained_on(
    ros2_launch: Callable[..., Launched],
    probe: Probe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_fewer_recordings(tmp_path / 'data')
    monkeypatch.setenv('SAFE_DEMO_DATA', str(tmp_path / 'data'))
    launched = ros2_launch('safe_bringup', 'demo.launch.py', 'limit:=4', 'frequency:=20')
    probe.spin_until(lambda: launched.ended, 'everything was made and played', 3 * TIMEOUT)
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'prepare-1', 'monitor-2', 'replay-3')
    made = RolloutSet.open(tmp_path / 'demo_out' / 'rollouts')
    task_of = dict(zip(made.episode_ids, made.tasks, strict=True))
    unseen = load_detector(tmp_path / 'demo_out' / 'detector').provenance['unseen_tasks']
    assert probe.scores
    assert {task_of[s.episode_id] for s in probe.scores} <= set(unseen)


def write_fewer_recordings(folder: Path) -> None:
    """Write the recordings that the demo starts from, with every fifth of the pooled rollouts."""
    shutil.copytree(DATA / 'openvla_dump', folder / 'openvla_dump')
    with np.load(DATA / 'miniature_disturbed.npz', allow_pickle=False) as archive:
        arrays = dict(archive)
    lengths = np.diff(arrays['offsets'])
    kept = arrays['episode_idx'] % 5 == 0
    kept_steps = np.repeat(kept, lengths)
    for name, array in arrays.items():
        if array.shape[:1] == kept.shape:
            arrays[name] = array[kept]
        elif array.shape[:1] == kept_steps.shape:
            arrays[name] = array[kept_steps]
    arrays['offsets'] = np.concatenate([[0], np.cumsum(lengths[kept])])
    np.savez(folder / 'miniature_disturbed.npz', **arrays)


@needs_launch
def test_demo_says_why_nothing_could_be_made_and_starts_no_node(
    ros2_launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SAFE_DEMO_DATA', str(tmp_path / 'nothing'))
    launched = ros2_launch('safe_bringup', 'demo.launch.py')
    assert launched.wait() == 1
    assert 'expected the file miniature_disturbed.npz, found no such file' in launched.output
    assert 'expected that `demo --prepare` makes a detector folder' in launched.output
    assert re.findall(r'\[(\S+)\]: process started', launched.output) == ['prepare-1']


# --- the monitor alone


@needs_launch
def test_monitor_takes_an_argument_before_its_parameter_file_and_that_before_the_default(
    ros2_launch: Callable[..., Launched], probe: Probe, mlp_folder: Path, tmp_path: Path
) -> None:
    params = {'alpha': 0.3, 'detector_folder': 'absent', 'diagnostics_period': 0.1}
    (tmp_path / 'params.yaml').write_text(
        yaml.safe_dump({'/**/monitor': {'ros__parameters': params}})
    )
    launched = ros2_launch(
        *('safe_bringup', 'monitor.launch.py', 'params_file:=params.yaml', 'namespace:=robot1'),
        f'detector_folder:={mlp_folder}',
    )
    probe.spin_until(
        lambda: probe.status is not None and 'detector' in probe.facts(),
        'the monitor is configured',
        TIMEOUT,
    )
    assert probe.status is not None
    assert probe.status.name.startswith('robot1/monitor')
    assert probe.facts()['alpha (promised false-alarm rate)'] == '0.3'
    assert probe.facts()['detector_folder'] == str(mlp_folder)
    assert probe.node.count_publishers('/robot1/safe/score') == 1
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'monitor-1')


@needs_launch
def test_monitor_waits_unconfigured_where_it_shall_not_start_by_itself(
    ros2_launch: Callable[..., Launched], probe: Probe, mlp_folder: Path
) -> None:
    launched = ros2_launch(
        *('safe_bringup', 'monitor.launch.py', 'autostart:=false'),
        *(f'detector_folder:={mlp_folder}', '--launch-prefix', 'env'),
    )
    probe.spin_until(lambda: probe.status, 'diagnostics come', TIMEOUT)
    assert probe.status is not None
    assert probe.status.message == 'not configured'
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'env-1')


# --- the fleet


@needs_launch
def test_fleet_runs_the_robots_of_its_file_below_its_namespace(
    ros2_launch: Callable[..., Launched],
    probe: Probe,
    mlp_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    robots = [{'namespace': 'left'}, {'namespace': '/right', 'parameters': {'alarm_advice': 'ask'}}]
    (tmp_path / 'robots.yaml').write_text(
        yaml.safe_dump({'parameters': {'detector_folder': str(mlp_folder)}, 'robots': robots})
    )
    launched = ros2_launch(
        *(str(LAUNCH / 'fleet.launch.py'), 'robots_file:=~/robots.yaml'),
        *(f'params_file:={LAUNCH / "params" / "fleet.yaml"}', 'namespace:=hall', 'threads:=2'),
    )
    probe.spin_until(
        lambda: all(
            probe.node.count_publishers(f'{name}/safe/score') == 1
            for name in ('/hall/left', '/right')
        ),
        'both monitors are configured',
        TIMEOUT,
    )
    nodes = {
        f'{place.rstrip("/")}/{name}' for name, place in probe.node.get_node_names_and_namespaces()
    }
    assert {'/hall/fleet', '/hall/left/monitor', '/right/monitor'} <= nodes
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'fleet-1')


@needs_launch
def test_fleet_refuses_a_missing_file_of_robots_and_starts_nothing(
    ros2_launch: Callable[..., Launched],
) -> None:
    launched = ros2_launch(
        str(LAUNCH / 'fleet.launch.py'),
        f'params_file:={LAUNCH / "params" / "fleet.yaml"}',
        'robots_file:=absent.yaml',
    )
    assert launched.wait() == 1
    message = 'argument robots_file: expected a file that lists the robots, found no file absent'
    assert message in launched.output
    assert 'process started' not in launched.output


# --- the bridge


@needs_launch
def test_bridge_and_the_monitors_of_two_sources_come_up_and_down(
    ros2_launch: Callable[..., Launched],
    probe: Probe,
    mlp_folder: Path,
    tmp_path: Path,
    quiet: Callable[..., PolicyStep],
) -> None:
    address = f'unix:{tmp_path}/b.sock'
    launched = ros2_launch(
        *('safe_bringup', 'bridge.launch.py', 'namespace:=robot1', 'sources:=left,right'),
        *(f'listen:={address}', f'detector_folder:={mlp_folder}'),
    )
    scores: list[FailureScore] = []
    probe.node.create_subscription(FailureScore, '/robot1/left/safe/score', scores.append, 100)
    probe.spin_until(
        lambda: (
            probe.node.count_publishers('/robot1/left/safe/score') == 1
            and probe.node.count_publishers('/robot1/right/safe/score') == 1
        ),
        'both monitors are up',
        TIMEOUT,
    )
    first = quiet(0)
    sender = StepSender(
        address,
        source='left',
        feature_name=first.feature_name,
        exec_horizon=first.exec_horizon,
        wait_for_monitor=TIMEOUT,
        strict=True,
    )
    sender.start(task=first.instruction)
    for t in range(3):
        sender.publish(quiet(t).features, quiet(t).actions)
    probe.spin_until(lambda: len(scores) == 3, 'the scores arrive', TIMEOUT)
    assert [s.state for s in scores] == [FailureScore.STATE_NOMINAL] * 3
    sender.close()
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'bridge-1', 'monitor-2', 'monitor-3')


def parameter_of(probe: Probe, node: str, name: str) -> ParameterValue:
    """Return the value of a parameter of a running node."""
    client = probe.node.create_client(GetParameters, f'/{node}/get_parameters')
    assert client.wait_for_service(timeout_sec=10)
    future = client.call_async(GetParameters.Request(names=[name]))
    probe.spin_until(future.done, f'{node} answers')
    return future.result().values[0]


@needs_launch
def test_bridge_alone_takes_its_arguments(
    ros2_launch: Callable[..., Launched], probe: Probe
) -> None:
    launched = ros2_launch(
        *('safe_bringup', 'bridge.launch.py', 'listen:=none', 'episode_from:=gap'),
        *('actions_topic:=/commands', 'exec_horizon:=8'),
    )
    probe.spin_until(
        lambda: probe.facts().get('episode_from') == 'gap', 'the bridge is configured', TIMEOUT
    )
    assert parameter_of(probe, 'bridge', 'exec_horizon').integer_value == 8
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'bridge-1')


# --- the black box


@needs_launch
def test_the_monitor_starts_with_a_black_box_if_it_gets_a_folder(
    ros2_launch: Callable[..., Launched], probe: Probe, mlp_folder: Path, tmp_path: Path
) -> None:
    launched = ros2_launch(
        'safe_bringup',
        'monitor.launch.py',
        f'detector_folder:={mlp_folder}',
        f'black_box_folder:={tmp_path / "alarms"}',
    )
    probe.spin_until(
        lambda: probe.stops and probe.node.count_subscribers('/safe/score') == 2,
        'monitor and black box are active',
        TIMEOUT,
    )
    assert (tmp_path / 'alarms').is_dir()
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'monitor-1', 'black_box-2')


@needs_launch
def test_each_source_of_the_bridge_gets_a_black_box_with_a_folder_of_its_own(
    ros2_launch: Callable[..., Launched], probe: Probe, mlp_folder: Path, tmp_path: Path
) -> None:
    launched = ros2_launch(
        'safe_bringup',
        'bridge.launch.py',
        f'listen:=unix:{tmp_path / "socket"}',
        f'detector_folder:={mlp_folder}',
        'sources:=left,right',
        f'black_box_folder:={tmp_path / "alarms"}',
    )
    probe.spin_until(
        lambda: all(
            probe.node.count_subscribers(f'/{source}/safe/score') == 1
            for source in ('left', 'right')
        ),
        'two black boxes listen',
        TIMEOUT,
    )
    assert {path.name for path in (tmp_path / 'alarms').iterdir()} == {'left', 'right'}
    launched.press_ctrl_c()
    assert launched.wait() == 0
