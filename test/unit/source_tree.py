# SPDX-License-Identifier: Apache-2.0
"""The sources of the packages: what they import, and what they call that would run data."""

import ast
from functools import cache
from pathlib import Path

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
    'action_msgs',
    'ament_index_python',
    'builtin_interfaces',
    'diagnostic_msgs',
    'geometry_msgs',
    'launch',
    'launch_ros',
    'lifecycle_msgs',
    'message_filters',
    'rcl_interfaces',
    'rclpy',
    'ros2cli',
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
    return not {'nodes', 'ros', 'verbs'}.isdisjoint(inside)


def is_untrusted(source):
    return 'untrusted' in source.relative_to(ROOT).parts


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
