# SPDX-License-Identifier: Apache-2.0
"""What every registered detector promises of live steps."""

import collections
import dataclasses
import types

import numpy as np
import pytest
import torch
from detector_cases import (
    HELD_OUT,
    WIDTH,
    every_case,
    fitted,
    full_rollout,
)
from live_scores import streamed

from safe_monitor_node.detectors import StepError

# --- streams


@every_case
def test_two_episodes_at_once_share_no_memory(case):
    first, second = HELD_OUT[0], HELD_OUT[1]
    alone = [streamed(fitted(case), first), streamed(fitted(case), second)]
    streams = [fitted(case).stream(), fitted(case).stream()]
    mixed = [[], []]
    for t in range(max(len(first), len(second))):
        for stream, rollout, scores in zip(streams, (first, second), mixed, strict=True):
            if t < len(rollout):
                scores.append(stream.step(rollout.step(t)))
            # Batch scoring meanwhile is no step of any stream.
            fitted(case).score(first)
    for found, expected in zip(mixed, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@every_case
def test_a_step_gives_a_plain_float_and_is_not_changed(case):
    step = HELD_OUT[0].step(0)
    before = {name: np.copy(getattr(step, name)) for name in ('features', 'actions')}
    assert type(fitted(case).stream().step(step)) is float
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(step, name), array)


def held_bytes(thing):
    """Return the bytes of all arrays and the number of all entries that an object holds."""
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return len(thing) + sum(map(held_bytes, thing.values()))
    if isinstance(thing, (list, tuple, collections.deque)):
        return len(thing) + sum(map(held_bytes, thing))
    if isinstance(thing, types.MethodType) or not hasattr(thing, '__dict__'):
        return 0
    return held_bytes(vars(thing))


@every_case
def test_the_memory_of_a_stream_does_not_grow(case):
    rollout = full_rollout(np.random.default_rng(7), 0, 60)
    stream = fitted(case).stream()
    held = []
    for t in range(len(rollout)):
        stream.step(rollout.step(t))
        held.append(held_bytes(stream))
    assert held[-1] == held[29]


BAD_FEATURES = {
    'NaN': lambda f: np.where(np.arange(WIDTH) == 3, np.nan, f),
    'infinity': lambda f: np.where(np.arange(WIDTH) == 3, np.inf, f),
    'both infinities': lambda f: np.concatenate([[np.inf, -np.inf], f[2:]]),
    'all NaN': lambda f: np.full_like(f, np.nan),
    'NaN in half precision': lambda f: np.full(WIDTH, np.nan, np.float16),
    'too narrow': lambda f: f[:-1],
    'too wide': lambda f: np.append(f, 0.0),
    'empty': lambda f: f[:0],
    'raw': lambda f: np.stack([f, f]),
    'a row': lambda f: f[None],
    'a number': lambda f: f[0],
}
BAD_ACTIONS = {
    'NaN': lambda a: np.where(a == a[0, 0, 0], np.nan, a),
    'infinity': lambda a: np.where(a == a[0, 0, 0], np.inf, a),
    'no sample': lambda a: a[:0],
    'no horizon': lambda a: a[:, :0],
    'one action': lambda a: a[0, 0],
    'one chunk': lambda a: a[0],
    'a number': lambda a: a[0, 0, 0],
    'absent': lambda a: None,
}


def bad_steps(needs, step):
    """Return (what is wrong, step) for everything that a detector with these needs must refuse."""
    found = []
    if 'features' in needs:
        found += [
            (
                f'features: {kind}',
                dataclasses.replace(step, features=np.asarray(bad(step.features))),
            )
            for kind, bad in BAD_FEATURES.items()
        ]
    if needs & {'actions', 'sampled_actions'}:
        found += [
            (f'actions: {kind}', dataclasses.replace(step, actions=bad(step.actions), signals={}))
            for kind, bad in BAD_ACTIONS.items()
        ]
    if 'sampled_actions' in needs:
        found.append(('one sample', dataclasses.replace(step, actions=step.actions[:1])))
    if 'tokens' in needs:
        absent = dataclasses.replace(step, token_probability=None, token_entropy=None)
        found.append(('tokens: absent', absent))
    if 'signals' in needs:
        found.append(('signals: absent', dataclasses.replace(step, signals={})))
        broken = dict.fromkeys(step.signals, float('nan'))
        found.append(('signals: NaN', dataclasses.replace(step, signals=broken)))
    return found


@every_case
@pytest.mark.parametrize('at', [0, 3], ids=['first', 'later'])
def test_a_bad_step_is_refused_and_forgotten(case, at):
    rollout = HELD_OUT[2]
    expected = streamed(fitted(case), rollout)
    for kind, bad in bad_steps(case.needs, rollout.step(at)):
        stream = fitted(case).stream()
        scores = []
        for t in range(len(rollout)):
            if t == at:
                for _ in range(2):
                    try:
                        with pytest.raises(StepError, match=f'step {at}'):
                            stream.step(bad)
                    except AssertionError as error:
                        raise AssertionError(f'{kind}: {error}') from error
            scores.append(stream.step(rollout.step(t)))
        np.testing.assert_array_equal(scores, expected, err_msg=kind)


@every_case
def test_features_near_the_largest_number_are_no_infinity(case):
    rollout = HELD_OUT[0]
    large = dataclasses.replace(rollout, features=rollout.features * np.float32(1e25))
    stream = fitted(case).stream()
    stream.step(large.step(0))
