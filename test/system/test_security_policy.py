# SPDX-License-Identifier: Apache-2.0
"""The policy for SROS 2 allows each node what it uses, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lifecycle_msgs.srv import GetState
from rclpy.node import Node, NodeNameNonExistentError
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from safe_bringup.live import Process
from safe_msgs.msg import FailureScore
from safe_msgs.srv import LabelEpisode, LoadDetector
from vla_feature_bridge.ros import StepPublisher
from vla_feature_bridge.ros.qos import SCORE_QOS

TOP = Path(__file__).parents[2]
POLICY = ElementTree.parse(TOP / 'launch' / 'security' / 'policy.xml').getroot()
KINDS = {
    'publish': Node.get_publisher_names_and_types_by_node,
    'subscribe': Node.get_subscriber_names_and_types_by_node,
    'reply': Node.get_service_names_and_types_by_node,
}


def allowed(node: str) -> dict[str, set[str]]:
    """Return the full names that the policy allows a node, for each kind of use."""
    found: dict[str, set[str]] = {kind: set() for kind in (*KINDS, 'request')}
    for profile in POLICY.iter('profile'):
        if profile.get('node') != node:
            continue
        for rules in profile:
            (kind,) = (kind for kind in found if rules.get(kind) == 'ALLOW')
            names = {(rule.text or '').strip() for rule in rules}
            assert len(names) == len(list(rules)), f'{node}: a name twice'
            found[kind] |= {
                name if name.startswith('/') else f'/{name.replace("~", node, 1)}' for name in names
            }
    return found


def used(probe: Node, node: str) -> dict[str, set[str]]:
    """Return what a node uses, by the graph; nothing while the graph does not know the node."""
    if (node, '/') not in probe.get_node_names_and_namespaces():
        return {kind: set() for kind in KINDS}
    return {kind: {name for name, _ in look(probe, node, '/')} for kind, look in KINDS.items()}


def compare(probe, node: str) -> None:
    policy = allowed(node)
    del policy['request']

    def differences() -> dict[str, tuple[set[str], set[str]]]:
        graph = used(probe.node, node)
        return {
            kind: (graph[kind] - policy[kind], policy[kind] - graph[kind])
            for kind in KINDS
            if graph[kind] != policy[kind]
        }

    try:
        probe.spin_until(lambda: not differences(), node, timeout=20)
    except AssertionError:
        pytest.fail(f'{node}: (used, but not allowed), (allowed, but not used): {differences()}')


@pytest.mark.slow
def test_the_nodes_use_exactly_what_the_policy_allows(
    probe, run_monitor: Callable[..., Process], mlp_folder, tmp_path
):
    run_monitor(detector_folder=mlp_folder, use_sim_time=True)
    box = {'folder': tmp_path / 'box', 'use_sim_time': True}
    with Process('safe_monitor_node.nodes.black_box', box, tmp_path / 'box.log'):
        compare(probe, 'monitor')
        compare(probe, 'black_box')


@pytest.mark.slow
def test_the_nodes_that_show_robots_use_exactly_what_the_policy_allows(
    probe, run_monitor: Callable[..., Process], mlp_folder, tmp_path
):
    pytest.importorskip('cv2')
    run_monitor(detector_folder=mlp_folder)
    # The overlay subscribes to a camera as soon as somebody publishes its images.
    camera = probe.node.create_publisher(Image, '/image', 1)
    parameters = {'dashboard': {'port': 0}, 'markers': {}, 'overlay': {}}
    for node, chosen in parameters.items():
        module, log = f'safe_monitor_node.nodes.{node}', tmp_path / f'{node}.log'
        with Process(module, {**chosen, 'use_sim_time': True}, log):
            compare(probe, node)
            if wanted := allowed(node)['request']:

                def asked(node=node) -> set[str]:
                    found = probe.node.get_client_names_and_types_by_node(node, '/')
                    return {name for name, _ in found}

                probe.spin_until(lambda: asked() == wanted, f'{node} asks for {wanted}')
    probe.node.destroy_publisher(camera)


@pytest.mark.slow
def test_replay_uses_exactly_what_the_policy_allows(probe, rollout_folder, tmp_path):
    parameters = {'rollout_set': rollout_folder, 'subscribers': 9, 'use_sim_time': True}
    with Process('vla_feature_bridge.nodes.replay', parameters, tmp_path / 'replay.log'):
        compare(probe, 'replay')


def test_the_process_of_a_policy_uses_what_the_policy_allows(probe):
    node = Node('policy', context=probe.context, start_parameter_services=False)
    try:
        publisher = StepPublisher(node, 'features', exec_horizon=1)
        policy = allowed('policy')
        probe.spin_until(
            lambda: len(used(probe.node, 'policy')['publish']) >= 4, 'the graph knows the node'
        )
        graph = used(probe.node, 'policy')
        assert graph['publish'] == policy['publish']
        assert graph['subscribe'] <= policy['subscribe'], graph['subscribe']
        publisher.close()
    finally:
        node.destroy_node()


VERBS = {
    'watch': ('watch', '--once', '--wait', '12'),
    'safe_doctor': ('doctor', '--wait', '6'),
    'safe_label': ('label', 'success', '--wait', '6'),
    'safe_reset': ('reset', '--wait', '6'),
}


@pytest.mark.parametrize(('name', 'words'), VERBS.items(), ids=VERBS)
def test_a_verb_uses_exactly_what_the_policy_allows(probe, name: str, words: tuple[str, ...]):
    """A monitor that never answers keeps the verb waiting, so that the graph can be read."""
    monitor = Node('monitor', context=probe.context)
    for kind, service in (
        (LoadDetector, 'load_detector'),
        (LabelEpisode, 'label_episode'),
        (Trigger, 'reset'),
        (GetState, 'get_state'),
    ):
        monitor.create_service(kind, f'~/{service}', lambda request, response: response)
    monitor.create_publisher(FailureScore, 'safe/score', SCORE_QOS)
    verb = subprocess.Popen([sys.executable, '-m', 'safe_monitor_node', *words])
    policy, node = allowed(name), f'{name}_{verb.pid}'

    def seen() -> dict[str, set[str]]:
        graph = used(probe.node, node)
        graph['request'] = set()
        with suppress(NodeNameNonExistentError):
            clients = probe.node.get_client_names_and_types_by_node(node, '/')
            graph['request'] = {name for name, _ in clients}
        return graph

    try:
        probe.spin_until(lambda: seen() == policy, f'{node} uses {policy}', timeout=20)
        probe.spin_for(0.5)
        assert seen() == policy, 'nothing is added'
    finally:
        verb.kill()
        verb.wait()
        monitor.destroy_node()


def test_only_the_monitor_may_stop_and_only_the_operator_may_silence():
    nodes = [profile.get('node') for profile in POLICY.iter('profile')]
    assert len(set(nodes)) == len(nodes) == 13
    for topic in ('/safe/stop', '/safe/alarm', '/safe/score'):
        assert [node for node in nodes if topic in allowed(node)['publish']] == ['monitor']
    steps = [node for node in nodes if '/vla/policy_step' in allowed(node)['publish']]
    assert steps == ['policy', 'replay']
    requests = {node: allowed(node)['request'] for node in nodes if allowed(node)['request']}
    assert requests.pop('operator') > {'/monitor/set_parameters', '/monitor/load_detector'}
    assert requests == {
        'dashboard': {'/monitor/label_episode'},
        'safe_doctor': {'/monitor/get_state'},
        'safe_label': {'/monitor/label_episode'},
        'safe_reset': {'/monitor/reset'},
    }
    assert not allowed('supervisor')['reply']


def test_what_the_operator_may_call_exists(probe, run_monitor, mlp_folder, tmp_path):
    run_monitor(detector_folder=mlp_folder)
    with Process(
        'safe_monitor_node.nodes.black_box', {'folder': tmp_path / 'box'}, tmp_path / 'box.log'
    ):
        wanted = allowed('operator')['request']

        def missing() -> set[str]:
            return wanted - {name for name, _ in probe.node.get_service_names_and_types()}

        probe.spin_until(lambda: not missing(), f'{wanted} exist')


def test_the_page_shows_names_that_the_policy_gives():
    page = (TOP / 'docs' / 'how-to' / 'security.md').read_text()
    monitor = allowed('monitor')
    for kind in ('publish', 'subscribe'):
        part = page.partition(f'<{kind}>')[2].partition(f'</{kind}>')[0]
        topics = [line.strip() for line in part.splitlines() if '<topic>' in line]
        assert len(topics) >= 3
        for topic in topics:
            name = topic.removeprefix('<topic>').removesuffix('</topic>')
            if name.startswith('rt/'):
                assert name.removeprefix('rt') in monitor[kind], name
            else:
                ending = {'publish': ('rr/', 'Reply'), 'subscribe': ('rq/', 'Request')}[kind]
                assert name.startswith(ending[0])
                assert name.endswith(ending[1])
                assert name[2:].removesuffix(ending[1]) in monitor['reply'], name
