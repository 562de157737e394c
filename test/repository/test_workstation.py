# SPDX-License-Identifier: Apache-2.0
"""The ways to install on a ROS 2 workstation agree, and leave the packages of ROS 2 alone.

The README, the Dockerfile, continuous integration and ``./dev`` install the same packages in the
same way. What a package needs comes from rosdep or from pip, never from both.
"""

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

TOP = Path(__file__).parents[2]
PYTHON_PACKAGES = ['vla_feature_bridge', 'safe_monitor_node', 'safe_training', 'launch']
PACKAGES = ['safe_msgs', *PYTHON_PACKAGES]
OWN = {'safe_msgs', 'vla_feature_bridge', 'safe_monitor_node', 'safe_training', 'safe_bringup'}
KEYS = yaml.safe_load((TOP / 'test/repository/rosdep_keys.yaml').read_text())
HELD = ['numpy', 'scipy', 'matplotlib']

README = TOP / 'README.md'
DOCKERFILE = TOP / 'docker/Dockerfile'
WORKFLOW = TOP / '.github/workflows/ci.yml'


# --- commands


def workstation_block() -> str:
    section = README.read_text().split('## Use it on a ROS 2 workstation')[1]
    return section.split('```bash\n')[1].split('```')[0]


def dockerfile_runs() -> list[str]:
    text = DOCKERFILE.read_text().replace('\\\n', ' ')
    return [line.removeprefix('RUN ') for line in text.splitlines() if line.startswith('RUN ')]


def workflow_runs() -> list[str]:
    job = yaml.safe_load(WORKFLOW.read_text())['jobs']['colcon']
    return [step['run'] for step in job['steps'] if 'run' in step]


def installing(script: str) -> list[str]:
    """Return the commands of a script that install or build, without options for the output."""
    commands = re.split(r'\n|&&', re.sub(r' +#.*', '', script))
    chosen = (
        r'rosdep install|/usr/bin/python3 -m venv|touch|source venv|pip install|'
        r'python -m colcon build'
    )
    quiet = r' --no-cache-dir| --event-handlers \S+'
    found = [re.sub(quiet, '', command.strip()) for command in commands]
    return [command for command in found if re.match(chosen, command)]


def first_of_each(commands: list[str]) -> list[str]:
    """Return the commands without repetitions: each step of CI is a shell of its own."""
    return list(dict.fromkeys(commands))


def test_the_readme_installs_as_the_container_and_continuous_integration_do():
    readme = installing(workstation_block())
    assert readme == [
        'rosdep install --from-paths src --ignore-src -y',
        '/usr/bin/python3 -m venv --system-site-packages venv',
        'touch venv/COLCON_IGNORE',
        'source venv/bin/activate',
        'pip install -r src/safe/requirements/runtime.txt',
        'pip install -r src/safe/requirements/training.txt',
        'python -m colcon build --packages-up-to safe_bringup',
    ]
    assert first_of_each(installing('\n'.join(dockerfile_runs()))) == readme
    assert first_of_each(installing('\n'.join(workflow_runs()))) == readme


def test_nothing_builds_with_the_python_of_colcon():
    scripts = [workstation_block(), *dockerfile_runs(), *workflow_runs()]
    for script in scripts:
        assert not re.search(r'(?<!-m )\bcolcon (build|test)\b(?!-)', script), script


def test_dev_builds_with_the_python_of_its_environment():
    assert re.search(r'^ +python -m colcon ', (TOP / 'dev').read_text(), re.M)


def test_the_container_builds_for_each_distribution():
    text = DOCKERFILE.read_text()
    assert 'FROM ros:${ROS_DISTRO}' in text
    matrix = yaml.safe_load(WORKFLOW.read_text())['jobs']['colcon']['strategy']['matrix']
    assert matrix['distro'] == ['jazzy', 'kilted']
    for distro in matrix['distro']:
        command = f'--build-arg ROS_DISTRO={distro}'
        assert command in text
        assert command in (TOP / 'docs/how-to/install_on_a_workstation.md').read_text()


def test_the_container_copies_what_it_reads_before_the_sources():
    before, _ = DOCKERFILE.read_text().split('COPY . src/safe')
    copied = re.findall(r'^COPY (.+) (\S+)$', before, re.M)
    places = {f'{to}{Path(name).name}' for names, to in copied for name in names.split()}
    expected = {f'src/safe/{name}/package.xml' for name in PACKAGES}
    read = set(re.findall(r'-r (\S+)', ' '.join(dockerfile_runs())))
    assert places == expected | read
    for names, _ in copied:
        for name in names.split():
            assert (TOP / name).is_file()


def test_the_container_is_not_root_and_ends_on_signals() -> None:
    # Fast DDS gives the messages of root to no other user of the computer.
    lines = DOCKERFILE.read_text().splitlines()
    (user,) = [line.split()[1] for line in lines if line.startswith('USER ')]
    assert user.split(':')[0] not in ('0', 'root')
    last = lines.index(f'USER {user}')
    assert not any(line.startswith('RUN ') for line in lines[last:])
    assert 'WORKDIR /home/safe' in lines, 'a folder in which this user may write'
    entry = (TOP / 'docker/entrypoint.sh').read_text().splitlines()
    assert entry[-1] == 'exec "$@"'


def test_the_container_ignores_what_dev_makes():
    ignored = (TOP / '.dockerignore').read_text().splitlines()
    made = re.findall(r'^/([\w.*]+)/$', (TOP / '.gitignore').read_text(), re.M)
    assert {'.venv*', 'build', 'install', 'log', 'demo_out'} <= set(made)
    assert set(made) <= set(ignored)


# --- packages


def pins(name: str) -> dict[str, str]:
    """Return the packages of a requirements file, with their versions."""
    text = (TOP / 'requirements' / f'{name}.txt').read_text()
    return dict(re.findall(r'^([\w.-]+)==(\S+)', text, re.M))


def keys_of_distribution() -> dict[str, str]:
    """Return the rosdep key that stands beside each package of ``distribution.txt``."""
    text = (TOP / 'requirements/distribution.txt').read_text()
    return dict(re.findall(r'^([\w.-]+)==\S+  # (\S+)$', text, re.M))


def keys_of_package(name: str) -> set[str]:
    root = ElementTree.parse(TOP / name / 'package.xml').getroot()
    return {str(e.text) for e in root if e.tag.endswith('depend')} - OWN


def needs_of_package(name: str) -> dict[str, str]:
    """Return what ``setup.py`` needs: the lowest version of each package, '' if it has none."""
    tree = ast.parse((TOP / name / 'setup.py').read_text())
    (call,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'setup'
    )
    (needs,) = (k.value for k in call.keywords if k.arg == 'install_requires')
    found = [re.fullmatch(r'([\w.-]+?)(?:>=([\d.]+))?', need) for need in ast.literal_eval(needs)]
    assert all(found), f'{name}/setup.py: expected NAME or NAME>=VERSION'
    return {need[1]: need[2] or '' for need in found if need}


def number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r'\d+', text))


def test_rosdep_knows_every_key():
    known = set(KEYS['python']) | set(KEYS['ros'])
    for name in PACKAGES:
        unknown = keys_of_package(name) - known
        assert not unknown, f'{name}/package.xml: not in rosdep_keys.yaml: {unknown}'


def test_pip_installs_nothing_that_the_distribution_brings():
    distribution, pip = pins('distribution'), {**pins('runtime'), **pins('training')}
    assert set(HELD) <= set(distribution)
    assert not set(distribution) & set(pip)
    assert keys_of_distribution().keys() == distribution.keys()
    for name in ('dev', 'constraints'):
        assert not set(HELD) & set(pins(name)), name


@pytest.mark.parametrize('name', PYTHON_PACKAGES)
def test_every_need_comes_from_rosdep_or_from_pip(name):
    keys, pip = keys_of_distribution(), {**pins('runtime'), **pins('training')}
    for need in needs_of_package(name):
        if need in keys:
            assert keys[need] in keys_of_package(name), f'{name}/package.xml lacks {keys[need]}'
        else:
            assert need in pip, f'{need} is neither in distribution.txt nor in runtime.txt'


def test_every_package_of_the_distribution_is_a_key_that_is_asked_for():
    asked = set().union(*map(keys_of_package, PACKAGES))
    assert set(keys_of_distribution().values()) <= asked


def test_the_distribution_is_new_enough():
    keys = keys_of_distribution()
    for name in PYTHON_PACKAGES:
        for need, lowest in needs_of_package(name).items():
            if need in keys:
                found = str(KEYS['python'][keys[need]]['version'])
                assert number(found) >= number(lowest), f'{name}: {need} {lowest}, found {found}'


def test_our_pins_are_new_enough():
    ours = {**pins('distribution'), **pins('runtime'), **pins('training')}
    for name in PYTHON_PACKAGES:
        for need, lowest in needs_of_package(name).items():
            assert number(ours[need]) >= number(lowest), f'{name}: {need}'


# --- ./dev


def run_function(name: str, **variables: str) -> list[str]:
    """Return the lines that a function of ``./dev`` prints."""
    text = (TOP / 'dev').read_text()
    functions = text[: text.index('\nmain "$@"')].replace('set -euo pipefail', 'set -u')
    given = ' '.join(f'{key}={value!r}' for key, value in variables.items())
    script = f'{functions}\nROOT={str(TOP)!r} {given}\n{name}'
    done = subprocess.run(['bash', '-c', script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def requirement_files(kind: str) -> list[str]:
    variables = {'KIND': kind, 'DISTRO': 'jazzy', 'VENV': '/nowhere', 'SAFE_EXTRAS': '0'}
    return [Path(line).stem for line in run_function('requirement_files', **variables)]


def test_dev_installs_what_the_readme_does_beside_a_sourced_distribution():
    assert requirement_files('sourced') == ['runtime', 'training', 'dev']
    wheels = requirement_files('wheels')
    assert wheels == ['ros-jazzy', 'distribution', 'runtime', 'training', 'vision', 'dev']


def test_dev_holds_the_numpy_of_a_sourced_distribution():
    asked = run_function('of_distribution', VENV=sys.prefix)
    for name in HELD:
        assert f'{name}=={version(name)}' in asked


def test_dev_installs_what_a_sourced_distribution_lacks(tmp_path):
    empty = tmp_path / 'bin'
    empty.mkdir()
    # Isolated, and without site-packages: a Python that has none of these packages.
    (empty / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    (empty / 'python').chmod(0o755)
    asked = run_function('of_distribution', VENV=str(tmp_path))
    assert asked == [f'{name}=={pin}' for name, pin in pins('distribution').items()]
