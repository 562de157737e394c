# SPDX-License-Identifier: Apache-2.0
"""Inferences of several threads in one policy do not mix."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tap_support import FLOW, FlowPolicy, flow_tap

from vla_feature_bridge.taps import FeatureTap


class Together:
    """Lets several threads pass the head of a policy by turns, so that their calls interleave."""

    def __init__(self, policy, count):
        self.barrier = threading.Barrier(count, timeout=60)
        self.order = []
        policy.model.action_out_proj.register_forward_pre_hook(self._meet)

    def _meet(self, module, args):
        self.order.append(threading.current_thread().name)
        self.barrier.wait()


def run_together(policy, seeds):
    """Infer in one thread for each seed, at the same time."""
    chunks = {}

    def work(seed):
        chunks[f'policy {seed}'] = policy.predict_action_chunk(
            policy.observation(seed), policy.noise(seed)
        )

    threads = [threading.Thread(target=work, args=(s,), name=f'policy {s}') for s in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return chunks


def in_a_thread(function):
    """Return the result of a function that runs in a thread of its own.

    The main thread may compute with another number of threads, and round in another way.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(60)


def features_alone(seeds, **changes):
    policy = tapped_policy()
    tap = FeatureTap(policy, FLOW, pooling='raw', **changes)
    found = {}
    for seed in seeds:
        policy.predict_action_chunk(policy.observation(seed), policy.noise(seed))
        found[f'policy {seed}'] = tap.last.features
    return found


def tapped_policy():
    torch.manual_seed(7)
    return FlowPolicy()


def test_calls_that_interleave_belong_to_their_threads():
    seeds = (1, 2, 3)
    for changes in ({}, {'ends': 'calls', 'actions': []}):
        alone = in_a_thread(lambda changes=changes: features_alone(seeds, **changes))
        policy = tapped_policy()
        meeting = Together(policy, len(seeds))
        tap = FeatureTap(policy, FLOW, pooling='raw', **changes)
        seen = {}
        tap.on_inference(lambda inference, seen=seen: seen.update({inference.thread: inference}))
        chunks = run_together(policy, seeds)
        first = meeting.order[: 2 * len(seeds)]
        assert len(set(first[: len(seeds)])) == len(seeds), 'the calls interleave'
        assert set(seen) == set(alone) == set(chunks)
        for name, inference in seen.items():
            # Products of matrices differ in the last bits if the libraries use other threads.
            np.testing.assert_allclose(inference.features, alone[name], rtol=0, atol=1e-5)
            assert inference.calls == 5
            if not changes:
                np.testing.assert_array_equal(inference.actions, chunks[name].numpy())
        assert not tap.problems


def test_pooled_features_of_threads_share_no_memory():
    seeds = (1, 2, 3, 4)
    policy = tapped_policy()
    tap = flow_tap(policy, pooling=['horizon=first', 'denoise=first'])
    alone = {}

    def infer_alone():
        for seed in seeds:
            policy.predict_action_chunk(policy.observation(seed), policy.noise(seed))
            alone[f'policy {seed}'] = tap.last.features.copy()

    in_a_thread(infer_alone)
    seen = {}
    tap.on_inference(lambda inference: seen.update({inference.thread: inference.features}))
    for _ in range(3):
        run_together(policy, seeds)
    for name, features in seen.items():
        np.testing.assert_allclose(features, alone[name], rtol=0, atol=1e-5)


def test_a_call_in_another_thread_belongs_to_no_inference():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    layer = policy.model.layers[0]

    def elsewhere(module, args):
        thread = threading.Thread(target=policy.model.action_out_proj, args=(torch.ones(1, 8, 16),))
        thread.start()
        thread.join(60)

    layer.register_forward_pre_hook(elsewhere)
    policy.predict_action_chunk(policy.observation())
    assert tap.last.calls == 5
    assert not tap.problems
