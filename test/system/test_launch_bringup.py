# SPDX-License-Identifier: Apache-2.0
"""``bringup.launch.py`` and the life cycle of its nodes, under the real ``ros2 launch``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from probe import Probe
from rclpy.qos import QoSProfile
from test_launch import (
    LAUNCH,
    TIMEOUT,
    Launched,
    assert_ended_cleanly,
    needs_launch,
    ros2_launch,  # noqa: F401  a fixture
)

from vla_feature_bridge.ros.qos import (
    ALARM_QOS,
    EPISODE_QOS,
    MARKER_QOS,
    OVERLAY_QOS,
    SCORE_QOS,
    STEP_QOS,
    STOP_QOS,
)
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire import StepSender

Start = Callable[..., Launched]
pytestmark = needs_launch

#: Topics of one robot with everything: type, publishers, QoS that they offer.
GRAPH = {
    'vla/policy_step': ('safe_msgs/msg/PolicyStep', {'bridge'}, STEP_QOS),
    'vla/episode': ('safe_msgs/msg/EpisodeEvent', {'bridge', 'monitor'}, EPISODE_QOS),
    'safe/score': ('safe_msgs/msg/FailureScore', {'monitor'}, SCORE_QOS),
    'safe/alarm': ('safe_msgs/msg/FailureAlarm', {'monitor'}, ALARM_QOS),
    'safe/stop': ('std_msgs/msg/Bool', {'monitor'}, STOP_QOS),
    'safe/markers': ('visualization_msgs/msg/MarkerArray', {'markers'}, MARKER_QOS),
    'safe/overlay': ('sensor_msgs/msg/Image', {'overlay'}, OVERLAY_QOS),
}


def graph_of(probe: Probe, namespace: str) -> dict[str, tuple[str, set[str]]]:
    """Return type and publishers of each topic of the graph that is running."""
    found = {}
    for topic in GRAPH:
        infos = probe.node.get_publishers_info_by_topic(f'/{namespace}/{topic}')
        kinds = {info.topic_type for info in infos}
        names = {info.node_name for info in infos if info.node_namespace == f'/{namespace}'}
        found[topic] = kinds.pop() if len(kinds) == 1 else str(kinds), names
    return found


def assert_qos(probe: Probe, namespace: str, topic: str, qos: QoSProfile) -> None:
    for info in probe.node.get_publishers_info_by_topic(f'/{namespace}/{topic}'):
        assert info.qos_profile.reliability == qos.reliability, topic
        assert info.qos_profile.durability == qos.durability, topic


@pytest.mark.parametrize('name', ['bringup.launch.py', 'bringup.launch.xml'])
def test_everything_for_one_robot_comes_up_and_ends(
    name: str,
    ros2_launch: Start,  # noqa: F811
    probe: Probe,
    mlp_folder: Path,
    tmp_path: Path,
    quiet: Callable[..., PolicyStep],
) -> None:
    address = f'unix:{tmp_path}/b.sock'
    launched = ros2_launch(
        str(LAUNCH / name),
        f'detector_folder:={mlp_folder}',
        f'listen:={address}',
        'image_topic:=camera/image_raw',
        'markers:=true',
        'frame_id:=tool0',
        f'black_box_folder:={tmp_path / "alarms"}',
        'namespace:=robot1',
    )
    probe.spin_until(
        lambda: probe.node.count_publishers('/robot1/safe/stop') == 1, 'monitor is there', TIMEOUT
    )
    # The bridge publishes as soon as a source is there.
    first = quiet(0)
    sender = StepSender(
        address,
        feature_name=first.feature_name,
        exec_horizon=first.exec_horizon,
        wait_for_monitor=TIMEOUT,
        strict=True,
    )
    sender.start(task=first.instruction)
    expected = {topic: (kind, names) for topic, (kind, names, _) in GRAPH.items()}
    probe.spin_until(
        lambda: graph_of(probe, 'robot1') == expected, 'the whole graph is there', TIMEOUT
    )
    for topic, (_, _, qos) in GRAPH.items():
        assert_qos(probe, 'robot1', topic, qos)
    started = {n for n, space in probe.node.get_node_names_and_namespaces() if space == '/robot1'}
    assert started == {'monitor', 'bridge', 'black_box', 'overlay', 'markers'}
    sender.close()
    if name.endswith('py'):
        launched.press_ctrl_c()
        assert launched.wait() == 0
        assert_ended_cleanly(launched, 'monitor-1', 'bridge-2', 'black_box-3')
    else:
        terminate_group(launched, probe)
        assert 'Traceback' not in launched.output


def terminate_group(launched: Launched, probe: Probe) -> None:
    """Send SIGTERM to every process of the group, as systemd does; all end."""
    launched.signal_group(signal.SIGTERM)
    # ros2 launch ends at once, and its nodes a little later.
    probe.spin_until(lambda: launched.all_ended, 'all processes have ended', TIMEOUT)


@pytest.mark.parametrize('name', ['monitor.launch.py', 'monitor.launch.xml'])
def test_a_monitor_ends_on_sigterm_to_the_group(
    name: str,
    ros2_launch: Start,  # noqa: F811
    probe: Probe,
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(str(LAUNCH / name), f'detector_folder:={mlp_folder}', 'respawn:=true')
    probe.spin_until(lambda: probe.stops, 'the monitor is active', TIMEOUT)
    terminate_group(launched, probe)
    assert 'Traceback' not in launched.output


def test_steps_come_from_topics(
    ros2_launch: Start,  # noqa: F811
    probe: Probe,
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(
        str(LAUNCH / 'bringup.launch.py'),
        f'detector_folder:={mlp_folder}',
        'bridge:=topics',
        'features_topic:=/policy/features',
        'feature_name:=f',
        'episode_from:=gap',
    )
    probe.spin_until(
        lambda: (
            'reading /policy/features' in launched.output
            and probe.node.count_publishers('/vla/policy_step') == 2
            and probe.node.count_publishers('/safe/score') == 1
        ),
        'the bridge publishes steps, as the probe does',
        TIMEOUT,
    )
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'monitor-1', 'bridge-2')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['bridge:=none', 'features_topic:=/f'],
            'argument features_topic: expected no value with bridge:=none, found /f',
        ),
        (['bridge:=sender', 'feature_name:=f'], 'feature_name: expected no value with bridge'),
        (['managed_by:=launch', 'autostart:=true'], 'autostart: expected no autostart:=true'),
        (['respawn_delay:=-1'], 'respawn_delay: expected a time of 0 s or more, found -1'),
        (['respawn_delay:=soon'], "respawn_delay: expected a number, found 'soon'"),
        (['record:=true', 'record_output:=.'], 'record_output: expected a folder that does not'),
        (['bridge:=socket'], 'provided value "socket" is not valid'),
        (['namespce:=robot1'], "found the name 'namespce'; the nearest name is 'namespace'"),
        (['latch:=reset'], "found the name 'latch'; the parameters of a node are set in a"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name_and_starts_nothing(
    arguments: list[str],
    message: str,
    ros2_launch: Start,  # noqa: F811
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(
        str(LAUNCH / 'bringup.launch.py'), f'detector_folder:={mlp_folder}', *arguments
    )
    assert launched.wait() == 1
    assert message in launched.output
    assert 'process started' not in launched.output


INCLUDING = """
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription


def generate_launch_description():
    ours = IncludeLaunchDescription(
        PythonLaunchDescriptionSource({path!r}),
        launch_arguments={{'detector_folder': {detector!r}}}.items(),
    )
    return LaunchDescription([DeclareLaunchArgument('namespce', default_value='a'), ours])
"""


def test_an_including_launch_file_may_have_arguments_of_its_own(
    ros2_launch: Start,  # noqa: F811
    mlp_folder: Path,
    tmp_path: Path,
) -> None:
    mine = tmp_path / 'mine.launch.py'
    path = str(LAUNCH / 'monitor.launch.py')
    mine.write_text(INCLUDING.format(path=path, detector=str(mlp_folder)))
    launched = ros2_launch(str(mine), 'namespce:=robot1')
    deadline = time.monotonic() + TIMEOUT
    while 'from ' + str(mlp_folder) not in launched.output and not launched.ended:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'monitor-1')


# --- life cycle and respawn


def pid_of_monitor(launched: Launched) -> int:
    """Return the process id of the monitor that was started last."""
    marker = 'process started with pid ['
    lines = [line for line in launched.output.splitlines() if 'monitor-' in line]
    started = [line for line in lines if marker in line]
    return int(started[-1].partition(marker)[2].partition(']')[0])


@pytest.mark.parametrize('managed_by', ['node', 'launch'])
def test_a_killed_monitor_is_started_again_and_becomes_active(
    managed_by: str,
    ros2_launch: Start,  # noqa: F811
    probe: Probe,
    mlp_folder: Path,
) -> None:
    launched = ros2_launch(
        str(LAUNCH / 'bringup.launch.py'),
        *(f'detector_folder:={mlp_folder}', 'bridge:=none', 'respawn_delay:=0.5'),
        f'managed_by:={managed_by}',
    )
    probe.spin_until(lambda: probe.stops, 'the monitor is active', TIMEOUT)
    before = pid_of_monitor(launched)
    os.kill(before, signal.SIGKILL)
    probe.spin_until(lambda: 'process has died' in launched.output, 'the death is noticed', TIMEOUT)
    probe.stops.clear()
    probe.spin_until(lambda: probe.stops, 'the next monitor is active', TIMEOUT)
    assert pid_of_monitor(launched) != before
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert 'Traceback' not in launched.output


def test_a_monitor_that_always_fails_is_not_started_for_ever(
    ros2_launch: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / 'wrong.yaml').write_text('/**/monitor: {ros__parameters: {stop_period: fast}}')
    launched = ros2_launch(
        str(LAUNCH / 'monitor.launch.py'),
        *('params_file:=wrong.yaml', 'respawn:=true', 'respawn_delay:=0.1'),
        'respawn_max_retries:=1',
    )
    launched.wait()
    assert launched.output.count('process started with pid') == 2
    assert "parameter 'stop_period'" in launched.output


def test_a_lifecycle_manager_beside_the_launch_file_has_the_say(
    ros2_launch: Start,  # noqa: F811
    probe: Probe,
    mlp_folder: Path,
    tmp_path: Path,
) -> None:
    """As nav2's manager does: ids of transitions, without a look at the state."""
    launched = ros2_launch(
        str(LAUNCH / 'bringup.launch.py'),
        *(f'detector_folder:={mlp_folder}', 'managed_by:=manager'),
        *(f'listen:=unix:{tmp_path}/b.sock', f'black_box_folder:={tmp_path / "alarms"}'),
    )
    clients = {
        name: probe.node.create_client(ChangeState, f'/{name}/change_state')
        for name in ('monitor', 'bridge', 'black_box')
    }

    def change(name: str, transition: int) -> bool:
        probe.spin_until(clients[name].service_is_ready, f'{name} is there', TIMEOUT)
        request = ChangeState.Request(transition=Transition(id=transition))
        future = clients[name].call_async(request)
        probe.spin_until(future.done, f'{name} answers', TIMEOUT)
        return bool(future.result().success)

    for name in clients:
        assert not change(name, Transition.TRANSITION_ACTIVATE), 'it is not configured'
        assert change(name, Transition.TRANSITION_CONFIGURE)
        assert not change(name, Transition.TRANSITION_CONFIGURE)
        assert change(name, Transition.TRANSITION_ACTIVATE)
    probe.spin_until(lambda: probe.stops, 'the monitor is active', TIMEOUT)
    for name in reversed(clients):
        assert change(name, Transition.TRANSITION_DEACTIVATE)
        assert change(name, Transition.TRANSITION_CLEANUP)
    launched.press_ctrl_c()
    assert launched.wait() == 0
    assert_ended_cleanly(launched, 'monitor-1', 'bridge-2', 'black_box-3')
