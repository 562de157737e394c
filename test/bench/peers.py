# SPDX-License-Identifier: Apache-2.0
"""Whether an inference is late when what listens to the policy dies.

A policy in a process of its own infers at 10 Hz. A tap sends its raw hidden states, as large as
those of pi0, to a bridge, and a monitor scores the steps. Bridge and monitor are then killed, and
the bridge is stopped, so that nobody reads. The policy goes on through all of it in one run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rich import box
from rich.console import Console
from rich.table import Table

from safe_bringup.live import Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.ros.qos import STEP_QOS

FREQUENCY = 10.0  # [Hz]
DENOISE, HORIZON, WIDTH = 10, 50, 1024
PHASES = ('no tap', 'all live', 'bridge killed', 'monitor killed', 'bridge stopped')
_PATIENCE = 60.0

_POLICY = f"""
import json, select, sys, time
import torch
from torch import nn
from vla_feature_bridge.taps import FeatureTap
from vla_feature_bridge.wire import StepSender

torch.set_num_threads(1)

class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.head = nn.Linear(7, {WIDTH}), nn.Linear({WIDTH}, 7)

    @torch.inference_mode()
    def predict_action_chunk(self, noise):
        for _ in range({DENOISE}):
            noise = noise - self.head(torch.relu(self.input(noise))) / {DENOISE}
        return noise

policy, noise = Policy().eval(), torch.randn(1, {HORIZON}, 7)

def infer():
    began = time.monotonic()
    policy.predict_action_chunk(noise)
    took = time.monotonic() - began
    print(json.dumps([began, took]), flush=True)
    # What waits on the standard input ends this part.
    return bool(select.select([sys.stdin], [], [], max(0.0, {1 / FREQUENCY} - took))[0])

while not infer():
    pass
sys.stdin.readline()
fields = dict(calls={DENOISE}, axes=['denoise', 'horizon'], pooling=[],
              ends='predict_action_chunk', actions=['batch', 'horizon', 'action'],
              exec_horizon={HORIZON})
tap = FeatureTap(policy, 'head', **fields)
options = tap.sink_options()
tap.detach()
sender = StepSender(sys.argv[1], **options, wait_for_monitor={_PATIENCE})
with FeatureTap(policy, 'head', sink=sender, **fields) as tap:
    tap.start(task='bench', episode_id='bench')
    print(json.dumps('started'), flush=True)
    while not infer():
        pass
    print(json.dumps({{'published': sender.published, 'sent': sender.sent,
                      'dropped': sender.dropped, 'refused': sender.refused,
                      'problems': dict(tap.problems)}}), flush=True)
sender.close(2.0)
"""


class _Policy:
    """The policy in a process of its own; a thread would share its interpreter."""

    def __init__(self, address: str, log: Path) -> None:
        self.times: list[tuple[float, float]] = []
        self.notes: list[Any] = []
        output = log.with_suffix('.out')
        with output.open('w', encoding='utf-8') as out, log.open('w', encoding='utf-8') as errors:
            self._popen = subprocess.Popen(
                [sys.executable, '-c', _POLICY, address],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                text=True,
                env={**os.environ, 'OMP_NUM_THREADS': '1'},
            )
        # The process writes at an offset of its own.
        self._output = output.open(encoding='utf-8')
        self._log = log

    def go_on(self) -> None:
        """End the present part of the policy."""
        assert self._popen.stdin is not None
        self._popen.stdin.write('\n')
        self._popen.stdin.flush()

    def look(self) -> None:
        """Read what the policy has printed."""
        if self._popen.poll() not in (None, 0):
            raise RuntimeError(f'the policy ended: {self._log.read_text()[-2000:]}')
        place = self._output.tell()
        while (line := self._output.readline()).endswith('\n'):
            said = json.loads(line)
            if isinstance(said, list):
                self.times.append((said[0], said[1]))
            else:
                self.notes.append(said)
            place = self._output.tell()
        self._output.seek(place)

    def close(self) -> None:
        """Kill the process if it still runs."""
        self._popen.kill()
        self._popen.wait()
        self._output.close()


class _Peers:
    """Bridge, monitor and a reader of the steps."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder, self._count = address, folder, 0
        self.detector = _clock_detector(folder / 'detector')
        self.context = Context()
        rclpy.init(context=self.context)
        node = rclpy.create_node('peers', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(node)
        self.steps: list[int] = []
        node.create_subscription(
            PolicyStepMessage,
            'vla/policy_step',
            lambda message: self.steps.append(message.step),
            STEP_QOS,
        )

    def bridge(self) -> Process:
        """Start a bridge."""
        return self._process('bridge', 'vla_feature_bridge', {'listen': [self._address]})

    def monitor(self) -> Process:
        """Start a monitor."""
        return self._process(
            'monitor', 'safe_monitor_node', {'detector_folder': str(self.detector)}
        )

    def _process(self, name: str, package: str, parameters: dict[str, Any]) -> Process:
        self._count += 1
        log = self._folder / f'{name}{self._count}.log'
        return Process(f'{package}.nodes.{name}', parameters, log)

    def spin(self, seconds: float, policy: _Policy) -> tuple[float, float]:
        """Read steps for some time; returns its beginning and end on the monotonic clock [s]."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            self.executor.spin_once(timeout_sec=0.05)
            policy.look()
        return began, time.monotonic()

    def wait(self, condition: Callable[[], bool], policy: _Policy, what: str) -> None:
        """Read steps until the condition is true."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f'the benchmark of peers waited {_PATIENCE:g} s until {what}')
            self.spin(0.05, policy)

    def close(self) -> None:
        """End the reader."""
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)


def _clock_detector(folder: Path) -> Path:
    """Write a detector that alarms late: what it says has no effect on a policy."""
    band = Band(np.array([0.1]), np.full((1, 100_000), 1e9), kind='benchmark', n_calibration=0)
    feature = FeatureSpec('head', WIDTH)
    clock = make_detector('clock')
    clock.load_state({}, WIDTH)
    return CalibratedDetector(clock, feature, band, 0.1).save(folder)


def bench_peers(inferences: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure the time of each inference in all phases.

    Parameters
    ----------
    inferences : int
        About how many inferences a phase has.
    progress : callable
        Takes a note about what is measured.

    Returns
    -------
    dict
        ``phases``: for each phase p50, p99 and the longest inference [ms]. ``loss``: how many steps
        the policy published while all were alive, and how many of them arrived. ``sender``: its
        counts at the end.
    """
    seconds = inferences / FREQUENCY
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        address = f'unix:{folder / "bridge.sock"}'
        policy, peers = _Policy(address, folder / 'policy.log'), _Peers(address, folder)
        running: list[Process] = []
        try:
            spans, loss = _run(policy, peers, running, seconds, progress)
        finally:
            policy.close()
            for process in running:
                os.kill(process.pid, signal.SIGCONT) if process.exit_status is None else None
                process.stop()
            peers.close()
    times = np.array(policy.times)
    phases = {}
    for phase, (began, ended) in spans.items():
        within = times[(times[:, 0] >= began) & (times[:, 0] < ended), 1] * 1e3
        phases[phase] = {
            'inferences': len(within),
            'p50': round(float(np.median(within)), 3),
            'p99': round(float(np.percentile(within, 99)), 3),
            'max': round(float(within.max()), 3),
        }
    return {'phases': phases, 'loss': loss, 'sender': policy.notes[-1]}


def _run(
    policy: _Policy,
    peers: _Peers,
    running: list[Process],
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """Go through the phases; returns when each began and ended, and what was lost."""
    spans = {}
    progress(f'peers: {PHASES[0]}')
    peers.wait(lambda: len(policy.times) > 5, policy, 'the policy infers')
    spans[PHASES[0]] = peers.spin(seconds, policy)
    bridge, monitor = peers.bridge(), peers.monitor()
    running += [bridge, monitor]
    policy.go_on()
    peers.wait(lambda: len(peers.steps) > 10, policy, 'steps arrive')
    progress(f'peers: {PHASES[1]}')
    first = peers.steps[-1]
    spans[PHASES[1]] = peers.spin(seconds, policy)
    arrived = [step for step in peers.steps if step > first]
    loss = {'published': arrived[-1] - first, 'arrived': len(set(arrived))}

    progress(f'peers: {PHASES[2]}')
    began, _ = peers.spin(seconds / 4, policy)
    os.kill(bridge.pid, signal.SIGKILL)
    _, ended = peers.spin(3 * seconds / 4, policy)
    spans[PHASES[2]] = (began, ended)
    bridge = peers.bridge()
    running.append(bridge)
    seen = len(peers.steps)
    peers.wait(lambda: len(peers.steps) > seen + 10, policy, 'steps arrive again')

    progress(f'peers: {PHASES[3]}')
    began, _ = peers.spin(seconds / 4, policy)
    os.kill(monitor.pid, signal.SIGKILL)
    _, ended = peers.spin(3 * seconds / 4, policy)
    spans[PHASES[3]] = (began, ended)

    progress(f'peers: {PHASES[4]}')
    os.kill(bridge.pid, signal.SIGSTOP)
    spans[PHASES[4]] = peers.spin(seconds, policy)
    os.kill(bridge.pid, signal.SIGCONT)
    policy.go_on()
    peers.wait(lambda: isinstance(policy.notes[-1], dict), policy, 'the policy ends')
    return spans, loss


def print_peers(results: dict[str, Any]) -> None:
    """Print the table of the phases."""
    table = Table(
        'phase',
        'inferences',
        'p50 [ms]',
        'p99 [ms]',
        'longest [ms]',
        box=box.SIMPLE_HEAD,
        title=f'a policy at {FREQUENCY:g} Hz that sends {DENOISE} x {HORIZON} x {WIDTH} float32: '
        'time of an inference',
    )
    for phase, taken in results['phases'].items():
        table.add_row(
            phase,
            str(taken['inferences']),
            *(f'{taken[key]:.2f}' for key in ('p50', 'p99', 'max')),
        )
    console = Console(highlight=False, width=100)
    console.print(table)
    loss, sender = results['loss'], results['sender']
    console.print(
        f'all live: {loss["arrived"]} of {loss["published"]} steps arrived over DDS. '
        f'At the end: {sender["published"]} published, {sender["sent"]} sent, '
        f'{sender["dropped"]} dropped, {sender["refused"]} refused.'
    )
