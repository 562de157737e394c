# SPDX-License-Identifier: Apache-2.0
"""No inference of a LeRobot policy is late when bridge or monitor are killed, or nobody reads.

The variable ``SAFE_LEROBOT_PYTHON`` names a Python with LeRobot::

    python3.12 -m venv lerobot && lerobot/bin/pip install 'lerobot[pi,smolvla]==0.6.1'
    SAFE_LEROBOT_PYTHON=$PWD/lerobot/bin/python ./dev test test/system/test_lerobot_killed_peers.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bridge_listener import BridgeListener
from rollout_factory import make_rollout
from shared_files import TOP as ROOT

from safe_bringup.live import Observer, Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from vla_feature_bridge.pooling import FeatureSpec

HERE = Path(__file__).parent
PACKAGE = ROOT / 'vla_feature_bridge'
LEROBOT = os.environ.get('SAFE_LEROBOT_PYTHON', '')
ALARM_STEP = 10
PHASES = ('without a tap', 'all alive', 'bridge killed', 'monitor killed', 'bridge stopped')
#: Width of the hidden state of the tiny policy of each class.
WIDTHS = {'smolvla': 48, 'pi0': 64}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not LEROBOT,
        reason='NOT CHECKED HERE: policies of LeRobot whose bridge and monitor are killed; '
        'SAFE_LEROBOT_PYTHON names a Python with LeRobot',
    ),
]


class PacedPolicy:
    """``paced_policy.py`` in a process of its own."""

    def __init__(self, kind: str, folder: Path, address: str) -> None:
        self.states, self.log = folder / 'states.npz', folder / 'policy.log'
        output = folder / 'policy.out'
        paths = [PACKAGE, PACKAGE / 'test' / 'taps']
        with output.open('w') as out, self.log.open('w') as errors:
            self._process = subprocess.Popen(
                [LEROBOT, HERE / 'paced_policy.py', kind, self.states, folder / 'vlm'],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                text=True,
                env={
                    **os.environ,
                    'PYTHONPATH': os.pathsep.join(map(str, paths)),
                    'HF_HUB_OFFLINE': '1',
                    'SAFE_BRIDGE': address,
                    'SAFE_WAIT': '60',
                },
            )
        self._output = output

    def say(self, word: str) -> None:
        """Send a line to the policy."""
        assert self._process.stdin is not None
        self._process.stdin.write(f'{word}\n')
        self._process.stdin.flush()

    def said(self) -> list[Any]:
        """Return what the policy has printed."""
        assert self._process.poll() in (None, 0), self.log.read_text()
        complete = self._output.read_text().rpartition('\n')[0].splitlines()
        # Libraries print lines of their own.
        return [json.loads(line) for line in complete if line.startswith(('[', '{'))]

    def times(self) -> np.ndarray:
        """Return the inferences, shape (inferences, 2): when each began and its time [s]."""
        return np.array([line for line in self.said() if isinstance(line, list)])

    def wait(self) -> dict[str, int]:
        """Wait for the end and return the counts of the sender."""
        assert self._process.wait(60) == 0, self.log.read_text()
        return self.said()[-1]

    def kill(self) -> None:
        """End the process if it still runs."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


@pytest.fixture
def run_node(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start nodes; each ends with 0 on interrupt, or is killed, without a traceback."""
    started: list[Process] = []

    def start(package: str, name: str, **parameters: Any) -> Process:
        log = tmp_path / f'{name}{len(started)}.log'
        started.append(Process(f'{package}.nodes.{name}', parameters, log))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() in (0, -9), process.log()
        assert 'Traceback' not in process.log(), process.log()


def clock_detector(folder: Path, width: int) -> Path:
    """Write a detector that alarms at ``ALARM_STEP``, whatever the features are."""
    pooling = (('horizon', 'mean'), ('denoise', 'mean'))
    spec = FeatureSpec('pre_velocity', width, ('denoise', 'horizon'), pooling)
    clock = make_detector('clock')
    clock.load_state({}, width)
    scores = clock.score(make_rollout(steps=ALARM_STEP + 1, dim=width, feature_name=str(spec)))
    threshold = scores[-2:].mean()
    band = Band(np.array([0.1]), np.full((1, 1000), threshold), kind='test', n_calibration=0)
    return CalibratedDetector(clock, spec, band, 0.1).save(folder)


def subscriptions(listener: BridgeListener) -> set[bytes]:
    """Return the subscriptions of steps that are known; a killed one stays for its lease."""
    found = listener.node.get_subscriptions_info_by_topic('vla/policy_step')
    return {bytes(info.endpoint_gid) for info in found}


@pytest.mark.parametrize('kind', WIDTHS)
def test_no_inference_is_late(
    kind: str, run_node: Callable[..., Process], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    detector = clock_detector(tmp_path / 'detector', WIDTHS[kind])
    address = f'unix:{tmp_path}/bridge.sock'

    def bridge() -> Process:
        return run_node('vla_feature_bridge', 'bridge', listen=[address], diagnostics_period=0.2)

    def monitor() -> Process:
        return run_node('safe_monitor_node', 'monitor', detector_folder=detector)

    policy, listener = PacedPolicy(kind, tmp_path, address), BridgeListener()
    phases: dict[str, tuple[float, float]] = {}

    def spend(seconds: float, phase: str) -> None:
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            observer.spin(0.02)
            listener.spin(0.02)
        first = phases.get(phase, (began, began))[0]
        phases[phase] = (first, time.monotonic())

    def wait_until(condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 240  # LeRobot is imported
        while not condition():
            assert time.monotonic() < deadline, (what, policy.log.read_text(), listener.kinds())
            spend(0.02, what)

    with Observer() as observer:
        try:
            wait_until(lambda: len(policy.said()) > 5, 'the policy infers')
            first_bridge, first_monitor = bridge(), monitor()
            wait_until(lambda: listener.node.count_subscribers('vla/policy_step') >= 2, 'nodes')
            spend(5, 'without a tap')
            policy.say('tap')
            wait_until(lambda: len(listener.steps) > ALARM_STEP, 'steps arrive')
            spend(5, 'all alive')
            (first,) = {step.episode_id for step in listener.steps}
            assert observer.episodes[first].alarm_step == ALARM_STEP

            os.kill(first_bridge.pid, signal.SIGKILL)
            spend(3, 'bridge killed')
            before = listener.numbers(first)
            second_bridge = bridge()
            wait_until(lambda: len(listener.numbers(first)) > len(before) + 5, 'steps again')
            resumed = listener.numbers(first)[len(before)]
            wait_until(
                lambda: listener.fact('source', 'steps lost') == str(resumed), 'the loss is said'
            )

            os.kill(first_monitor.pid, signal.SIGKILL)
            spend(3, 'monitor killed')
            known = subscriptions(listener)
            monitor()
            wait_until(lambda: subscriptions(listener) - known, 'a monitor again')
            spend(1, 'monitor started')
            policy.say('reset')
            wait_until(lambda: len({s.episode_id for s in listener.steps}) == 2, 'an episode')
            second = listener.steps[-1].episode_id
            wait_until(
                lambda: (
                    second in observer.episodes and observer.episodes[second].alarm_step is not None
                ),
                'an alarm',
            )
            assert observer.episodes[second].alarm_step == ALARM_STEP

            os.kill(second_bridge.pid, signal.SIGSTOP)
            spend(3, 'bridge stopped')
            os.kill(second_bridge.pid, signal.SIGCONT)
            spend(0.5, 'bridge goes on')
            policy.say('end')
            counts = policy.wait()
            wait_until(lambda: listener.kinds()[-1] == ('end', second), 'END arrives')
            with np.load(policy.states) as arrays:
                truth = [arrays[name] for name in sorted(arrays)]
            wait_until(lambda: listener.numbers(second)[-1] == len(truth[1]) - 1, 'the last step')
        finally:
            policy.kill()
            listener.close()
    assert counts['published'] == sum(map(len, truth))
    assert counts['refused'] == counts['dropped_events'] == 0
    for name, states in ((first, truth[0]), (second, truth[1])):
        numbers = listener.numbers(name)
        assert numbers == sorted(set(numbers)), 'each step once, in order'
        for step in listener.steps:
            if step.episode_id == name:
                found = np.frombuffer(bytes(step.features.data), '<f4')
                np.testing.assert_allclose(found, states[step.step], rtol=0, atol=1e-6)
    # Only what was on its way to the killed bridge is missing.
    assert listener.numbers(second) == list(range(len(truth[1])))
    missing = set(range(len(truth[0]))) - set(listener.numbers(first))
    assert missing == set(range(before[-1] + 1, resumed))
    assert len(missing) <= 3 + counts['dropped']
    with capsys.disabled():
        print(f'\n{kind}: {len(missing)} of {counts["published"]} steps lost; {counts}')
    check_times(policy.times(), phases, capsys)


def check_times(
    times: np.ndarray, phases: dict[str, tuple[float, float]], capsys: pytest.CaptureFixture
) -> None:
    """Fail if the inferences of a phase are longer than those without a tap."""
    taken = {
        phase: times[(times[:, 0] >= began) & (times[:, 0] < ended), 1]
        for phase, (began, ended) in phases.items()
        if phase in PHASES
    }
    with capsys.disabled():
        for phase, seconds in taken.items():
            p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
            print(f'{phase:15} {len(seconds):4} inferences, p50 {p50:.1f} ms, p99 {p99:.1f} ms')
    assert tuple(taken) == PHASES
    without = taken.pop(PHASES[0])
    for phase, seconds in taken.items():
        # A policy that waited for a dead peer would wait for the 2 s of the socket.
        assert seconds.max() < without.max() + 1.0, phase
        assert np.median(seconds) < 2 * np.median(without) + 0.02, phase
