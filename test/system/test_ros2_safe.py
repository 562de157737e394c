# SPDX-License-Identifier: Apache-2.0
"""``ros2 safe VERB`` with the real ros2cli, from the entry points of both packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from safe_monitor_node.verbs.live import VERBS
from safe_training.cli.main import VERBS as OFFLINE_VERBS

TOP = Path(__file__).parents[2]
ROS2 = 'import sys; from ros2cli.cli import main; sys.exit(main())'

pytestmark = pytest.mark.skipif(
    find_spec('ros2cli') is None,
    reason='ros2cli is missing: it comes with a ROS 2 distribution, not PyPI',
)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Return the environment in which both packages are installed as their setup.py says."""
    folder = tmp_path_factory.mktemp('installed')
    for package in ('safe_monitor_node', 'safe_training'):
        command = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(folder)]
        subprocess.run(command, cwd=TOP / package, check=True, capture_output=True, timeout=120)
    return {**os.environ, 'PYTHONPATH': f'{folder}:{os.environ.get("PYTHONPATH", "")}'}


def ros2(environment, *words):
    return subprocess.run(
        [sys.executable, '-c', ROS2, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_the_list_of_verbs_has_every_verb_of_both_packages(installed):
    done = ros2(installed, 'safe', '--help')
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith('  ')}
    offline = {'label-recording' if name == 'label' else name for name in OFFLINE_VERBS}
    assert set(VERBS) | offline <= set(lines)
    assert lines['doctor'].endswith(
        'Find problems of monitors, topics and clocks, and say what to do'
    )
    assert 'Fit a detector and calibrate its band' in lines['fit']
    assert ros2(installed, 'safe').stdout == done.stdout
    assert 'failure monitors' in ros2(installed, '--help').stdout


def test_the_list_of_verbs_is_made_without_torch(installed):
    code = (
        'import sys\nfrom ros2cli.cli import main\n'
        "try:\n    main(argv=['safe', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, env=installed
    )
    assert done.returncode == 0, done.stderr
    assert "'torch'" not in done.stdout.splitlines()[-1], done.stdout
    assert "'sklearn'" not in done.stdout.splitlines()[-1]


def test_an_offline_verb_gets_its_options(installed):
    done = ros2(installed, 'safe', 'fit', '--help')
    assert done.returncode == 0, done.stderr
    assert '--detector' in done.stdout and 'safe_training fit' in done.stdout
    data = str(TOP / 'test' / 'data' / 'miniature_disturbed.npz')
    done = ros2(installed, 'safe', 'info', '--json', data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{')
    done = ros2(installed, 'safe', 'info', '/nowhere')
    assert done.returncode == 1
    assert '/nowhere' in done.stderr


def test_a_live_verb_runs_and_gives_its_exit_status(installed, own_domain):
    environment = {**installed, 'ROS_DOMAIN_ID': str(own_domain)}
    done = ros2(environment, 'safe', 'status', '--wait', '1')
    assert done.returncode == 1
    assert 'no robot yet' in done.stderr
    done = ros2(environment, 'safe', 'watch', '--once', '--wait', '1')
    assert done.returncode == 1
    assert 'no robot yet' in done.stdout
    done = ros2(environment, 'safe', 'doctor', '--wait', '1')
    assert done.returncode == 1
    assert 'problems found' in done.stdout
    done = ros2(environment, 'safe', 'label', 'good')
    assert done.returncode == 2


def test_the_verbs_next_to_ros2cli_are_those_without_it(installed):
    done = subprocess.run(
        [sys.executable, '-m', 'safe_monitor_node', '--help'],
        capture_output=True,
        text=True,
        timeout=60,
        env=installed,
    )
    for name in {*VERBS, 'fit', 'judge', 'label-recording'}:
        assert f'  {name} ' in done.stdout
