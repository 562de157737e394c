# SPDX-License-Identifier: Apache-2.0
"""What the system tests share: detectors, monitor processes, and a ROS domain for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_bench import Outcome, print_table
from probe import Probe
from shared_files import DATA

from safe_bringup.live import Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_training.cli.main import main as safe_training
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.step import PolicyStep

_domains = itertools.count(1)


#: What came of injected faults.
OUTCOMES = pytest.StashKey[list[Outcome]]()


def new_domain() -> int:
    """Return a ROS domain that no other test of this run uses.

    ``SAFE_TEST_PART=K/N`` takes the domains of the K-th of N runs at the same time, K from 0.
    """
    part, parts = map(int, os.environ.get('SAFE_TEST_PART', '0/1').split('/'))
    base, count = int(os.environ.get('ROS_DOMAIN_ID', '0')), 100 // parts
    return part * count + (base + next(_domains)) % count + 1


@pytest.fixture(scope='session')
def domains() -> Callable[[], int]:
    """Return a function that returns a ROS domain that no other test of this run uses."""
    return new_domain


@pytest.fixture
def own_domain(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a ROS domain that no other test of this run uses."""
    domain = new_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    return domain


@pytest.fixture(scope='module')
def domain_of_module() -> Iterator[int]:
    """Yield a ROS domain for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        domain = new_domain()
        patch.setenv('ROS_DOMAIN_ID', str(domain))
        yield domain


@pytest.fixture
def add_outcome(request: pytest.FixtureRequest) -> Callable[..., Outcome]:
    """Return a function that adds a row to the table of injected faults."""

    def add(fault: str, how: str, expected: str, limit: float) -> Outcome:
        outcome = Outcome(fault, how, expected, limit)
        request.config.stash.setdefault(OUTCOMES, []).append(outcome)
        return outcome

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what came of every injected fault."""
    if outcomes := terminalreporter.config.stash.get(OUTCOMES, []):
        terminalreporter.section('injected faults')
        print_table(outcomes, terminalreporter.write_line)


@pytest.fixture(scope='session')
def rollout_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shipped rollouts, converted."""
    folder = tmp_path_factory.mktemp('live') / 'rollouts'
    assert (
        safe_training(['convert', str(DATA / 'miniature_disturbed.npz'), str(folder), '--json'])
        == 0
    )
    return folder


def fit(rollouts: Path, detector: str, folder: Path, *settings: str) -> Path:
    """Fit a small detector through the command line."""
    arguments = [
        'fit',
        str(rollouts),
        '--detector',
        detector,
        '--out',
        str(folder),
        '--json',
        '--alpha',
        '0.2',
    ]
    for setting in settings:
        arguments += ['--param', setting]
    assert safe_training(arguments) == 0
    return folder


@pytest.fixture(scope='session')
def mlp_folder(rollout_folder: Path) -> Path:
    """Return a folder of SAFE-MLP with its band at alpha 0.2."""
    return fit(rollout_folder, 'safe_mlp', rollout_folder.parent / 'mlp', 'epochs=30', 'hidden=32')


@pytest.fixture(scope='session')
def lstm_folder(rollout_folder: Path) -> Path:
    """Return a folder of SAFE-LSTM with its band at alpha 0.2."""
    return fit(rollout_folder, 'safe_lstm', rollout_folder.parent / 'lstm', 'epochs=8', 'hidden=32')


@pytest.fixture(scope='session')
def rollouts(rollout_folder: Path) -> RolloutSet:
    """Return the converted rollouts, opened."""
    return RolloutSet.open(rollout_folder)


@pytest.fixture(scope='session')
def quiet(rollouts: RolloutSet, mlp_folder: Path) -> Callable[..., PolicyStep]:
    """Return steps that SAFE-MLP scores as nominal, for any t: ``quiet(t, episode='e')``."""
    loaded = load_detector(mlp_folder)
    # An unknown task is never nominal: the monitor would be learning it.
    known = list(itertools.islice((r for r in rollouts if r.task in loaded.known_tasks), 60))
    margins = [
        (loaded.detector.score(r) - loaded.band.at(0.2).upper[: len(r)]).max() for r in known
    ]
    rollout = known[int(np.argmin(margins))]

    def step(t: int, episode: str = 'e') -> PolicyStep:
        made = rollout.step(min(t, len(rollout) - 1))
        made.step, made.episode_id = t, episode
        # Features that stay the same are INVALID.
        made.features = made.features * np.float32(1 + 1e-5 * t)
        return made

    return step


@pytest.fixture
def probe(own_domain: int) -> Iterator[Probe]:
    """Yield a probe in a domain of its own."""
    made = Probe()
    yield made
    made.close()


@pytest.fixture
def run_monitor(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start monitor processes; each must end with 0 on interrupt, without a traceback."""
    started: list[Process] = []

    def start(arguments: Sequence[str] = (), /, **parameters: Any) -> Process:
        log = tmp_path / f'monitor{len(started)}.log'
        process = Process('safe_monitor_node.nodes.monitor', parameters, log, arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        status = process.stop()
        assert status == 0, process.log()
        assert 'Traceback' not in process.log(), process.log()
