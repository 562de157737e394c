# SPDX-License-Identifier: Apache-2.0
"""A policy publishes its steps: over DDS, what a reader gets, and what is refused before."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import rclpy
import torch
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros import StepPublisher
from vla_feature_bridge.ros.messages import step_from_message
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS
from vla_feature_bridge.signals import rollout_signals
from vla_feature_bridge.taps import FeatureTap

NAME = 'hidden_states[token=last]'


class Reader:
    """Another node, which collects the messages of both topics."""

    def __init__(self, context):
        self.steps, self.events = [], []
        self.node = rclpy.create_node('reader', context=context)
        self.node.create_subscription(
            PolicyStepMessage, 'vla/policy_step', self.steps.append, STEP_QOS
        )
        self.node.create_subscription(EpisodeEvent, 'vla/episode', self.events.append, EPISODE_QOS)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)

    def wait(self, until, timeout=20.0):
        deadline = time.monotonic() + timeout
        while not until(self):
            assert time.monotonic() < deadline, (len(self.steps), len(self.events))
            self._executor.spin_once(timeout_sec=0.05)


@pytest.fixture
def context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.try_shutdown(context=context)


@pytest.fixture
def node(context):
    node = rclpy.create_node('policy', context=context)
    yield node
    node.destroy_node()


@pytest.fixture
def publisher(node):
    return StepPublisher(
        node, NAME, exec_horizon=2, policy='openvla', strict=True, wait_for_monitor=0
    )


@pytest.fixture
def reader(context, publisher):
    reader = Reader(context)
    reader.wait(lambda _: publisher._steps.get_subscription_count() > 0)
    reader.wait(lambda r: r.node.count_publishers('vla/episode') > 0)
    yield reader
    reader.node.destroy_node()


def chunks(steps=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, 3, 4, 7)).astype(np.float32)


def test_two_episodes_over_dds(publisher, reader):
    actions = chunks(6)
    hidden = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)
    first = publisher.start(task='mug', instruction='pick up the mug')
    for t in range(3):
        publisher.publish(hidden[t], actions[t], inference_time=np.float32(0.25))
    publisher.end(success=np.True_, reason='done')
    publisher.start(task='cup', episode_id='mine')
    for t in range(3, 6):
        publisher.publish(hidden[t], actions[t])
    publisher.end(success=False)
    reader.wait(lambda r: len(r.steps) == 6 and len(r.events) == 4)

    found = [step_from_message(message) for message in reader.steps]
    assert [step.episode_id for step in found] == [first] * 3 + ['mine'] * 3
    assert [step.step for step in found] == [0, 1, 2] * 2
    for t, step in enumerate(found):
        np.testing.assert_array_equal(step.features, hidden[t])
        np.testing.assert_array_equal(step.actions, actions[t])
        assert (step.feature_name, step.policy, step.exec_horizon) == (NAME, 'openvla', 2)
    for part in (slice(0, 3), slice(3, 6)):
        for name, values in rollout_signals(actions[part], 2).items():
            assert [np.float32(step.signals[name]) for step in found[part]] == list(values)
    assert [step.instruction for step in found] == ['pick up the mug'] * 3 + [''] * 3
    assert [step.inference_time for step in found[:3]] == [0.25] * 3
    assert all(math.isnan(step.inference_time) for step in found[3:])
    assert all(step.stamp > 0 for step in found)
    assert [(e.kind, e.outcome, e.episode_id, e.task, e.reason) for e in reader.events] == [
        (EpisodeEvent.KIND_START, EpisodeEvent.OUTCOME_UNKNOWN, first, 'mug', ''),
        (EpisodeEvent.KIND_END, EpisodeEvent.OUTCOME_SUCCESS, first, 'mug', 'done'),
        (EpisodeEvent.KIND_START, EpisodeEvent.OUTCOME_UNKNOWN, 'mine', 'cup', ''),
        (EpisodeEvent.KIND_END, EpisodeEvent.OUTCOME_FAILURE, 'mine', 'cup', ''),
    ]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_arrive_bit_for_bit(publisher, reader, dtype):
    wide = torch.linspace(-3, 3, 32, requires_grad=True).to(dtype)
    hidden = wide[::2]  # part of a graph, and not contiguous
    publisher.start()
    publisher.publish(hidden, torch.from_numpy(chunks()[0]), token_probability=torch.ones(3) / 2)
    reader.wait(lambda r: r.steps)
    found = step_from_message(reader.steps[0])
    expected = {torch.bfloat16: ml_dtypes.bfloat16}.get(dtype, str(dtype).removeprefix('torch.'))
    assert found.features.dtype == expected
    np.testing.assert_array_equal(
        found.features.astype(np.float64), hidden.detach().to(torch.float64).numpy()
    )
    np.testing.assert_array_equal(found.actions, chunks()[0])
    np.testing.assert_array_equal(found.token_probability, [0.5] * 3)
    assert found.token_entropy is None


def test_numpy_integers_are_integers(node, context):
    publisher = StepPublisher(node, NAME, exec_horizon=np.int64(2), wait_for_monitor=0)
    publisher.start()
    step = publisher.publish(np.ones(4), chunks()[0], stamp=np.int64(5))
    assert (step.exec_horizon, step.stamp) == (2, 5)
    assert (
        publisher.publish(np.ones(4), chunks()[0], stamp=Time(sec=1, nanosec=7)).stamp == 10**9 + 7
    )


def test_publishing_waits_for_nobody(publisher):
    publisher.start()
    begin = time.monotonic()
    for _ in range(300):  # three times as many as are kept for a reader
        publisher.publish(np.zeros(4096, np.float32))
    assert time.monotonic() - begin < 5


def test_a_new_episode_ends_the_one_that_runs(publisher, reader):
    publisher.start(episode_id='a')
    publisher.start(episode_id='b')
    reader.wait(lambda r: len(r.events) == 3)
    ended = reader.events[1]
    assert (ended.kind, ended.episode_id) == (EpisodeEvent.KIND_END, 'a')
    assert ended.outcome == EpisodeEvent.OUTCOME_UNKNOWN
    assert ended.reason == 'the next episode began'
    assert publisher.episode_id == 'b'


def test_names_of_episodes_differ(publisher):
    assert len({publisher.start() for _ in range(20)}) == 20


@pytest.mark.parametrize('name', ['', None])
def test_an_empty_feature_name_is_refused(node, name):
    with pytest.raises(SafeError, match=r'expected a feature_name, found .*safe_training info'):
        StepPublisher(node, name, exec_horizon=2)


@pytest.mark.parametrize('number', [0, -1, 2.0, '2', None, 2**32])
def test_an_exec_horizon_that_is_no_positive_integer_is_refused(node, number):
    with pytest.raises(SafeError, match='expected exec_horizon from 1 to 4294967295, found'):
        StepPublisher(node, NAME, exec_horizon=number)


GOOD = chunks()[0]


@pytest.mark.parametrize(
    ('success', 'outcome'),
    [(True, 'SUCCESS'), (np.True_, 'SUCCESS'), (np.False_, 'FAILURE'), (None, 'UNKNOWN')],
)
def test_outcomes(publisher, monkeypatch, success, outcome):
    sent = []
    monkeypatch.setattr(publisher, '_events', SimpleNamespace(publish=sent.append))
    publisher.start()
    publisher.end(success=success)
    assert sent[-1].outcome == getattr(EpisodeEvent, f'OUTCOME_{outcome}')


@pytest.mark.parametrize('success', ['failure', 'False', '', 1, 0, 1.0, np.array([False])])
def test_an_outcome_that_is_no_bool_is_refused(publisher, monkeypatch, success):
    sent = []
    monkeypatch.setattr(publisher, '_events', SimpleNamespace(publish=sent.append))
    publisher.start(episode_id='a')
    with pytest.raises(SafeError, match=r'end: expected success as True, False or None, found'):
        publisher.end(success=success)
    assert (publisher.episode_id, len(sent)) == ('a', 1)
    publisher.end(success=False)
    assert sent[-1].outcome == EpisodeEvent.OUTCOME_FAILURE


@pytest.mark.parametrize('name', ['task', 'instruction', 'episode_id'])
@pytest.mark.parametrize('value', [None, 5, b'mug', '\ud800'])
def test_a_start_without_text_is_refused_and_changes_nothing(publisher, monkeypatch, name, value):
    sent = []
    monkeypatch.setattr(publisher, '_events', SimpleNamespace(publish=sent.append))
    for running in ('', 'a'):
        if running:
            publisher.start(episode_id=running)
        before = len(sent)
        with pytest.raises(SafeError, match=rf'start: expected {name} as a text'):
            publisher.start(**{name: value})
        assert (publisher.episode_id, len(sent)) == (running, before)
    publisher.publish(np.zeros(4))
    with pytest.raises(SafeError, match='end: expected reason as a text'):
        publisher.end(reason=value)
    publisher.end()
    assert [event.kind for event in sent] == [EpisodeEvent.KIND_START, EpisodeEvent.KIND_END]


def test_a_policy_without_text_is_refused(node):
    with pytest.raises(SafeError, match='expected policy as a text'):
        StepPublisher(node, NAME, exec_horizon=2, policy=None)


def test_an_event_that_cannot_be_sent_changes_nothing(publisher, monkeypatch):
    def failing(event):
        raise RuntimeError('the context is shut down')

    with monkeypatch.context() as patch:
        patch.setattr(publisher, '_events', SimpleNamespace(publish=failing))
        with pytest.raises(RuntimeError):
            publisher.start(task='pour')
        assert publisher.episode_id == ''
    publisher.start(task='pour')


@pytest.mark.parametrize('steps_before', [0, 1])
def test_a_step_that_cannot_be_sent_leaves_the_signals(publisher, monkeypatch, steps_before):
    chunk = GOOD.astype(np.float64)
    publisher.start()
    for _ in range(steps_before):
        publisher.publish(np.zeros(4), chunk)
    with monkeypatch.context() as patch:
        patch.setattr(publisher._steps, 'publish', lambda message: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publisher.publish(np.zeros(4), chunk + 1)
    step = publisher.publish(np.zeros(4), chunk + 1)
    expected = rollout_signals(np.stack([chunk] * steps_before + [chunk + 1]), 2)
    assert step.step == steps_before
    for name, values in expected.items():
        assert step.signals[name] == pytest.approx(values[-1], rel=1e-6)


@pytest.mark.parametrize('method', ['end', 'publish'])
def test_nothing_is_published_without_an_episode(publisher, method):
    with pytest.raises(SafeError, match=rf'{method}: expected a running episode.*start'):
        getattr(publisher, method)(np.zeros(4))
    publisher.start()
    publisher.end()
    with pytest.raises(SafeError, match='expected a running episode'):
        getattr(publisher, method)(np.zeros(4))


@pytest.mark.parametrize(
    ('features', 'more', 'message'),
    [
        (np.float32(1), {}, r'features of shape \(D,\).*found shape \(\)'),
        (np.zeros(0, np.float32), {}, r'found shape \(0,\)'),
        (np.zeros(4, np.int64), {}, 'found shape .* of int64'),
        (np.array([0, np.nan, 0, 0]), {}, 'expected finite features'),
        (torch.tensor([0, math.inf, 0, 0], dtype=torch.bfloat16), {}, 'expected finite features'),
        (np.zeros(5), {}, 'features of width 4 as before, found width 5'),
        (np.zeros(4), {'actions': None}, 'at every step of an episode or at none'),
        (np.zeros(4), {'actions': GOOD[0]}, r'found shape \(4, 7\); add the axis of samples'),
        (np.zeros(4), {'actions': GOOD[:0]}, r'found shape \(0, 4, 7\)'),
        (np.zeros(4), {'actions': GOOD[:, :1]}, 'at least exec_horizon = 2 actions'),
        (np.zeros(4), {'actions': GOOD * np.inf}, 'expected finite actions'),
        (np.zeros(4), {'actions': GOOD > 0}, 'found shape .* of bool'),
        (np.zeros(4), {'token_entropy': np.zeros((2, 3))}, r'token_entropy of shape \(tokens\)'),
        (np.zeros(4), {'token_entropy': [math.nan]}, 'expected finite token_entropy'),
        (np.zeros(4), {'inference_time': [1.0]}, r'inference_time of shape \(\)'),
        (np.zeros(4), {'inference_time': math.inf}, 'inference_time as a number that fits float32'),
        (np.zeros(4), {'inference_time': 1e300}, 'found 1e\\+300'),
        (np.zeros(4), {'stamp': 10**30}, 'expected stamp as an integer .*found 10000'),
        (np.zeros(4), {'stamp': 1.5}, 'expected stamp as an integer .*found 1.5'),
        (np.zeros(4), {'logits': [1.0]}, 'expected fields among token_probability, .*logits'),
    ],
)
def test_a_bad_step_is_refused_and_leaves_no_gap(publisher, reader, features, more, message):
    publisher.start(episode_id='a')
    publisher.publish(np.zeros(4), GOOD)
    with pytest.raises(SafeError, match=rf"step 1 of episode 'a': .*{message}"):
        publisher.publish(features, **{'actions': GOOD, **more})
    publisher.publish(np.ones(4), GOOD)
    reader.wait(lambda r: len(r.steps) == 2)
    assert [message.step for message in reader.steps] == [0, 1]


@pytest.fixture
def lenient(node):
    return StepPublisher(node, NAME, exec_horizon=2, action_space='robot', wait_for_monitor=0)


def test_nothing_is_raised_into_the_loop_of_the_policy(lenient, context, capfd):
    reader = Reader(context)
    reader.wait(lambda _: lenient._steps.get_subscription_count() > 0)
    assert lenient.publish(np.zeros(4)) is None
    lenient.end(success=True)
    episode = lenient.start(task=None, instruction='pick')
    assert lenient.publish(np.zeros(4), GOOD).step == 0
    for bad in (np.full(4, np.nan), np.zeros(5), object(), None):
        assert lenient.publish(bad, GOOD) is None
    assert lenient.publish(np.zeros(4), GOOD, logits=3) is None
    assert lenient.publish(np.zeros(4), GOOD, instruction='place').step == 6
    lenient.end(success='failure')
    reader.wait(lambda r: len(r.steps) == 2 and len(r.events) == 2)
    assert [step.step for step in reader.steps] == [0, 6]
    assert [step.instruction for step in reader.steps] == ['pick', 'place']
    assert {step.action_space for step in reader.steps} == {'robot'}
    assert [event.episode_id for event in reader.events] == [episode] * 2
    assert (reader.events[0].task, reader.events[1].outcome) == ('', EpisodeEvent.OUTCOME_UNKNOWN)
    assert (lenient.published, lenient.refused, lenient.dropped) == (2, 9, 0)
    assert 'expected success as True, False or None' in lenient.last_error
    logged = capfd.readouterr().err
    assert logged.count('expected finite features') == 1
    assert logged.count('expected a running episode') == 1
    reader.node.destroy_node()


def test_a_step_that_ros_cannot_send_is_dropped_and_counted(lenient, monkeypatch):
    lenient.start()
    with monkeypatch.context() as patch:
        patch.setattr(lenient._steps, 'publish', lambda message: 1 / 0)
        assert lenient.publish(np.zeros(4)) is None
    assert (lenient.dropped, lenient.refused, lenient.last_error) == (
        1,
        0,
        "ZeroDivisionError('division by zero')",
    )
    assert lenient.publish(np.zeros(4)).step == 1


def test_a_black_box_step_is_a_message(lenient, context):
    reader = Reader(context)
    reader.wait(lambda _: lenient._steps.get_subscription_count() > 0)
    lenient.start()
    lenient.publish(None, GOOD)
    reader.wait(lambda r: r.steps)
    step = step_from_message(reader.steps[0])
    assert (step.feature_name, step.features.shape) == ('none', (0,))
    np.testing.assert_array_equal(step.actions, GOOD)
    reader.node.destroy_node()


def test_a_closed_publisher_refuses(lenient, publisher):
    lenient.start()
    for sink in (lenient, publisher):
        sink.close()
        sink.close()
    assert lenient.start() == ''
    assert lenient.publish(np.zeros(4)) is None
    lenient.end()
    assert lenient.refused == 3
    with pytest.raises(
        SafeError, match='expected an open StepPublisher, found a closed StepPublisher'
    ):
        publisher.start()


@pytest.mark.parametrize('running', [False, True])
def test_a_node_that_is_gone_stops_no_policy(context, running):
    node = rclpy.create_node('gone', context=context)
    publisher = StepPublisher(node, NAME, 2, wait_for_monitor=0.05)
    if running:
        publisher.start()
        publisher.publish(np.zeros(4))
    node.destroy_node()
    rclpy.shutdown(context=context)
    for _ in range(2):
        publisher.start()
        assert publisher.publish(np.zeros(4)) is None
        publisher.end(success=True)
    publisher.close()
    assert publisher.last_error
    assert publisher.published == running
    assert publisher.refused + publisher.dropped >= 2


FIRST_EPISODE = """
import numpy as np, rclpy, sys
from rclpy.duration import Duration
from vla_feature_bridge.ros import StepPublisher
rclpy.init()
publisher = StepPublisher(rclpy.create_node('policy'), 'x', 1, wait_for_monitor=60)
publisher.start(episode_id=sys.argv[1])
for _ in range(5):
    publisher.publish(np.zeros(4))
publisher.end()
publisher._steps.wait_for_all_acked(Duration(seconds=60))
publisher._events.wait_for_all_acked(Duration(seconds=60))
assert not publisher.last_error, publisher.last_error
"""


@pytest.mark.slow
def test_the_first_episode_of_a_process_is_complete(context):
    reader = Reader(context)
    for number in range(3):
        process = subprocess.Popen([sys.executable, '-c', FIRST_EPISODE, str(number)])
        reader.wait(lambda r: process.poll() is not None, timeout=60)  # noqa: B023 - runs at once
        assert process.returncode == 0
        reader.wait(lambda r, n=number: len(r.steps) == 5 * n + 5)
        assert [message.step for message in reader.steps[5 * number :]] == list(range(5))
    reader.node.destroy_node()


def test_a_monitor_that_does_not_come_is_no_error(node):
    publisher = StepPublisher(node, NAME, 2, wait_for_monitor=0.1, strict=True)
    assert publisher.start()
    assert 'no monitor listens after 0.1 s (wait_for_monitor)' in publisher.last_error
    publisher.end()
    assert publisher.start()


def test_late_readers_get_the_start(publisher, context):
    publisher.start(task='mug')
    late = Reader(context)
    late.wait(lambda r: r.events)
    assert late.events[0].task == 'mug'
    assert EPISODE_QOS.durability == DurabilityPolicy.TRANSIENT_LOCAL
    late.node.destroy_node()


def test_publishing_arrays_does_not_load_torch():
    script = (
        'import json, sys, rclpy, numpy as np\n'
        'from vla_feature_bridge.ros import StepPublisher\n'
        'rclpy.init()\n'
        "publisher = StepPublisher(rclpy.create_node('policy'), 'x', 1, wait_for_monitor=0)\n"
        'publisher.start()\n'
        'publisher.publish(np.zeros(4))\n'
        "print(json.dumps('torch' in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) is False


def test_the_steps_of_a_tap_are_published_by_another_thread_before_the_end(publisher, reader):
    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Identity()

        def infer(self, x):
            return self.head(x)

    policy, threads, send = Policy(), set(), publisher._send_step

    def noted(step):
        threads.add(threading.current_thread().name)
        send(step)

    publisher._send_step = noted
    tap = FeatureTap(policy, 'head', ends='infer', sink=publisher)
    tap.start()
    policy.infer(torch.zeros(1, 4))
    reader.wait(lambda r: len(r.steps) == 1)
    assert threads == {'safe_steps'}
    for number in range(1, 5):
        policy.infer(torch.full((1, 4), float(number)))
    tap.end(success=True)
    assert (publisher.published, publisher.refused) == (5, 0)
    reader.wait(lambda r: len(r.steps) == 5 and len(r.events) == 2)
    assert [step_from_message(m).features.max() for m in reader.steps] == list(range(5))
    assert reader.events[-1].kind == EpisodeEvent.KIND_END
    tap.detach()
    assert not tap.problems


def test_a_child_process_neither_sends_nor_ends_the_publishers_of_its_parent(node, context):
    publisher = StepPublisher(node, NAME, exec_horizon=1, wait_for_monitor=0)
    reader = Reader(context)
    reader.wait(lambda _: publisher._monitor_listens())
    publisher.start(episode_id='a')
    publisher.publish(np.ones(4))
    child = os.fork()
    if not child:  # pragma: no cover
        sent = publisher.publish(np.ones(4))
        right = sent is None and 'make a StepPublisher after the fork' in publisher.last_error
        publisher.close()
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    for _ in range(2):
        publisher.publish(np.ones(4))
    reader.wait(lambda r: [step.step for step in r.steps] == [0, 1, 2])
