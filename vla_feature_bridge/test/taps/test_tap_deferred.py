# SPDX-License-Identifier: Apache-2.0
"""What a tap leaves to its thread: values, order, the end, and a thread that falls behind."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from tap_support import FLOW, FlowPolicy, flow_tap, infer, recorded
from torch import nn

from vla_feature_bridge.taps import FeatureTap
from vla_feature_bridge.wire import StepReceiver, StepSender


class Inbox:
    """A bridge that keeps what it receives."""

    def __init__(self, folder):
        self.address, self.messages = f'unix:{folder}/bridge.sock', []
        self._receiver = StepReceiver(
            [self.address], lambda source, message: self.messages.append(message)
        )
        self._receiver.set_status(True)

    def kinds(self, count):
        """Wait for messages; return the kinds of events and the numbers of steps."""
        deadline = time.monotonic() + 20
        while len(self.messages) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return [getattr(m, 'kind', getattr(m, 'step', None)) for m in self.messages]

    def close(self):
        self._receiver.close()


@pytest.fixture
def inbox(tmp_path):
    inbox = Inbox(tmp_path)
    yield inbox
    inbox.close()


class Gate:
    """Stops the thread of a sink until it opens."""

    def __init__(self, sink):
        self._open, began = threading.Event(), threading.Event()
        sink._send_step, self._send = self._wait, sink._send_step
        self._began = began

    def _wait(self, step):
        self._began.set()
        assert self._open.wait(20)
        self._send(step)

    def reached(self):
        assert self._began.wait(20)

    def open(self):
        self._open.set()


class InPlace(nn.Module):
    """Overwrites its states and its chunk at once after their use."""

    def __init__(self):
        super().__init__()
        self.head = nn.Identity()
        self.buffer, self.chunk = torch.zeros(1, 3, 4), torch.zeros(1, 4, 7)

    def infer(self, number):
        for call in range(5):
            self.buffer.fill_(10 * number + call)
            self.head(self.buffer)
            self.buffer.fill_(-1)
        self.chunk.fill_(number)
        return self.chunk


def test_buffers_may_be_overwritten_at_once(inbox):
    policy = InPlace()
    tap = FeatureTap(
        policy,
        'head',
        calls=5,
        axes=['call', 'position'],
        ends='infer',
        actions=['batch', 'horizon', 'action'],
        exec_horizon=2,
        sink=inbox.address,
    )
    tap.start()
    for number in range(20):
        policy.infer(number).fill_(-1)
    tap.end()
    tap.detach()
    assert inbox.kinds(22) == ['start', *range(20), 'end']
    for number, step in enumerate(inbox.messages[1:-1]):
        expected = 10 * number + np.arange(5, dtype=np.float32)
        np.testing.assert_array_equal(
            step.features, np.broadcast_to(expected[:, None, None], (5, 3, 4))
        )
        np.testing.assert_array_equal(step.actions, np.full((1, 4, 7), number, np.float32))
    assert not tap.problems


def test_the_thread_of_the_policy_does_not_wait_for_the_sink(inbox):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=inbox.address)
    tap.start()
    gate = Gate(tap.sink)
    _, states = recorded(policy, lambda: infer(policy, 1))
    gate.reached()
    for seed in range(2, 6):
        infer(policy, seed)  # returns while the first step is still being sent
    assert tap.inferences == 5
    gate.open()
    np.testing.assert_array_equal(tap.last.features, tap.last.features)
    tap.end(success=True)
    assert inbox.kinds(7) == ['start', *range(5), 'end']
    np.testing.assert_array_equal(inbox.messages[1].features, FLOW.spec.apply(states.numpy()))
    tap.detach()


def test_too_many_inferences_drop_the_oldest_and_leave_a_gap(inbox):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=inbox.address)
    tap.sink.deferred.max_calls = 16
    tap.start()
    gate = Gate(tap.sink)
    infer(policy, 0)
    gate.reached()
    for seed in range(1, 21):
        infer(policy, seed)
    gate.open()
    tap.end()
    # 16 inferences wait, with the one that runs.
    assert inbox.kinds(18) == ['start', 0, *range(6, 21), 'end']
    assert tap.problems == {'dropped': 5}
    assert (tap.sink.dropped, tap.sink.refused, tap.sink.published) == (5, 0, 16)
    assert 'steps are lost: inferences come faster' in tap.sink.last_error
    tap.detach()


def test_detach_sends_what_waits(inbox):
    policy = FlowPolicy()
    sender = StepSender(inbox.address, **flow_tap(policy).sink_options())
    tap = flow_tap(policy, sink=sender, episodes='reset')
    infer(policy, 0)
    gate = Gate(sender)
    for seed in range(1, 4):
        infer(policy, seed)
    threading.Timer(0.1, gate.open).start()
    tap.detach()
    assert inbox.kinds(6) == ['start', 0, 1, 2, 3, 'end']
    infer(policy)
    assert tap.inferences == 4
    sender.close()


def test_an_end_of_the_sink_itself_comes_after_the_last_step(inbox):
    policy = FlowPolicy()
    sender = StepSender(inbox.address, **flow_tap(policy).sink_options())
    tap = flow_tap(policy, sink=sender)
    for episode in range(10):
        sender.start(episode_id=str(episode))
        infer(policy, episode)
        sender.end(success=True)
    assert inbox.kinds(30) == 10 * ['start', 0, 'end']
    tap.detach()
    sender.close()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_thread_that_ends_is_counted_and_the_policy_goes_on(inbox):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=inbox.address)
    tap.start()
    send, thread = tap.sink._send_step, None

    def leave(step):
        tap.sink._send_step = send
        raise SystemExit  # as code of a clock or of a log handler may do

    tap.sink._send_step = leave
    infer(policy, 0)
    thread = tap.sink.deferred._thread
    thread.join(20)
    assert not thread.is_alive()
    for seed in range(1, 4):
        infer(policy, seed)
    tap.end()
    assert inbox.kinds(5) == ['start', 1, 2, 3, 'end']
    assert tap.problems == {'thread': 1}
    assert len({m.episode_id for m in inbox.messages}) == 1
    tap.detach()


def test_callbacks_run_in_the_thread_of_the_policy():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    threads = []
    tap.on_inference(lambda inference: threads.append(threading.current_thread()))
    for seed in range(50):
        infer(policy, seed)
        assert len(threads) == seed + 1
    assert set(threads) == {threading.main_thread()}


def test_a_sink_without_deferred_calls_is_called_in_the_thread_of_the_policy():
    class Sink:
        last_error = ''

        def __init__(self):
            self.threads = []

        def publish(self, features, actions=None, **fields):
            self.threads.append(threading.current_thread())

    policy = FlowPolicy()
    sink = Sink()
    flow_tap(policy, sink=sink)
    for seed in range(20):
        infer(policy, seed)
        assert len(sink.threads) == seed + 1
    assert set(sink.threads) == {threading.main_thread()}


def test_a_sink_that_asks_the_tap_does_not_stop_another_thread():
    inside, ending = threading.Event(), threading.Event()
    taps, policy = [], FlowPolicy()

    class Sink:
        last_error = ''

        def start(self, **texts):
            return 'e'

        def publish(self, features, actions=None, **fields):
            return True

        def end(self, success=None, reason=''):
            ending.set()
            time.sleep(0.2)  # until the inference of the other thread waits for this call
            assert taps[0].last is None

    def pause(*call):
        inside.set()
        assert ending.wait(20)

    def end():
        assert inside.wait(20)
        taps[0].end()

    taps.append(flow_tap(policy, sink=Sink()))
    taps[0].start()
    [*policy.modules()][-1].register_forward_pre_hook(pause)
    threads = [threading.Thread(target=task, daemon=True) for task in (end, lambda: infer(policy))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert taps[0].inferences == 1


def test_modes_and_dtypes_in_another_thread(inbox):
    policy = FlowPolicy().to(torch.bfloat16)
    tap = flow_tap(policy, sink=inbox.address, pooling='raw')
    tap.start()
    state, noise = policy.observation()['observation.state'], policy.noise()
    with torch.inference_mode():
        _, states = recorded(
            policy,
            lambda: policy.predict_action_chunk(
                {'observation.state': state.to(torch.bfloat16)}, noise.to(torch.bfloat16)
            ),
        )
    assert inbox.kinds(2) == ['start', 0], 'without a look at the tap, which would do the work'
    np.testing.assert_array_equal(inbox.messages[1].features, states.float().numpy())
    tap.detach()


def test_the_exit_of_python_sends_the_last_step(inbox, tmp_path):
    script = f"""
import torch
from torch import nn
from vla_feature_bridge.taps import FeatureTap

class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Identity()
    def infer(self, x):
        return self.head(x)

policy = Policy()
tap = FeatureTap(policy, 'head', ends='infer', exec_horizon=1, sink={inbox.address!r})
tap.start()
for number in range(5):
    policy.infer(torch.full((1, 300_000), float(number)))
"""
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=True
    )
    assert inbox.kinds(6) == ['start', *range(5)]
    assert [step.features.max() for step in inbox.messages[1:]] == list(range(5))
    assert done.stderr == ''
