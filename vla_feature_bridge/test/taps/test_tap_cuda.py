# SPDX-License-Identifier: Apache-2.0
"""Taps of policies on a GPU: the values are those by hand, and the policy's thread never waits.

Without pytest: ``python test_tap_cuda.py`` in this folder runs the same tests.
"""

import sys
import time
import traceback
import unittest

import numpy as np
import torch
from tap_support import FLOW, FlowPolicy, flow_tap, recorded
from torch import nn

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.taps import FeatureTap
from vla_feature_bridge.tokens import token_statistics

try:
    import pytest
except ImportError:  # a machine with a GPU and nothing else
    pass
else:
    pytestmark = pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason='NOT CHECKED HERE: taps on a GPU; run this file on a machine with CUDA',
    )

SPEC = FeatureSpec(
    'pre_velocity', 0, ('denoise', 'horizon'), (('horizon', 'mean'), ('denoise', 'mean'))
)
#: Clock cycles of a GPU: about half a second.
LONG = 900_000_000


def on_cuda(dtype=torch.float32, **numbers):
    """Return a policy on the GPU, its observation and its noise."""
    torch.manual_seed(3)
    policy = FlowPolicy(**numbers).to('cuda', dtype)
    state = policy.observation()['observation.state'].to('cuda', dtype)
    observation = {'observation.state': state, 'task': ['pour the tea']}
    return policy, observation, policy.noise().to('cuda', dtype)


def by_hand(states):
    """Return recorded inputs on the host, as a tap gives them."""
    states = states.cpu()
    return (states.float() if states.dtype == torch.bfloat16 else states).numpy()


def assert_equal_by_hand(dtype=torch.float32, **mode):
    """Compare raw and pooled features and actions of some inferences with those by hand."""
    policy, observation, noise = on_cuda(dtype)
    raw, pooled = flow_tap(policy, pooling='raw'), flow_tap(policy)
    for number in range(4):
        with torch.inference_mode(mode.get('inference_mode', False)):
            chunk, states = recorded(
                policy, lambda n=number: policy.predict_action_chunk(observation, noise + n)
            )
        found, expected = raw.last, by_hand(states)
        assert found.problem == '', found.problem
        assert found.features.shape == (5, 8, 16)
        assert found.dtype == str(dtype).removeprefix('torch.')
        np.testing.assert_array_equal(found.features, expected)
        np.testing.assert_array_equal(pooled.last.features, SPEC.apply(expected))
        np.testing.assert_array_equal(found.actions, by_hand(chunk))
    assert not raw.problems, raw.problems
    assert not pooled.problems, pooled.problems


def test_eager_values_are_those_by_hand():
    assert_equal_by_hand()


def test_values_of_other_dtypes_are_those_by_hand():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert_equal_by_hand(dtype)


def test_values_in_inference_mode_are_those_by_hand():
    assert_equal_by_hand(inference_mode=True)
    assert_equal_by_hand(torch.bfloat16, inference_mode=True)


def test_values_under_a_side_stream_are_those_by_hand():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert_equal_by_hand()
        assert_equal_by_hand(torch.bfloat16, inference_mode=True)


class InPlace(nn.Module):
    """Computes slowly into one buffer, calls its head, and overwrites the buffer at once."""

    def __init__(self, streams):
        super().__init__()
        self.head, self.streams = nn.Identity(), streams
        self.buffer = torch.zeros(1, 50, 256, device='cuda')
        self.chunk = torch.zeros(1, 4, 7, device='cuda')

    def infer(self, number, cycles=0):
        torch.cuda._sleep(cycles)
        for call in range(10):
            stream = self.streams[call % len(self.streams)]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.buffer.fill_(100 * number + call)
                self.head(self.buffer)
                self.buffer.fill_(-1)
            torch.cuda.current_stream().wait_stream(stream)
        self.chunk.fill_(number)
        return self.chunk


def in_place_tap(policy, **options):
    return FeatureTap(
        policy,
        'head',
        calls=10,
        axes=['call', 'position'],
        ends='infer',
        actions=['batch', 'horizon', 'action'],
        exec_horizon=2,
        **options,
    )


def expected_in_place(number):
    values = 100 * number + np.arange(10, dtype=np.float32)
    return np.broadcast_to(values[:, None, None], (10, 50, 256))


def test_buffers_may_be_overwritten_at_once_in_any_stream():
    now, side, other = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()
    for streams in ([now], [side], [side, other], [now, side]):
        policy = InPlace(streams)
        tap = in_place_tap(policy)
        for number in range(1, 4):
            chunk = policy.infer(number, LONG // 10)
            chunk.fill_(-1)
            np.testing.assert_array_equal(tap.last.features, expected_in_place(number))
            np.testing.assert_array_equal(tap.last.actions, np.full((1, 4, 7), number, np.float32))
        assert not tap.problems, tap.problems


def test_the_thread_of_the_policy_never_waits_for_the_gpu():
    policy = InPlace([torch.cuda.current_stream()])
    policy.infer(0)
    tap = in_place_tap(policy)
    policy.infer(0)
    assert tap.last.features is not None  # memory of the host and the stream are there now
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')  # a copy that waits raises an error
    try:
        start = time.perf_counter()
        policy.infer(1, LONG)
        taken = time.perf_counter() - start
        assert not torch.cuda.current_stream().query(), 'the GPU still works'
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert taken < 0.1, f'{taken:.3f} s'
    np.testing.assert_array_equal(tap.last.features, expected_in_place(1))
    assert not tap.problems, tap.problems


def test_steps_and_the_end_reach_the_bridge_in_order():
    import tempfile

    from vla_feature_bridge.wire import StepReceiver

    messages = []
    with tempfile.TemporaryDirectory() as folder:
        address = f'unix:{folder}/bridge.sock'
        with StepReceiver([address], lambda source, message: messages.append(message)) as bridge:
            bridge.set_status(True)
            policy = InPlace([torch.cuda.current_stream()])
            tap = in_place_tap(policy, sink=address)
            tap.start()
            for number in range(6):
                policy.infer(number, LONG // 20)
            tap.end(success=True)
            tap.detach()
            deadline = time.monotonic() + 20
            while len(messages) < 8 and time.monotonic() < deadline:
                time.sleep(0.01)
    assert [getattr(m, 'kind', getattr(m, 'step', None)) for m in messages] == [
        'start',
        *range(6),
        'end',
    ]
    for number, step in enumerate(messages[1:-1]):
        np.testing.assert_array_equal(step.features, expected_in_place(number))
    assert not tap.problems, tap.problems


def test_token_statistics_are_those_by_hand():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 300, device='cuda', dtype=torch.bfloat16)

        @torch.inference_mode()
        def infer(self, states):
            return [self.head(state) for state in states]

    policy = Tokens()
    tap = FeatureTap(
        policy, 'head', calls=3, keep='[:, -1]', axes=['token'], ends='infer', token_logits=True
    )
    states = torch.randn(3, 1, 5, 16, device='cuda', dtype=torch.bfloat16)
    logits = torch.stack([out[0, -1] for out in policy.infer(states)])
    probability, entropy = token_statistics(by_hand(logits))
    np.testing.assert_array_equal(tap.last.features, by_hand(states[:, 0, -1]))
    np.testing.assert_array_equal(tap.last.token_probability, probability)
    np.testing.assert_array_equal(tap.last.token_entropy, entropy)
    assert not tap.problems, tap.problems


def test_an_inference_in_a_cuda_graph_is_said_and_the_graph_stays_right():
    policy, observation, noise = on_cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            plain = policy.predict_action_chunk(observation, noise)
    torch.cuda.synchronize()
    tap = flow_tap(policy)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        chunk = policy.predict_action_chunk(observation, noise)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(chunk, plain)
    assert tap.last.features is None
    assert 'CUDA graph' in tap.last.problem
    assert tap.problems['graph'] == 1
    policy.predict_action_chunk(observation, noise)
    assert tap.last.problem == ''
    assert tap.last.features is not None


def assert_compiled(**options):
    """Compare a compiled policy with what its own actions say about the states."""
    torch._dynamo.reset()
    policy, observation, noise = on_cuda(num_inference_steps=3)
    eager = flow_tap(policy, pooling='raw')
    policy.predict_action_chunk(observation, noise)
    plain = eager.last.features
    eager.detach()
    policy.model.sample_actions = torch.compile(policy.model.sample_actions, **options)
    tap = FeatureTap(policy, FLOW, pooling='raw')
    try:
        for _ in range(4):
            chunk = policy.predict_action_chunk(observation, noise).clone()
            assert (tap.last.calls, tap.last.problem) == (3, '')
            np.testing.assert_array_equal(tap.last.actions, by_hand(chunk))
            np.testing.assert_allclose(tap.last.features, plain, rtol=0, atol=1e-4)
            x = noise
            for state in torch.from_numpy(tap.last.features).cuda():
                x = x - policy.model.action_out_proj(state[None]) / 3
            torch.testing.assert_close(x, chunk, rtol=0, atol=1e-4)
        assert not tap.problems, tap.problems
    finally:
        tap.detach()
        torch._dynamo.reset()


def test_a_compiled_policy_is_tapped_at_every_call():
    assert_compiled(backend='eager')


def test_a_policy_that_inductor_compiled_is_tapped_at_every_call():
    for mode in ('default', 'reduce-overhead'):
        try:
            double = torch.compile(lambda x: x * 2 + 1, mode=mode)
            double(torch.ones(8, device='cuda'))
        except Exception as error:
            raise unittest.SkipTest(f'NOT CHECKED HERE: inductor ({error!r:.200})') from None
        assert_compiled(mode=mode)


def main():
    """Run the tests of this file without pytest; the exit status is the number of failures."""
    if not torch.cuda.is_available():
        print('NOT CHECKED HERE: taps on a GPU; this machine has no CUDA')
        return 1
    print(f'torch {torch.__version__}, {torch.cuda.get_device_name()}')
    failures = 0
    for name, test in [item for item in globals().items() if item[0].startswith('test_')]:
        start = time.perf_counter()
        try:
            test()
            result = 'passed'
        except unittest.SkipTest as reason:
            result = f'SKIPPED {reason}'
        except Exception:
            failures += 1
            result = 'FAILED\n' + traceback.format_exc()
        print(f'{time.perf_counter() - start:6.1f} s  {name}: {result}', flush=True)
    print(f'{failures} failures')
    return failures


if __name__ == '__main__':
    sys.exit(main())
