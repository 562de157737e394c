# SPDX-License-Identifier: Apache-2.0
"""What each package may know: a robot needs no training code, and data is never executed."""

import ast
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import source_tree
from source_tree import (
    EXECUTES_DATA,
    MAY_IMPORT,
    NOT_ON_A_ROBOT,
    OURS,
    PACKAGES,
    ROOT,
    ROS,
    RUNTIME,
    executed_by,
    imported_by,
    imports_of,
    is_import_call,
    is_untrusted,
    knows_ros,
    module_name,
    sources,
    top_level,
)

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
    'vla_feature_bridge': ('', 'rollout_set', 'wire', 'taps', 'relays', 'ros', 'nodes'),
    'safe_monitor_node': (
        'threads',
        'detectors',
        'bands',
        'calibrated_detector',
        'storage',
        'monitor',
        'black_box',
        'looking',
        'nodes',
        'verbs',
        '__main__',
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


@cache
def maps_with_an_order():
    """Return the folders with a map whose modules may import only modules above them."""
    found = []
    for package in PACKAGES:
        for init in (ROOT / package / package).rglob('__init__.py'):
            doc = ast.get_docstring(ast.parse(init.read_text())) or ''
            if 'above it' in doc or 'above them' in doc:
                found.append((init.parent, listed_in(doc, init.parent)))
    return found


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
    'vla_feature_bridge/vla_feature_bridge/taps/__init__.py',
    'safe_monitor_node/safe_monitor_node/detectors/registry.py',
    # Message types of other projects, by the name of an installed package of ROS interfaces.
    'vla_feature_bridge/vla_feature_bridge/ros/message_types.py',
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
    moved = Path('ros', 'nodes', 'untrusted')
    monkeypatch.setattr(source_tree, 'ROOT', moved)
    package = moved / 'safe_training' / 'safe_training'
    assert not knows_ros(package / 'cli' / 'main.py')
    assert not is_untrusted(package / 'recordings' / 'labels.py')


def test_what_reads_untrusted_bytes_knows_nothing_else():
    room = 'safe_training.recordings'
    for source in (ROOT / 'safe_training' / 'safe_training' / 'recordings').rglob('*.py'):
        if not is_untrusted(source):
            continue
        for name in imported_by(source):
            if name.split('.')[0] in OURS - {'vla_feature_bridge'}:
                allowed = name.startswith((f'{room}.untrusted', f'{room}.errors'))
                assert allowed, f'{source} imports {name}'


@every_package
def test_no_file_can_be_executed_as_code(package):
    for source in sources(package):
        assert not top_level(imported_by(source)) & EXECUTES_DATA, source
        assert not executed_by(source.read_text()), source
