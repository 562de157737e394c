# SPDX-License-Identifier: Apache-2.0
"""Every full dump against a reading of the same files by pickle and torch, to the bit."""

import csv
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_training.recordings.convert import convert
from safe_training.recordings.sources import load_rollouts
from vla_feature_bridge.rollout_set.reader import RolloutSet

pytestmark = pytest.mark.skipif('SAFE_SHARED' not in os.environ, reason='SAFE_SHARED is not set')
RAW = Path(os.environ.get('SAFE_SHARED', '.')) / 'rollouts' / 'miniature' / 'raw'


def load(path):
    """Read files of our own making; the readers under test never do this."""
    return pickle.loads(path.read_bytes())


def bits(array):
    """Return dtype name, shape and bytes of a numpy array or torch tensor."""
    if torch.is_tensor(array):
        name = str(array.dtype).removeprefix('torch.')
        raw = array.contiguous().view(torch.int16 if name == 'bfloat16' else torch.int32)
        return name, tuple(array.shape), raw.numpy().tobytes()
    return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()


def openvla():
    for file in RAW.glob('openvla/*.pkl'):
        record = load(file)
        with file.with_suffix('.csv').open() as stream:
            rows = list(csv.DictReader(stream))
        names = ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')
        actions = np.array([[float(r[f'action/{n}']) for n in names] for r in rows], np.float32)
        index = record.get('eposide_idx', record.get('episode_idx'))
        yield {
            'key': (record['task_description'], index),
            'success': record['episode_success'],
            'steps': list(record['hidden_states']),
            'actions': actions[:, None, None, :],
            'exec_horizon': 1,
        }


def openpi(folder, feature):
    """Read one root; ties records by task and episode in their own content."""
    records = {}
    for file in (RAW / folder / 'policy_records').glob('*meta.pkl'):
        record = load(file)
        key = record['run/task_id'], record['run/episode_idx']
        records.setdefault(key, []).append((record['run/timestep'], record))
    for file in (RAW / folder / 'env_records').glob('*.pkl'):
        env = load(file)
        mine = sorted(records[env['task_id'], env['episode_idx']], key=lambda pair: pair[0])
        assert len(mine) == env['model_infer_times']
        yield {
            'key': (env['task_description'], env['episode_idx']),
            'success': env['episode_success'],
            'steps': [record[feature] for _, record in mine],
            'actions': np.stack([record['actions'][None] for _, record in mine]),
            'exec_horizon': env['replan_steps'],
            'logits': [record['logits'] for _, record in mine] if feature == 'pre_logits' else None,
        }


def pizero():
    return openpi('pizero', 'pre_velocity')


def pizero_fast():
    return openpi('pizero_fast', 'pre_logits')


def pizero_fast_droid():
    for root in sorted((RAW / 'pizero_fast_droid').iterdir()):
        found = sorted(openpi(root.relative_to(RAW), 'pre_logits'), key=lambda e: e['key'])
        for rank, episode in enumerate(found):  # one digit each, so that names sort like numbers
            yield episode | {'key': (episode['key'][0], rank)}


def open_pizero():
    for file in RAW.glob('open_pizero/*/*.pkl'):
        meta = json.loads(file.with_name(f'{file.stem}_meta.json').read_text())
        steps = load(file)
        order = [-1, *range(len(steps[0]['sampled_actions']) - 1)]
        yield {
            'key': (file.parent.name, meta['episode_id']),
            'success': meta['success'],
            'steps': [step['sampled_action_embeds'][-1] for step in steps],
            'actions': np.stack([step['sampled_actions'][order] for step in steps]),
            'exec_horizon': 4 if file.parent.name.startswith('widowx') else 2,
        }


def as_float(step):
    return step.float().numpy() if torch.is_tensor(step) else step.astype(np.float32)


#: Reader, number of rollouts, default pooling, written out.
DUMPS = {
    'openvla': (openvla, 96, lambda x: x[-1]),
    'pizero': (pizero, 64, lambda x: x.mean(1, dtype=np.float64).mean(0)),
    'pizero_fast': (pizero_fast, 63, lambda x: x.mean(0, dtype=np.float64)),
    'pizero_fast_droid': (pizero_fast_droid, 40, lambda x: x.mean(0, dtype=np.float64)),
    'open_pizero': (open_pizero, 48, lambda x: x[0, 0]),
}


def check(rollouts, dump):
    read, count, _ = DUMPS[dump]
    expected = {episode['key']: episode for episode in read()}
    assert len(rollouts) == len(expected) == count
    assert Counter((r.task, r.success) for r in rollouts) == Counter(
        (key[0], episode['success']) for key, episode in expected.items()
    )
    for rollout in rollouts:
        episode = expected.pop((rollout.task, rollout.episode_index))
        assert rollout.success == episode['success']
        assert rollout.exec_horizon == episode['exec_horizon']
        assert bits(rollout.actions) == bits(episode['actions'])
        assert len(rollout) == len(episode['steps'])
        yield rollout, episode
    assert not expected


@pytest.mark.parametrize('dump', DUMPS)
def test_a_raw_set_holds_the_dump_to_the_bit(tmp_path, dump):
    convert(RAW / dump, tmp_path / 'set', keep='raw', all_episodes=True)
    for rollout, episode in check(RolloutSet.open(tmp_path / 'set'), dump):
        for step, expected in enumerate(episode['steps']):
            assert bits(rollout.step(step).features) == bits(expected)
        if episode.get('logits'):
            for step, logits in enumerate(episode['logits']):
                p = torch.softmax(torch.tensor(logits.astype(np.float64)), dim=1)
                entropy = -(p * p.log()).sum(1).numpy()
                found = rollout.step(step)
                np.testing.assert_allclose(found.token_probability, p.max(1).values, rtol=1e-6)
                np.testing.assert_allclose(found.token_entropy, entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dump', DUMPS)
def test_the_default_pooling_of_a_dump_and_of_its_raw_set(tmp_path, dump):
    pool = DUMPS[dump][2]
    rollouts = load_rollouts(RAW / dump, all_episodes=True)
    feature = rollouts.feature
    exact = dump in ('openvla', 'open_pizero')
    for rollout, episode in check(rollouts, dump):
        expected = np.stack([pool(as_float(step)) for step in episode['steps']])
        tolerance = 0 if exact else 2e-6
        np.testing.assert_allclose(rollout.features, expected, rtol=tolerance, atol=tolerance)
    convert(RAW / dump, tmp_path / 'raw', keep='raw', all_episodes=True)
    again = load_rollouts(tmp_path / 'raw')
    of_raw = again.feature
    assert of_raw == feature
    for one, other in zip(rollouts, again, strict=True):
        assert bits(one.features) == bits(other.features)


def test_the_franka_protocol_balances_every_task():
    rollouts = load_rollouts(RAW / 'pizero_fast_droid')
    counts = Counter((r.task_id, r.success) for r in rollouts)
    assert {counts[task, True] for task in range(8)} == {2}
    assert {counts[task, False] for task in range(8)} == {2}
    names = {r.task_id: r.task for r in rollouts}
    assert [names[number] for number in range(8)] == sorted(names.values())
