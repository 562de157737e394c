# SPDX-License-Identifier: Apache-2.0
"""The layouts for other tools name topics, fields and nodes that this suite really has.

The tools themselves do not run here. What their files must look like is tested as far as their
documentation states it.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
from visualization_msgs.msg import MarkerArray

from safe_bringup.parameter_docs import NODES
from safe_monitor_node.nodes.black_box_node import status_name as black_box_status
from safe_monitor_node.nodes.fleet_node import fleet_status_name
from safe_monitor_node.nodes.marker_messages import NAMES
from safe_monitor_node.nodes.monitor_messages import diagnostic_status
from safe_msgs.msg import FailureAlarm, FailureScore
from vla_feature_bridge.nodes.bridge_diagnosis import Diagnosis
from vla_feature_bridge.nodes.bridge_node import _status as bridge_status
from vla_feature_bridge.nodes.levels import Level
from vla_feature_bridge.ros.qos import stop_deadline

LAYOUTS = Path(__file__).parents[1] / 'layouts'
TOPICS = {
    'safe/score': FailureScore,
    'safe/alarm': FailureAlarm,
    'safe/stop': Bool,
    'safe/markers': MarkerArray,
    'safe/overlay': Image,
    'diagnostics': DiagnosticArray,
}
DEFAULTS = {node: {p.name: p.default for p in module.PARAMETERS} for node, module, _ in NODES}


def read(name: str) -> str:
    return (LAYOUTS / name).read_text(encoding='utf-8')


def assert_field(path: str, separator: str) -> None:
    """Hold that a path such as ``/safe/score.score`` is a number in one of our messages."""
    topic, _, field = path.removeprefix('/').rpartition(separator)
    kind = TOPICS[topic].get_fields_and_field_types()[field]
    assert kind in ('boolean', 'double', 'float', 'uint8', 'uint32'), path


def test_every_file_is_tested() -> None:
    assert {path.name for path in LAYOUTS.iterdir()} == {
        'diagnostic_aggregator.yaml',
        'foxglove.json',
        'plotjuggler.xml',
        'robot.rviz',
        'rqt.perspective',
        'twist_mux_locks.yaml',
    }


def test_rviz_shows_our_topics_with_a_qos_that_matches() -> None:
    manager = yaml.safe_load(read('robot.rviz'))['Visualization Manager']
    displays = {d['Name']: d for d in manager['Displays']}
    assert all(d['Class'].startswith('rviz_default_plugins/') for d in displays.values())
    topics = {d['Topic']['Value']: d for d in displays.values() if 'Topic' in d}
    assert set(topics) == {'safe/markers', 'safe/overlay'}
    assert all(d['Topic']['Durability Policy'] == 'Volatile' for d in topics.values())
    assert set(topics['safe/markers']['Namespaces']) == set(NAMES)
    frame = manager['Global Options']['Fixed Frame']
    assert frame == DEFAULTS['markers']['frame_id']


def panels_of(layout: object) -> list[str]:
    """Return the panels of a mosaic: a name, or a row or column of two parts."""
    if isinstance(layout, str):
        return [layout]
    assert isinstance(layout, dict)
    assert layout['direction'] in ('row', 'column')
    assert 0 < layout.get('splitPercentage', 50) < 100
    return [*panels_of(layout['first']), *panels_of(layout['second'])]


#: The settings of a panel as the open sources of the viewer (and of its fork Lichtblick) name them.
#: The viewer ignores a setting with another name: the panel would be empty without a word.
FOXGLOVE_SETTINGS: dict[str, dict[str, type]] = {
    'Plot': {
        'paths': list,
        'showXAxisLabels': bool,
        'showYAxisLabels': bool,
        'showLegend': bool,
        'legendDisplay': str,
        'showPlotValuesInLegend': bool,
        'isSynced': bool,
        'xAxisVal': str,
        'sidebarDimension': int,
        'followingViewWidth': int,
    },
    'StateTransitions': {'paths': list, 'isSynced': bool},
    'RawMessages': {
        'topicPath': str,
        'diffEnabled': bool,
        'diffMethod': str,
        'diffTopicPath': str,
        'showFullMessageForDiff': bool,
    },
    'DiagnosticSummary': {
        'minLevel': int,
        'pinnedIds': list,
        'hardwareIdFilter': str,
        'topicToRender': str,
        'sortByLevel': bool,
    },
    '3D': {'followMode': str, 'followTf': str, 'scene': dict, 'topics': dict, 'layers': dict},
    'Image': {'imageMode': dict},
}
FOXGLOVE_CHOICES = {
    'legendDisplay': {'floating', 'top', 'left', 'none'},
    'xAxisVal': {'timestamp', 'index', 'custom', 'currentCustom'},
    'diffMethod': {'custom', 'previous message'},
    'followMode': {'follow-pose', 'follow-position', 'follow-none'},
    'timestampMethod': {'receiveTime', 'headerStamp'},
}
FOXGLOVE_PATH = {'value', 'label', 'color', 'enabled', 'timestampMethod'}


def test_foxglove_knows_every_panel_and_setting() -> None:
    layout = json.loads(read('foxglove.json'))
    for name, panel in layout['configById'].items():
        settings = FOXGLOVE_SETTINGS[name.partition('!')[0]] | {'foxglovePanelTitle': str}
        for key, value in panel.items():
            assert type(value) is settings[key], f'{name}: {key}'
            if key in FOXGLOVE_CHOICES:
                assert value in FOXGLOVE_CHOICES[key], f'{name}: {key} is {value}'
        for path in panel.get('paths', []):
            assert set(path) <= FOXGLOVE_PATH
            assert path['timestampMethod'] in FOXGLOVE_CHOICES['timestampMethod']
    assert set(layout['playbackConfig']) <= {'speed', 'messageOrder'}


def test_foxglove_places_each_panel_once_and_reads_our_fields() -> None:
    layout = json.loads(read('foxglove.json'))
    assert set(layout) == {
        'configById', 'globalVariables', 'layout', 'playbackConfig', 'userNodes',
    }  # fmt: skip
    panels = panels_of(layout['layout'])
    assert sorted(panels) == sorted(layout['configById'])
    for name, panel in layout['configById'].items():
        assert re.fullmatch(r'[A-Za-z0-9]+![a-z_]+', name)
        for path in panel.get('paths', []):
            assert_field(path['value'], '.')
    configs = layout['configById']
    assert configs['RawMessages!safe_alarm']['topicPath'].removeprefix('/') in TOPICS
    assert configs['DiagnosticSummary!safe']['topicToRender'].removeprefix('/') in TOPICS
    image = configs['Image!safe_overlay']['imageMode']['imageTopic']
    assert TOPICS[image.removeprefix('/')] is Image
    assert configs['3D!safe_markers']['followTf'] == DEFAULTS['markers']['frame_id']
    (markers,) = configs['3D!safe_markers']['topics']
    assert TOPICS[markers.removeprefix('/')] is MarkerArray


def test_plotjuggler_plots_our_fields() -> None:
    root = ElementTree.fromstring(read('plotjuggler.xml').encode())
    curves = [curve.get('name') or '' for curve in root.iter('curve')]
    assert len(curves) >= 5
    for name in curves:
        assert_field(name, '/')
    for splitter in root.iter('DockSplitter'):
        sizes = [float(size) for size in (splitter.get('sizes') or '').split(';')]
        assert len(sizes) == int(splitter.get('count') or 0) == len(list(splitter))
        assert sum(sizes) == pytest.approx(1.0)


def test_plotjuggler_starts_the_streaming_of_what_it_plots() -> None:
    # Without that, the curves do not exist when the layout is loaded, and the plots stay empty.
    root = ElementTree.fromstring(read('plotjuggler.xml').encode())
    (streamer,), (plugin,) = root.iter('previouslyLoaded_Streamer'), root.iter('plugin')
    assert streamer.get('name') == plugin.get('ID') == 'ROS2 Topic Subscriber'
    (topics,) = plugin.iter('selected_topics')
    plotted = {(curve.get('name') or '').rpartition('/')[0] for curve in root.iter('curve')}
    assert set((topics.get('value') or '').split(';')) == plotted
    # PlotJuggler reads a missing number as 0 and a missing flag as false.
    assert {child.tag for child in plugin} == {
        'use_header_stamp', 'discard_large_arrays', 'max_array_size', 'boolean_strings_to_number',
        'remove_suffix_from_strings', 'selected_topics',
    }  # fmt: skip


def test_plotjuggler_knows_every_element_and_attribute() -> None:
    """The names that its sources read (3.9 to 3.17, and its ROS plugins 2.1 to 2.3)."""
    known = {
        'root': set(),
        'tabbed_widget': {'parent', 'name'},
        'Tab': {'tab_name', 'containers'},
        'Container': set(),
        'DockSplitter': {'orientation', 'count', 'sizes'},
        'DockArea': {'name'},
        'plot': {'style', 'mode'},
        'limitY': {'min', 'max'},
        'curve': {'name', 'color'},
        'currentTabIndex': {'index'},
        'use_relative_time_offset': {'enabled'},
        'previouslyLoaded_Streamer': {'name'},
        'Plugins': set(),
        'plugin': {'ID'},
    }
    root = ElementTree.fromstring(read('plotjuggler.xml').encode())
    (plugin,) = root.iter('plugin')
    known |= {setting.tag: {'value'} for setting in plugin}
    for element in root.iter():
        assert set(element.keys()) <= known[element.tag], element.tag
    for plot in root.iter('plot'):
        assert plot.get('mode') == 'TimeSeries'
        assert plot.get('style') in {'Lines', 'Dots', 'LinesAndDots', 'Sticks', 'Steps', 'StepsInv'}
    for splitter in root.iter('DockSplitter'):
        assert splitter.get('orientation') in ('-', '|')
    (main,) = root.iter('tabbed_widget')
    assert (main.get('parent'), main.get('name')) == ('main_window', 'Main Window')


def test_the_rqt_perspective_plots_our_fields_and_starts_what_it_configures() -> None:
    groups = json.loads(read('rqt.perspective'))['groups']
    manager = groups['pluginmanager']
    running = ast.literal_eval(manager['keys']['running-plugins']['repr'])
    names = {
        f'plugin__{plugin.replace("/", "__")}__{serial}'
        for plugin, serials in running.items()
        for serial in serials
    }
    assert names == set(manager['groups'])
    plotted = []
    for group in manager['groups'].values():
        keys = group['groups'].get('plugin', {'keys': {}})['keys']
        plotted += ast.literal_eval(keys['topics']['repr']) if 'topics' in keys else []
    assert plotted
    for path in plotted:
        assert_field(path, '/')


def test_the_aggregator_takes_each_of_our_statuses_into_one_group() -> None:
    parameters = yaml.safe_load(read('diagnostic_aggregator.yaml'))['analyzers']['ros__parameters']
    analyzers = {k: v for k, v in parameters.items() if isinstance(v, dict)}
    bridge = Diagnosis('bridge', Level.OK, '')
    for name, path in (
        (diagnostic_status('/monitor', Level.OK, '', {}).name, 'Monitors'),
        (diagnostic_status('/cell/robot1/monitor', Level.OK, '', {}).name, 'Monitors'),
        (bridge_status('bridge', bridge).name, 'Bridges'),
        (bridge_status('cell/bridge', Diagnosis('left', Level.OK, '')).name, 'Bridges'),
        (black_box_status('/black_box'), 'Black boxes'),
        (black_box_status('/cell/robot1/black_box'), 'Black boxes'),
        (fleet_status_name('/fleet'), 'Fleets'),
        (fleet_status_name('/hall/fleet'), 'Fleets'),
        ('camera_monitor: failure monitor', None),
        ('robot1/monitor_arm: failure monitor', None),
        ('drivers: bridge: left', None),
    ):
        found = [
            entry['path']
            for entry in analyzers.values()
            if any(re.search(pattern, name) for pattern in entry['regex'])
        ]
        assert found == ([path] if path else []), name
    for entry in analyzers.values():
        assert entry['timeout'] > 2 * DEFAULTS['monitor']['diagnostics_period']


def test_the_lock_locks_when_the_deadline_of_the_stop_is_over() -> None:
    locks = yaml.safe_load(read('twist_mux_locks.yaml'))['twist_mux']['ros__parameters']['locks']
    lock = locks['safe_stop']
    assert TOPICS[lock['topic']] is Bool
    assert lock['timeout'] == stop_deadline(DEFAULTS['monitor']['stop_period'])
    assert 0 < lock['priority'] <= 255


@pytest.mark.parametrize('name', ['diagnostic_aggregator.yaml', 'twist_mux_locks.yaml'])
def test_rclpy_takes_the_parameter_files(name: str) -> None:
    context = rclpy.Context()
    rclpy.init(args=['--ros-args', '--params-file', str(LAYOUTS / name)], context=context)
    rclpy.shutdown(context=context)


def test_the_package_installs_them() -> None:
    assert "glob('layouts/*')" in (LAYOUTS.parent / 'setup.py').read_text(encoding='utf-8')
