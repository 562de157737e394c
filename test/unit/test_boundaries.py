# SPDX-License-Identifier: Apache-2.0
"""What each package may know: a robot needs no training code, and data is never executed."""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
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
    # Not the whole path: a checkout may lie in a folder of such a name.
    inside = source.relative_to(ROOT).parts
    return 'nodes' in inside or 'ros' in inside


def module_name(source):
    parts = source.relative_to(ROOT).with_suffix('').parts[1:]
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@cache
def offered_by(package):
    """Return the names that a package offers, with the full name of each module that holds one."""
    init = ROOT / package / package / '__init__.py'
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_MODULES':
            return {k: f'{package}.{v}' for k, v in ast.literal_eval(node.value).items()}
    raise AssertionError(f'{init} has no table _MODULES')


def imports_of(text, where=''):
    """Yield each import of a module, wherever in it, as (node, full names)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield node, {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{where}: a relative import'
            names = {f'{node.module}.{alias.name}' for alias in node.names} | {node.module}
            # A package offers names of all its rooms: the import loads the room.
            offered = offered_by(node.module) if node.module in PACKAGES else {}
            names |= {offered[alias.name] for alias in node.names if alias.name in offered}
            yield node, names
        elif isinstance(node, ast.Call) and is_import_call(node) and node.args:
            name = getattr(node.args[0], 'value', None)
            if isinstance(name, str):
                yield node, {name}


def is_import_call(node):
    return called(node).rpartition('.')[2] in ('import_module', '__import__')


def imported_by(source, text=None):
    """Return the full names that a file imports, wherever in it."""
    text = source.read_text() if text is None else text
    return {name for _, names in imports_of(text, source) for name in names}


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
LONGEST_FUNCTION = 60


def room_of(package, module):
    """Return the room that a module of a package is in; '' if it is in none."""
    first = module.split('.')[1] if '.' in module else ''
    return first if first in ROOMS[package] else ''


@cache
def known_modules(package):
    return {module_name(other) for other in sources(package)}


def modules_imported(package, names):
    """Return the modules of a package among imported names; the package itself is none."""
    names = {name for name in names if name.startswith(f'{package}.')}
    # Of `from package.room import name` the name may be a module or a thing in the room.
    known = known_modules(package)
    modules = {name if name in known else name.rpartition('.')[0] for name in names}
    return modules - {package}


def at_top_level(text):
    """Return the names that a module imports when it is loaded."""
    tree = ast.parse(text)
    lazy = {
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call))
    }
    return {name for node, names in imports_of(text) if node.lineno not in lazy for name in names}


def forbidden_rooms(package, source, text):
    """Return the rooms that a file imports, but may not."""
    order = ROOMS[package]
    room = room_of(package, module_name(source))
    before = {*order[: order.index(room) + 1]}
    looked_up = MAY_LOOK_UP.get((package, room), set())
    rooms, loaded = (
        {room_of(package, module) for module in modules_imported(package, names)}
        for names in (imported_by(source, text), at_top_level(text))
    )
    return (rooms - before - looked_up) | (loaded - before)


def maps_with_an_order():
    """Return the folders with a map whose modules may import only modules above them."""
    for package in PACKAGES:
        for init in (ROOT / package / package).rglob('__init__.py'):
            doc = ast.get_docstring(ast.parse(init.read_text())) or ''
            if 'above it' in doc or 'above them' in doc:
                yield init.parent, listed_in(doc, init.parent)


def listed_in(doc, folder):
    """Return the modules and subpackages that a map lists, in its order."""
    there = {path.stem for path in folder.iterdir() if path.suffix == '.py' or path.is_dir()}
    words = (re.match(r'\s*(\w+)/?\s{2,}\S', line) for line in doc.splitlines())
    return [word.group(1) for word in words if word and word.group(1) in there]


def below_in_the_map(source, text):
    """Return what a file imports that a map lists below the place of the file."""
    found = set()
    for folder, listed in maps_with_an_order():
        if folder not in source.parents or source == folder / '__init__.py':
            continue
        package = source.relative_to(ROOT).parts[0]
        dotted = module_name(folder / '__init__.py')
        mine = source.relative_to(folder).with_suffix('').parts[0]
        if mine not in listed:
            continue
        for module in modules_imported(package, imported_by(source, text)):
            parts = module.removeprefix(f'{dotted}.').split('.')
            if module.startswith(f'{dotted}.') and parts[0] in listed:
                allowed = MAY_LOOK_UP.get((package, mine), set())
                if listed.index(parts[0]) > listed.index(mine) and parts[0] not in allowed:
                    found.add(module)
    return found


@every_package
def test_every_module_is_in_a_room_of_the_map(package):
    for source in sources(package):
        if source == ROOT / package / package / '__init__.py':
            continue
        room = room_of(package, module_name(source))
        assert room in ROOMS[package], f'{source} is in none of the rooms {ROOMS[package]}'


@every_package
def test_a_room_imports_rooms_before_it_only(package):
    for source in sources(package):
        # The package itself offers names of all rooms and imports them on first use.
        if source == ROOT / package / package / '__init__.py':
            continue
        forbidden = forbidden_rooms(package, source, source.read_text())
        assert not forbidden, f'{source} imports {forbidden}'


@every_package
def test_a_module_imports_modules_above_it_in_the_map_only(package):
    for source in sources(package):
        below = below_in_the_map(source, source.read_text())
        assert not below, f'{source} imports {below}'


def test_every_map_with_an_order_is_understood():
    folders = {str(folder.relative_to(ROOT)): listed for folder, listed in maps_with_an_order()}
    assert len(folders) >= 5
    assert all(len(listed) > 3 for listed in folders.values()), folders


def detectors_known_by(source, text):
    """Return what a file of calibration or metrics imports of detectors and their fitting."""
    return {
        name
        for name in imported_by(source, text)
        if name.startswith('safe_training.fitting')
        or (
            name.startswith('safe_monitor_node.') and not name.startswith('safe_monitor_node.bands')
        )
    }


@pytest.mark.parametrize('room', ['calibration', 'metrics'])
def test_calibration_and_metrics_know_no_detector(room):
    for source in (ROOT / 'safe_training' / 'safe_training' / room).rglob('*.py'):
        known = detectors_known_by(source, source.read_text())
        assert not known, f'{source} imports {known}'


# Where the name of a module is made when the program runs: tables of modules, loaded on first use.
MAKES_NAMES = {
    *(f'{package}/{package}/__init__.py' for package in PACKAGES),
    'safe_monitor_node/safe_monitor_node/detectors/registry.py',
    'safe_training/safe_training/cli/main.py',
}


def hidden_imports(source, text):
    """Return the lines on which a file imports a module whose name cannot be read in the file."""
    if str(source.relative_to(ROOT)) in MAKES_NAMES:
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and is_import_call(node)
        and not (node.args and isinstance(getattr(node.args[0], 'value', None), str))
    ]


@every_package
def test_every_import_can_be_read_in_the_file(package):
    for source in sources(package):
        lines = hidden_imports(source, source.read_text())
        assert not lines, f'{source}:{lines}: import a module by a literal name'


# Forbidden imports, each with the file that it is added to.
HIDDEN_WAYS = [
    ('safe_training/safe_training/recordings/labels.py', 'from safe_training import judge'),
    (
        'safe_monitor_node/safe_monitor_node/detectors/signal.py',
        'from safe_monitor_node import EpisodeMonitor',
    ),
    (
        'safe_training/safe_training/recordings/untrusted/bag.py',
        "import importlib\nimportlib.import_module('safe_training.cli.main')",
    ),
    (
        'safe_training/safe_training/recordings/untrusted/bag.py',
        "from importlib import import_module\nimport_module('safe_' + 'training.cli.main')",
    ),
    (
        'safe_training/safe_training/metrics/ranking.py',
        'from safe_training.fitting.learned import fit_learned',
    ),
    (
        'safe_training/safe_training/calibration/curves.py',
        'from safe_training.fitting import density',
    ),
    (
        'safe_training/safe_training/metrics/ranking.py',
        'from typing import TYPE_CHECKING\n'
        'if TYPE_CHECKING:\n    from safe_training.evaluation.splits import Split',
    ),
    ('vla_feature_bridge/vla_feature_bridge/errors.py', 'import vla_feature_bridge.rollout'),
    ('vla_feature_bridge/vla_feature_bridge/errors.py', 'from vla_feature_bridge import Rollout'),
    (
        'vla_feature_bridge/vla_feature_bridge/rollout_set/layout.py',
        'from vla_feature_bridge.rollout_set import writer',
    ),
    (
        'safe_monitor_node/safe_monitor_node/calibrated_detector.py',
        'from safe_monitor_node.storage.detector_folder import load_detector',
    ),
    ('safe_training/safe_training/sweep/grid.py', 'from torch import load as l\nl(1)'),
    ('safe_training/safe_training/sweep/grid.py', "YAML(typ='unsafe')"),
    ('safe_training/safe_training/sweep/grid.py', 'YAML()'),
    ('safe_training/safe_training/sweep/grid.py', 'from ruamel.yaml import YAML as Y\nY()'),
    ('safe_training/safe_training/sweep/grid.py', 'import torch as t\nt.load(1)'),
    ('safe_training/safe_training/sweep/grid.py', 'import numpy as np\nnp.load(1)'),
]


@pytest.mark.parametrize(('file', 'lines'), HIDDEN_WAYS)
def test_a_forbidden_import_is_found(file, lines):
    source = ROOT / file
    text = f'{source.read_text()}\n{lines}\n'
    package = source.relative_to(ROOT).parts[0]
    calibrates = source.parent.name in ('calibration', 'metrics')
    assert (
        forbidden_rooms(package, source, text)
        or below_in_the_map(source, text)
        or hidden_imports(source, text)
        or (calibrates and detectors_known_by(source, text))
        or executed_by(text)
    )


def test_a_folder_above_the_checkout_changes_nothing(monkeypatch):
    moved = Path('/home/user/ros/nodes/untrusted')
    monkeypatch.setitem(globals(), 'ROOT', moved)
    package = moved / 'safe_training' / 'safe_training'
    assert not knows_ros(package / 'cli' / 'main.py')
    assert not is_untrusted(package / 'recordings' / 'labels.py')


def is_untrusted(source):
    return 'untrusted' in source.relative_to(ROOT).parts


def test_what_reads_untrusted_bytes_knows_nothing_else():
    room = 'safe_training.recordings'
    for source in (ROOT / 'safe_training' / 'safe_training' / 'recordings').rglob('*.py'):
        if not is_untrusted(source):
            continue
        for name in imported_by(source):
            if name.split('.')[0] in OURS - {'vla_feature_bridge'}:
                allowed = name.startswith((f'{room}.untrusted', f'{room}.errors'))
                assert allowed, f'{source} imports {name}'


def files_to_read():
    places = [ROOT / 'launch' / 'safe_bringup', ROOT / 'test' / 'bench']
    files = [source for package in PACKAGES for source in sources(package)]
    return files + [source for place in places for source in place.rglob('*.py')]


def test_no_module_is_too_long_to_read():
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files_to_read()
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert not too_long, f'divide them; a module has at most {LONGEST_MODULE} lines'


def function_lengths(text):
    """Yield the name, first line and number of lines of each function, without its docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            documented = len(docstring.split('\n')) if docstring else 0
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1 - documented


def test_no_function_is_too_long_to_read():
    too_long = [
        f'{file.relative_to(ROOT)}:{line} {name}: {length} lines'
        for file in files_to_read()
        for name, line, length in function_lengths(file.read_text())
        if length > LONGEST_FUNCTION
    ]
    assert not too_long, f'divide them; a function has at most {LONGEST_FUNCTION} lines'


def test_a_docstring_does_not_make_a_function_long():
    text = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    assert list(function_lengths(text)) == [('f', 1, 2)]


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


# The same by the import of the name.
EXECUTING_NAMES = {name for name in EXECUTING_CALLS if '.' in name} | {
    'numpy.load',  # only as np.load(..., allow_pickle=False)
    'yaml',
}


def names_in(tree):
    """Return the full name of each name that a module imports, by the name it has there."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}
    return names


def executed_by(text):
    """Return the lines of a module that may execute what they read, each with the reason."""
    found = []
    for node, names in imports_of(text):
        if isinstance(node, ast.ImportFrom) and names & EXECUTING_NAMES:
            found.append(f'{node.lineno}: imports {names & EXECUTING_NAMES}')
    tree = ast.parse(text)
    full = names_in(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = called(node).partition('.')
        name = f'{full.get(first, first)}{dot}{rest}'
        options = {entry.arg: entry.value for entry in node.keywords}
        if name in EXECUTING_CALLS:
            found.append(f'{node.lineno}: calls {name}')
        allowed = options.get('allow_pickle')
        if allowed is not None and getattr(allowed, 'value', None) is not False:
            found.append(f'{node.lineno}: allows pickle')
        if name == 'numpy.load' and allowed is None:
            found.append(f'{node.lineno}: say allow_pickle=False')
        if name.rpartition('.')[2] == 'YAML' and (
            node.args or getattr(options.get('typ'), 'value', None) != 'safe'
        ):
            found.append(f"{node.lineno}: say YAML(typ='safe')")
    return found


@every_package
def test_no_file_can_be_executed_as_code(package):
    for source in sources(package):
        assert not top_level(imported_by(source)) & EXECUTES_DATA, source
        assert not executed_by(source.read_text()), source


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
