# SPDX-License-Identifier: Apache-2.0
"""Inferences reach the bridge over a real socket, with episodes by the caller or by resets."""

import time

import numpy as np
import pytest
from tap_support import FLOW, FlowPolicy, flow_tap, infer

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.taps import FeatureTap, TapError
from vla_feature_bridge.wire import StepReceiver, StepSender


@pytest.fixture
def bridge(tmp_path):
    """A bridge that keeps what it receives."""
    with Bridge(f'unix:{tmp_path}/bridge.sock') as running:
        yield running


class Bridge:
    """Receives steps and events; a monitor listens."""

    def __init__(self, address):
        self.address, self.messages = address, []
        self._receiver = StepReceiver(
            [address], lambda source, message: self.messages.append(message)
        )
        self._receiver.set_status(True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._receiver.close()

    def wait_for(self, count):
        """Return the first messages, steps and events."""
        deadline = time.monotonic() + 20
        while len(self.messages) < count:
            assert time.monotonic() < deadline, self.messages
            time.sleep(0.01)
        return self.messages[:count]


def kinds(messages):
    return [m.kind if isinstance(m, EpisodeEventRecord) else m.step for m in messages]


def test_auto_is_the_default_address_of_the_bridge(bridge, monkeypatch):
    monkeypatch.setenv('SAFE_BRIDGE', bridge.address)
    policy = FlowPolicy()
    tap = flow_tap(policy, sink='auto')
    assert tap.sink.address == bridge.address
    tap.start()
    infer(policy)
    assert kinds(bridge.wait_for(2)) == ['start', 0]
    tap.detach()


def test_each_inference_is_one_step_of_the_episode(bridge):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=bridge.address, policy='flow')
    episode_id = tap.start(task='tea', instruction='make tea', episode_id='one')
    inferences = []
    tap.on_inference(inferences.append)
    for tick in range(5):
        policy.select_action(policy.observation(tick))
    tap.end(success=True, reason='poured')
    messages = bridge.wait_for(4)
    assert episode_id == 'one'
    assert kinds(messages) == ['start', 0, 1, 'end']
    start, *steps, end = messages
    assert (start.task, start.instruction, start.episode_id) == ('tea', 'make tea', 'one')
    assert (end.success, end.reason) == (True, 'poured')
    for step, inference in zip(steps, inferences, strict=True):
        assert isinstance(step, PolicyStep)
        np.testing.assert_array_equal(step.features, inference.features)
        np.testing.assert_array_equal(step.actions, inference.actions)
        assert step.feature_name == 'pre_velocity[horizon=mean,denoise=mean]'
        assert step.stamp == inference.stamp
        assert step.instruction == 'pour the tea'
        assert (step.policy, step.action_space, step.exec_horizon) == ('flow', 'normalized', 4)
        assert step.inference_time == pytest.approx(inference.inference_time, rel=1e-6)
    assert set(steps[1].signals) >= {'chunk_mse', 'action_norm'}
    assert not tap.problems
    tap.detach()
    assert tap.sink.state == 'closed'


def test_resets_of_the_policy_are_the_borders_of_episodes(bridge):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=bridge.address, episodes='reset')
    policy.reset()
    policy.reset()
    infer(policy)
    infer(policy)
    policy.reset()
    policy.reset()
    infer(policy)
    tap.end(success=False)
    policy.reset()
    infer(policy)
    tap.detach()
    messages = bridge.wait_for(10)
    assert kinds(messages) == ['start', 0, 1, 'end', 'start', 0, 'end', 'start', 0, 'end']
    ends = [m for m in messages if getattr(m, 'kind', '') == 'end']
    assert [end.success for end in ends] == [None, False, None]
    assert ends[0].reason == 'the policy was reset'
    assert ends[2].reason == 'the tap was detached'
    assert messages[0].task == messages[0].instruction == 'pour the tea'
    assert len({m.episode_id for m in messages}) == 3


def test_a_step_with_a_problem_leaves_a_gap(bridge):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=bridge.address)
    tap.start()
    infer(policy)
    policy.predict_action_chunk(policy.observation(batch=2))
    infer(policy)
    tap.end()
    messages = bridge.wait_for(4)
    assert kinds(messages) == ['start', 0, 2, 'end']
    assert tap.sink.refused == 1
    assert 'expected a batch of 1' in tap.sink.last_error


def test_a_black_box_sends_steps_without_features(bridge):
    policy = FlowPolicy()
    tap = FeatureTap(policy, 'black_box', sink=bridge.address, exec_horizon=4)
    tap.start()
    infer(policy)
    _, step = bridge.wait_for(2)
    assert step.features.shape == (0,)
    assert step.feature_name == 'none'
    assert step.actions.shape == (1, 8, 7)


def test_raw_features_are_sent_raw(bridge):
    policy = FlowPolicy()
    tap = flow_tap(policy, sink=bridge.address, pooling='raw')
    tap.start()
    infer(policy)
    _, step = bridge.wait_for(2)
    np.testing.assert_array_equal(step.features, tap.last.features)
    assert step.feature_name == 'pre_velocity'


def test_a_sink_of_the_caller_stays_open(bridge):
    policy = FlowPolicy()
    options = flow_tap(policy).sink_options()
    sender = StepSender(bridge.address, **options, wait_for_monitor=0)
    with flow_tap(policy, sink=sender) as tap:
        tap.start()
        infer(policy)
    sender.end(success=True)
    assert kinds(bridge.wait_for(3)) == ['start', 0, 'end']
    sender.close()


def test_without_a_bridge_the_policy_runs(tmp_path):
    policy = FlowPolicy()
    options = flow_tap(policy).sink_options()
    sender = StepSender(f'unix:{tmp_path}/nobody.sock', **options, wait_for_monitor=0)
    tap = flow_tap(policy, sink=sender)
    tap.start()
    for seed in range(3):
        infer(policy, seed)
    assert sender.published == 3
    assert sender.waiting == 4
    assert not tap.problems
    sender.close(0)


def test_a_sink_that_raises_does_not_stop_the_policy(caplog):
    class Raises:
        def __getattr__(self, name):
            raise RuntimeError(f'no {name}')

    policy = FlowPolicy()
    tap = FeatureTap(policy, FLOW, sink=Raises())
    assert tap.start() == ''
    infer(policy)
    tap.end()
    assert tap.problems == {'sink': 3}
    assert 'publish of the sink' not in caplog.text, 'the first of each kind is logged'


def test_the_exec_horizon_of_the_caller_is_asked_for():
    policy = FlowPolicy()
    with pytest.raises(TapError, match=r'exec_horizon from the caller.*exec_horizon=8'):
        FeatureTap(policy, 'black_box', sink='unix:anywhere.sock')
    assert 'predict_action_chunk' not in vars(policy)
    tap = FeatureTap(policy, 'black_box', exec_horizon=3)
    assert tap.sink_options() == {
        'feature_name': 'none',
        'exec_horizon': 3,
        'policy': '',
        'action_space': '',
    }
    with pytest.raises(TapError, match='expected a sink'):
        flow_tap(policy, episodes='reset')
