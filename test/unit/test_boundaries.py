# SPDX-License-Identifier: Apache-2.0
"""What each package may know: a robot needs no training code, and data is never executed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ('vla_feature_bridge', 'safe_monitor_node')
PACKAGES = (*RUNTIME, 'safe_training')

# Which of our packages each may import; the arrows point one way.
MAY_IMPORT = {
    'vla_feature_bridge': {'safe_msgs'},
    'safe_monitor_node': {'safe_msgs', 'vla_feature_bridge'},
    'safe_training': {'safe_monitor_node', 'vla_feature_bridge'},
}
OURS = {'safe_msgs', 'safe_bringup', *PACKAGES}

# Only for training, reports and terminals.
NOT_ON_A_ROBOT = {'joblib', 'matplotlib', 'pandas', 'rich', 'safe_training', 'scipy', 'sklearn'}
EXECUTES_DATA = {'cloudpickle', 'cPickle', 'dill', 'joblib', 'marshal', 'pickle', 'shelve'}
ROS = {
    'ament_index_python',
    'builtin_interfaces',
    'diagnostic_msgs',
    'launch',
    'launch_ros',
    'lifecycle_msgs',
    'rcl_interfaces',
    'rclpy',
    'rosidl_runtime_py',
    'safe_msgs',
    'sensor_msgs',
    'std_msgs',
    'std_srvs',
    'trajectory_msgs',
    'visualization_msgs',
}


def sources(package):
    return sorted((ROOT / package / package).rglob('*.py'))


def knows_ros(source):
    return 'nodes' in source.parts or 'ros' in source.parts


def module_name(source):
    parts = source.relative_to(ROOT).with_suffix('').parts[1:]
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported_by(source):
    """Return the full names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{source}: a relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names} | {node.module}
    return names


def top_level(names):
    return {name.split('.')[0] for name in names}


every_package = pytest.mark.parametrize('package', PACKAGES)
every_runtime_package = pytest.mark.parametrize('package', RUNTIME)


@every_package
def test_there_is_something_to_look_at(package):
    assert len(sources(package)) > 5


@every_package
def test_the_arrows_point_one_way(package):
    for source in sources(package):
        known = top_level(imported_by(source)) & OURS - {package}
        assert known <= MAY_IMPORT[package], source


@every_package
def test_only_nodes_and_messages_know_ros(package):
    for source in sources(package):
        imported = imported_by(source)
        if knows_ros(source):
            continue
        assert not top_level(imported) & ROS, source
        for name in imported:
            assert '.nodes' not in name, f'{source} imports {name}'
            assert not name.startswith('vla_feature_bridge.ros'), f'{source} imports {name}'


@every_runtime_package
def test_runtime_packages_import_nothing_of_training(package):
    for source in sources(package):
        assert not top_level(imported_by(source)) & NOT_ON_A_ROBOT, source


@every_package
def test_runtime_packages_need_nothing_of_training_installed(package):
    manifest = ElementTree.parse(ROOT / package / 'package.xml').getroot()
    at_run_time = ('depend', 'build_export_depend', 'exec_depend')
    needed = {entry.text for kind in at_run_time for entry in manifest.iter(kind)}
    built_with = {entry.text for entry in manifest.iter('build_depend')}
    assert needed & OURS <= MAY_IMPORT[package]
    # The build of safe_training copies the definitions of the messages.
    assert built_with & OURS <= MAY_IMPORT[package] | {'safe_msgs'}
    needed |= built_with
    if package in RUNTIME:
        setup = (ROOT / package / 'setup.py').read_text()
        for name in ('matplotlib', 'pandas', 'rich', 'safe_training', 'scikit-learn', 'scipy'):
            assert not any(name in str(entry) for entry in needed)
            assert name not in setup


# The rooms of each package: a room imports rooms before it only. '' holds the modules of no room.
ROOMS = {
    'vla_feature_bridge': ('', 'rollout_set', 'taps', 'ros', 'nodes'),
    'safe_monitor_node': (
        'threads',
        'detectors',
        'bands',
        'calibrated_detector',
        'storage',
        'monitor',
        'threads',
        'nodes',
    ),
    'safe_training': (
        'recordings',
        'fitting',
        'calibration',
        'metrics',
        'evaluation',
        'sweep',
        'reporting',
        'api',
        'cli',
        '__main__',
    ),
}
# A calibrated detector saves and loads itself; it imports the room of the files when it does.
MAY_LOOK_UP = {('safe_monitor_node', 'calibrated_detector'): {'storage'}}
LONGEST_MODULE = 400


def room_of(package, module):
    """Return the room that a module of a package is in; '' if it is in none."""
    first = module.split('.')[1] if '.' in module else ''
    return first if first in ROOMS[package] else ''


def rooms_imported_by(package, source):
    """Return the rooms that a file imports from; the package itself is none."""
    known = {module_name(other) for other in sources(package)}
    names = {name for name in imported_by(source) if name.startswith(f'{package}.')}
    # Of `from package.room import name` the name may be a module or a thing in the room.
    modules = {name if name in known else name.rpartition('.')[0] for name in names}
    return {room_of(package, module) for module in modules - {package}}


@every_package
def test_every_module_is_in_a_room_of_the_map(package):
    for source in sources(package):
        if source == ROOT / package / package / '__init__.py':
            continue
        room = room_of(package, module_name(source))
        assert room in ROOMS[package], f'{source} is in none of the rooms {ROOMS[package]}'


@every_package
def test_a_room_imports_rooms_before_it_only(package):
    order = ROOMS[package]
    for source in sources(package):
        # The package itself offers names of all rooms and imports them on first use.
        if source == ROOT / package / package / '__init__.py':
            continue
        room = room_of(package, module_name(source))
        allowed = {*order[: order.index(room) + 1], *MAY_LOOK_UP.get((package, room), ())}
        imported = rooms_imported_by(package, source)
        assert imported <= allowed, f'{source} imports {imported - allowed}'


@pytest.mark.parametrize('room', ['calibration', 'metrics'])
def test_calibration_and_metrics_know_no_detector(room):
    for source in (ROOT / 'safe_training' / 'safe_training' / room).rglob('*.py'):
        for name in imported_by(source):
            if name.startswith('safe_monitor_node'):
                assert name.startswith('safe_monitor_node.bands'), f'{source} imports {name}'


def test_what_reads_untrusted_bytes_knows_nothing_else():
    room = 'safe_training.recordings'
    for source in (ROOT / 'safe_training' / 'safe_training' / 'recordings').rglob('*.py'):
        if 'untrusted' not in source.parts:
            continue
        for name in imported_by(source):
            if name.split('.')[0] in OURS - {'vla_feature_bridge'}:
                allowed = name.startswith((f'{room}.untrusted', f'{room}.errors'))
                assert allowed, f'{source} imports {name}'


def test_no_module_is_too_long_to_read():
    places = [ROOT / 'launch' / 'safe_bringup', ROOT / 'test' / 'bench']
    files = [source for package in PACKAGES for source in sources(package)]
    files += [source for place in places for source in place.rglob('*.py')]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert not too_long, f'divide them; a module has at most {LONGEST_MODULE} lines'


def called(node):
    """Return the dotted name of what a call calls, as far as it is one."""
    parts = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return '.'.join([getattr(function, 'id', '?'), *reversed(parts)])


EXECUTING_CALLS = {
    'eval',
    'exec',
    'compile',
    '__import__',
    'torch.load',
    'torch.save',
    'torch.jit.load',
    'torch.package.PackageImporter',
    'pandas.read_pickle',
    'pd.read_pickle',
    'yaml.load',
    'yaml.unsafe_load',
    'os.system',
}


@every_package
def test_no_file_can_be_executed_as_code(package):
    for source in sources(package):
        assert not top_level(imported_by(source)) & EXECUTES_DATA, source
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Call):
                continue
            where = f'{source}:{node.lineno}'
            assert called(node) not in EXECUTING_CALLS, where
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            allowed = options.get('allow_pickle')
            assert allowed is None or getattr(allowed, 'value', None) is False, where
            if called(node) in ('np.load', 'numpy.load'):
                assert allowed is not None, f'{where}: say allow_pickle=False'


def in_a_fresh_interpreter(code):
    """Run code in a new Python; returns what it prints as JSON."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


IMPORT_AND_USE = """
import importlib, json, sys, tempfile
from pathlib import Path

for name in {modules!r}:
    importlib.import_module(name)

import numpy as np
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

with tempfile.TemporaryDirectory() as place:
    feature = FeatureSpec('hidden_states', 4)
    with RolloutSetWriter(Path(place) / 'set', feature=feature) as writer:
        writer.add(Rollout(np.zeros((3, 4), np.float32), task='t'))
    rollout = RolloutSet.open(Path(place) / 'set')[0]
    detector = make_detector('safe_lstm', hidden=2)
    detector.set_network(detector.build(4), 4)
    band = Band(np.array([0.1]), np.ones((1, 3)), 'any', 9)
    folder = CalibratedDetector(detector, feature, band, 0.1).save(Path(place) / 'd')
    stream = CalibratedDetector.load(folder).detector.stream()
    for t in range(3):
        stream.step(rollout.step(t))

print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""


@pytest.mark.slow
@pytest.mark.ros
def test_a_robot_loads_no_training_code():
    modules = [module_name(source) for package in RUNTIME for source in sources(package)]
    assert 'safe_monitor_node.nodes.monitor' in modules
    assert 'vla_feature_bridge.nodes.replay' in modules
    loaded = set(in_a_fresh_interpreter(IMPORT_AND_USE.format(modules=modules)))
    assert {'rclpy', 'safe_msgs', 'torch', 'pyarrow'} <= loaded, 'the test sees what is loaded'
    assert not loaded & NOT_ON_A_ROBOT


WITHOUT_ROS = """
import sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ros!r}:
            raise ImportError(f'{{name}} is not there')

for name in list(sys.modules):
    assert name.split('.')[0] not in {ros!r}, name
sys.meta_path.insert(0, NoRos())
try:
    import rclpy
except ImportError:
    pass
else:
    raise AssertionError('rclpy is there')
"""


@pytest.mark.slow
def test_everything_but_nodes_and_messages_works_without_ros():
    modules = [
        module_name(source)
        for package in PACKAGES
        for source in sources(package)
        if not knows_ros(source) and source.name != '__main__.py'
    ]
    assert 'safe_training.cli.main' in modules
    code = WITHOUT_ROS.format(ros=sorted(ROS)) + IMPORT_AND_USE.format(modules=modules)
    assert not set(in_a_fresh_interpreter(code)) & ROS
