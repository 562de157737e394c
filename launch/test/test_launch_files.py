# SPDX-License-Identifier: Apache-2.0
"""The launch files as text: executables, parameters, arguments and topics are those of the nodes.

``launch`` is not on PyPI. Therefore these tests read the files and start nothing. The tests in
``test/system/test_launch*.py`` start them; without ``launch_ros``, they are skipped by name.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch_files import LAUNCH, PYTHON_FILES, XML_FILES, passed_on, read_python, read_xml
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

from safe_bringup.bag_commands import RECORDED_TOPICS, moved_topics
from safe_bringup.parameter_docs import NODES
from safe_monitor_node.nodes.black_box_topics import TOPICS
from safe_monitor_node.nodes.monitor_outputs import MonitorOutputs

TABLES = {name: {p.name: p for p in module.PARAMETERS} for name, module, _ in NODES}
OURS = ('safe_bringup', 'safe_monitor_node', 'vla_feature_bridge')
OF_EVERY_NODE = {'use_sim_time'}
#: The node whose parameters a table without a node in its name holds.
NODE_OF_FILE = {'monitor': 'monitor', 'bridge': 'bridge', 'demo': 'replay', 'replay': 'replay'}
TYPES = {'bool': bool, 'int': int, 'float': float, 'str': str, 'list[str]': list}
STARTED = sorted({node for path in PYTHON_FILES for node in read_python(path).nodes})

every_file = pytest.mark.parametrize('path', PYTHON_FILES, ids=lambda path: path.name)


def name_of(path: Path) -> str:
    return path.name.partition('.')[0]


def test_there_are_launch_files_and_twins() -> None:
    assert {name_of(p) for p in PYTHON_FILES} >= {'bringup', 'monitor', 'replay', 'record'}
    assert {name_of(p) for p in XML_FILES} == {'bringup', 'monitor'}


@every_file
def test_every_argument_is_described_and_has_a_default_that_is_allowed(path: Path) -> None:
    arguments = read_python(path).arguments
    assert arguments
    for argument in arguments.values():
        assert re.fullmatch(r'[a-z][a-z0-9_]*', argument.name)
        assert re.fullmatch(r'[A-Z`].*\.', argument.description), argument
        if argument.choices:
            assert argument.default in argument.choices
        assert argument.default not in ('true', 'false') or argument.choices == ('true', 'false')


@pytest.mark.parametrize(('package', 'executable'), STARTED)
def test_every_executable_is_installed(package: str, executable: str) -> None:
    try:
        prefix = Path(get_package_prefix(package))
    except PackageNotFoundError:
        assert package not in OURS
        pytest.skip(f'{package} is not installed: its executable {executable} was not looked for')
    assert (prefix / 'lib' / package / executable).is_file()


@every_file
def test_arguments_that_are_parameters_have_their_type_choices_and_range(path: Path) -> None:
    read = read_python(path)
    for table, parameters in read.parameters.items():
        node = table.removesuffix('PARAMETERS').strip('_').lower() or NODE_OF_FILE[name_of(path)]
        for name, kind in parameters.items():
            if name in OF_EVERY_NODE:
                continue
            parameter, argument = TABLES[node][name], read.arguments[name]
            assert type(parameter.default) is TYPES[kind], f'{node}.{name}'
            if parameter.choices:
                assert set(argument.choices) <= {'', *parameter.choices} or not argument.choices
            if argument.default and parameter.low is not None:
                assert parameter.low <= float(argument.default) <= parameter.high


@every_file
def test_parameters_that_a_file_sets_exist(path: Path) -> None:
    known = {name for table in TABLES.values() for name in table} | OF_EVERY_NODE
    assert read_python(path).set_here <= known


def test_parameters_that_the_helpers_set_exist_in_every_lifecycle_node() -> None:
    managed = {'monitor', 'bridge', 'black_box'}
    assert all('autostart' in TABLES[node] for node in managed)
    assert not any('autostart' in TABLES[node] for node in TABLES.keys() - managed)
    for path in PYTHON_FILES:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for call in ast.walk(tree):
            names = ('managed_node', 'node_managed_here')
            if isinstance(call, ast.Call) and ast.unparse(call.func) in names:
                assert ast.literal_eval(call.args[1]) in managed, path.name


@every_file
def test_default_files_are_in_the_checkout_and_installed(path: Path) -> None:
    for argument in read_python(path).arguments.values():
        found = re.fullmatch(r'\$\(find-pkg-share safe_bringup\)/(.*)', argument.default)
        if found:
            assert (LAUNCH / found[1]).is_file()
            installed = (LAUNCH / 'setup.py').read_text(encoding='utf-8')
            assert f"glob('{Path(found[1]).parent}/*')" in installed


def test_the_launch_files_are_installed() -> None:
    text = (LAUNCH / 'setup.py').read_text(encoding='utf-8')
    assert "glob('*.launch.py')" in text
    assert "glob('*.launch.xml')" in text
    share = Path(get_package_share_directory('safe_bringup'), 'launch')
    assert {p.name for p in PYTHON_FILES + XML_FILES} == {p.name for p in share.iterdir()}


@pytest.mark.parametrize('path', XML_FILES, ids=lambda path: path.name)
def test_an_xml_file_has_the_arguments_of_its_twin_and_passes_them_on(path: Path) -> None:
    twin = path.with_suffix('.py')
    assert read_xml(path) == read_python(twin).arguments
    included, passed = passed_on(path)
    assert included == f'$(dirname)/{twin.name}'
    assert passed == {name: f'$(var {name})' for name in read_python(twin).arguments}


# --- topics


def test_recorded_topics_are_those_of_the_nodes() -> None:
    assert set(RECORDED_TOPICS) == {topic.name for topic in TOPICS}


def subscribed() -> dict[str, QoSProfile]:
    content = yaml.safe_load((LAUNCH / 'recording' / 'qos.yaml').read_text(encoding='utf-8'))
    return {
        topic: QoSProfile(
            history=HistoryPolicy.get_from_short_key(qos.pop('history')),
            reliability=ReliabilityPolicy.get_from_short_key(qos.pop('reliability')),
            durability=DurabilityPolicy.get_from_short_key(qos.pop('durability')),
            depth=qos.pop('depth'),
            **qos,
        )
        for topic, qos in content.items()
    }


def test_the_recorder_subscribes_to_exactly_our_topics_and_matches_our_publishers() -> None:
    profiles = subscribed()
    assert set(profiles) == {f'/{name.removeprefix("/")}' for name in RECORDED_TOPICS}
    for topic in TOPICS:
        profile = profiles[f'/{topic.name.removeprefix("/")}']
        found, reason = qos_check_compatible(topic.qos, profile)
        # It warns that liveliness is the default of the system on both sides.
        assert found != QoSCompatibility.ERROR, f'{topic.name}: {reason}'
        assert profile.depth >= topic.qos.depth


def test_a_volatile_publisher_of_events_is_recorded_too() -> None:
    volatile = QoSProfile(
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE,
    )
    found, reason = qos_check_compatible(volatile, subscribed()['/vla/episode'])
    assert found != QoSCompatibility.ERROR, reason


def test_topics_that_are_moved_are_topics_that_nodes_publish() -> None:
    nodes = Path(MonitorOutputs.__init__.__code__.co_filename).parent
    text = ''.join(path.read_text(encoding='utf-8') for path in nodes.glob('*.py'))
    for topic in moved_topics([], '', ''):
        if topic.startswith('/safe/'):
            assert f"'{topic[1:]}'" in text, topic


# --- misspelt arguments


@every_file
def test_every_file_refuses_arguments_that_it_does_not_have(path: Path) -> None:
    actions = path.read_text(encoding='utf-8').partition('def generate_launch_description')[2]
    assert 'known = only_known_arguments(__file__, ARGUMENTS)' in actions
    assert 'LaunchDescription([*ARGUMENTS, known, OpaqueFunction(' in actions


# --- the documentation


def test_every_launch_command_of_a_page_has_arguments_that_exist() -> None:
    known = {p.name: read_python(p).arguments for p in PYTHON_FILES}
    known |= {p.name: read_xml(p) for p in XML_FILES}
    count = 0
    for page in [*LAUNCH.parent.glob('docs/**/*.md'), *LAUNCH.parent.glob('*/README.md')]:
        text = page.read_text(encoding='utf-8').replace('\\\n', ' ')
        for file, rest in re.findall(r'ros2 launch safe_bringup (\S+\.launch\.\w+)(.*)', text):
            for name in re.findall(r'(\w+):=', rest.partition('#')[0].partition('`')[0]):
                assert name in known[file], f'{page.name}: {file} {name}'
            count += 1
    assert count > 10
