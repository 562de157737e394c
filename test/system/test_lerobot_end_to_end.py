# SPDX-License-Identifier: Apache-2.0
"""From a policy that runs to an alarm: tap, sender, bridge, DDS, monitor, each in its process.

The variable ``SAFE_LEROBOT_PYTHON`` names a Python with LeRobot, for example::

    python3.12 -m venv lerobot && lerobot/bin/pip install 'lerobot[evaluation]==0.6.1'
    SAFE_LEROBOT_PYTHON=$PWD/lerobot/bin/python ./dev test test/system/test_lerobot_end_to_end.py

LeRobot then evaluates an ACT policy that its plugin taps. Without the variable, the same tests run
with a small policy of PyTorch. The policy is tiny and random; a disturbed robot is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bridge_listener import BridgeListener
from shared_files import TOP as ROOT

from safe_bringup.live import Observer, Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_training.cli.main import main as safe_training
from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire import StepReceiver

HERE = Path(__file__).parent
PACKAGE = ROOT / 'vla_feature_bridge'
LEROBOT = os.environ.get('SAFE_LEROBOT_PYTHON', '')
KIND = 'lerobot' if LEROBOT else 'flow'
FEATURE = {
    'lerobot': FeatureSpec('pre_action', 32, ('horizon',), (('horizon', 'mean'),)),
    'flow': FeatureSpec(
        'pre_velocity', 16, ('denoise', 'horizon'), (('horizon', 'mean'), ('denoise', 'mean'))
    ),
}[KIND]


class TappedPolicy:
    """``tapped_policy.py`` in a process of its own."""

    def __init__(self, folder: Path, site: Path | None, address: str, *options: object) -> None:
        self.out, self.log = folder / 'states.npz', folder / 'policy.log'
        arguments = [HERE / 'tapped_policy.py', KIND, self.out, *options]
        if site is not None:
            arguments += ['--policy', site.parent / 'policy']
        with self.log.open('w') as log:
            self._process = subprocess.Popen(
                [LEROBOT or sys.executable, *map(str, arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(site, address),
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def states(self) -> list[np.ndarray]:
        """Return the hidden states of each episode, which the policy recorded without a tap."""
        assert self._process.wait(240) == 0, self.log.read_text()
        with np.load(self.out) as arrays:
            return [arrays[name] for name in sorted(arrays)]

    def kill(self) -> None:
        """End the process if it still runs."""
        self._process.kill()
        self._process.wait()


def _environment(site: Path | None, address: str) -> dict[str, str]:
    paths = [ROOT / 'test' / 'support', PACKAGE / 'test' / 'taps']
    if site is None:
        paths += [Path(path) for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path]
    else:  # an environment without ROS: nothing of ours is in it
        paths.append(site)
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(map(str, paths)),
        'HF_HUB_OFFLINE': '1',
        'SAFE_BRIDGE': address,
        'SAFE_WAIT': '30',
    }


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Return the folder of the installed distributions for LeRobot; None without LeRobot."""
    if not LEROBOT:
        return None
    folder = tmp_path_factory.mktemp('lerobot')
    leave = shutil.ignore_patterns('build', 'test', '*.egg-info', '__pycache__')
    source = shutil.copytree(PACKAGE, folder / 'source', ignore=leave)
    command = [LEROBOT, '-m', 'pip', 'install', '-q', '--no-deps', '--target', folder / 'site']
    sources = [source, source / 'plugins' / 'lerobot_policy_safe']
    environment = {name: v for name, v in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.run([*command, *sources], check=True, env=environment)
    return folder / 'site'


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory, site: Path | None) -> Path:
    """Return a detector of episodes that were recorded through the tap and the socket."""
    folder = tmp_path_factory.mktemp('recorded')
    episodes = [
        *recorded(folder / 'good', site, '--episodes', 20, '--seed', 100),
        *recorded(folder / 'bad', site, '--episodes', 10, '--seed', 300, '--disturbed'),
    ]
    with RolloutSetWriter(folder / 'set', feature=FEATURE, policy=KIND) as writer:
        for number, states in enumerate(episodes):
            writer.add(rollout(states, number < 20, number))
    arguments = ['fit', folder / 'set', '--detector', 'mahalanobis', '--out', folder / 'detector']
    options = ['--alpha', '0.2', '--unseen-ratio', '0', '--train-ratio', '0.5', '--json']
    assert safe_training([*map(str, arguments), *options]) == 0
    return folder / 'detector'


def recorded(folder: Path, site: Path | None, *options: object) -> list[np.ndarray]:
    """Return the features of the episodes of one process, as a receiver without ROS gets them."""
    folder.mkdir()
    messages: list[Any] = []
    address = f'unix:{folder}/bridge.sock'
    receiver = StepReceiver([address], lambda source, message: messages.append(message))
    receiver.set_status(True)
    policy = TappedPolicy(folder, site, address, *options)
    try:
        truth = policy.states()
        deadline = time.monotonic() + 20
        while ends(messages) < len(truth):
            assert time.monotonic() < deadline, policy.log.read_text()
            time.sleep(0.02)
    finally:
        policy.kill()
        receiver.close()
    episodes: dict[str, list[np.ndarray]] = {}
    for message in messages:
        if isinstance(message, PolicyStep):
            assert message.feature_name == str(FEATURE)
            episodes.setdefault(message.episode_id, []).append(message.features)
    for states, expected in zip(episodes.values(), truth, strict=True):
        np.testing.assert_allclose(np.array(states), expected, rtol=0, atol=1e-6)
    return [np.array(states) for states in episodes.values()]


def ends(messages: list[Any]) -> int:
    return sum(isinstance(m, EpisodeEventRecord) and m.kind == 'end' for m in messages)


def rollout(states: np.ndarray, success: bool, number: int) -> Rollout:
    return Rollout(
        features=states.astype(np.float32),
        task='reach',
        success=success,
        episode_index=number,
        feature_name=str(FEATURE),
        exec_horizon=5,
    )


@pytest.fixture
def run_bridge(own_domain: int, tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Start a bridge; it must end with 0 on interrupt."""
    started: list[Process] = []

    def start(address: str) -> Process:
        process = Process(
            'vla_feature_bridge.nodes.bridge', {'listen': [address]}, tmp_path / 'bridge.log'
        )
        started.append(process)
        return process

    yield start
    for process in started:
        assert process.stop() == 0, process.log()
        assert 'Traceback' not in process.log(), process.log()


# The bridge finds its subscribers before the policy starts: else the listener could miss the first
# steps.
@pytest.mark.ros
@pytest.mark.parametrize('disturbed', [True, False], ids=['disturbed', 'undisturbed'])
def test_the_monitor_scores_what_the_policy_computes(
    run_bridge: Callable[[str], Process],
    run_monitor: Callable[..., Process],
    detector: Path,
    site: Path | None,
    tmp_path: Path,
    disturbed: bool,
) -> None:
    address = f'unix:{tmp_path}/bridge.sock'
    run_bridge(address)
    run_monitor(detector_folder=detector)
    options = ['--disturbed'] if disturbed else []
    listener = BridgeListener()
    policy = None
    try:
        with Observer() as observer:
            listener.spin_until_found('vla/policy_step', subscribers=2)
            policy = TappedPolicy(tmp_path, site, address, '--episodes', 2, '--seed', 7, *options)
            while not policy.has_ended:
                observer.spin(0.05)
                listener.spin(0.05)
            truth = policy.states()
            listener.spin_until(
                lambda: [kind for kind, _ in listener.kinds()].count('end') == 2, 'both ends'
            )
            observer.spin(1.0)
            episodes = dict(observer.episodes)
    finally:
        if policy is not None:
            policy.kill()
        listener.close()
    loaded = load_detector(detector)
    names = list(dict.fromkeys(step.episode_id for step in listener.steps))
    assert len(names) == len(truth) == 2
    alarms = []
    for name, states in zip(names, truth, strict=True):
        received = [step.features for step in listener.steps if step.episode_id == name]
        scored = episodes[name]
        offline = loaded.detector.score(rollout(states, not disturbed, 0))
        assert scored.steps == list(range(len(states)))
        np.testing.assert_allclose(features_of(received), states, rtol=0, atol=1e-6)
        np.testing.assert_allclose(scored.scores, offline, rtol=1e-5, atol=1e-6)
        assert scored.alarm_step == loaded.band.at(0.2).first_crossing(offline)
        assert scored.ended
        alarms.append(scored.alarm_step)
    if disturbed:
        assert set(alarms) != {None}, 'an alarm reaches the topic'
    log = policy.log.read_text()
    assert KIND == 'flow' or 'Imported third-party plugin: lerobot_policy_safe' in log


def features_of(tensors: list[Any]) -> np.ndarray:
    """Return the features of messages, which are float32."""
    assert {tensor.dtype for tensor in tensors} == {'float32'}
    return np.array([np.frombuffer(bytes(tensor.data), '<f4') for tensor in tensors])
