# SPDX-License-Identifier: Apache-2.0
"""The reader of open-pi-zero's rollouts in SimplerEnv: order of tasks, samples, refusals."""

import json
import pickle

import numpy as np
import pytest
import torch

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source

BRIDGE, FRACTAL = 'widowx_spoon_on_towel', 'google_robot_open_drawer'


def write_episode(root, task=BRIDGE, episode=0, success=True, steps=3, meta=None, **changes):
    """Write one episode; ``changes`` replace entries of every step's dict, None removes one."""
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f'ep{episode}_succ{int(success)}'
    said = {'task': 'put it there', 'episode_id': episode, 'success': success} | (meta or {})
    (folder / f'{stem.name}_meta.json').write_text(json.dumps(said))
    generator = torch.Generator().manual_seed(episode)
    records = []
    for step in range(steps):
        record = {
            'sampled_action_embeds': torch.randn(3, 2, 4, 6, generator=generator).bfloat16(),
            'sampled_actions': np.arange(84, dtype=np.float32).reshape(3, 4, 7) + step,
        } | changes
        records.append({key: value for key, value in record.items() if value is not None})
    stem.with_suffix('.pkl').write_bytes(pickle.dumps(records))
    return stem.with_suffix('.pkl')


def test_both_robots(tmp_path):
    file = write_episode(tmp_path, FRACTAL, 2, success=False)
    write_episode(tmp_path, BRIDGE, 10)
    write_episode(tmp_path, BRIDGE, 9)
    (tmp_path / BRIDGE / 'ep9_succ1.mp4').write_bytes(b'')
    (tmp_path / 'logs').mkdir()
    source = open_source(tmp_path)
    rollouts = list(source.rollouts())
    assert source.kind == 'open_pi_zero'
    found = 'contains 1 bridge, 1 fractal task folders of SimplerEnv'
    assert source.why == f'{found}, for example {BRIDGE}'
    assert source.notes == ['these files and folders are not tasks and are not read: logs']
    assert [(r.task, r.task_id, r.episode_index) for r in rollouts] == [
        (BRIDGE, 0, 9),
        (BRIDGE, 0, 10),
        (FRACTAL, 1, 2),
    ]
    assert [r.exec_horizon for r in rollouts] == [4, 4, 2]
    assert [r.action_space for r in rollouts] == [''] * 3, 'the format does not say it'
    assert [r.success for r in rollouts] == [True, True, False]
    assert [r.video for r in rollouts] == [f'{BRIDGE}/ep9_succ1.mp4', '', '']
    assert rollouts[0].instruction == 'put it there'
    records = pickle.loads(file.read_bytes())
    for step, record in enumerate(records):
        # The last sample is executed: it comes first, the others keep their order.
        executed = record['sampled_action_embeds'][-1]
        expected = executed[0, 0].float().numpy()
        np.testing.assert_array_equal(rollouts[2].features[step], expected)
        actions = record['sampled_actions']
        np.testing.assert_array_equal(rollouts[2].actions[step], actions[[2, 0, 1]])


def test_horizon_is_pooled_before_denoising(tmp_path):
    file = write_episode(tmp_path)
    pooling = (('horizon', 'concat'), ('denoise', 'last'))
    found = load_rollouts(tmp_path, pooling=pooling)
    (rollout,) = found
    feature = found.feature
    assert (str(feature), feature.dim) == (
        'sampled_action_embeds[horizon=concat,denoise=last]',
        24,
    )
    first = pickle.loads(file.read_bytes())[0]['sampled_action_embeds'][-1, -1]
    np.testing.assert_array_equal(rollout.features[0], first.float().flatten().numpy())


def test_raw_and_no_features(tmp_path):
    file = write_episode(tmp_path, sampled_action_embeds=torch.rand(3, 2, 4, 6))
    found = load_rollouts(tmp_path, keep='raw')
    (raw,) = found
    feature = found.feature
    assert (feature.axes, feature.dim) == (('denoise', 'horizon'), 6)
    step = pickle.loads(file.read_bytes())[1]['sampled_action_embeds'][-1]
    np.testing.assert_array_equal(raw.step(1).features, step.numpy())
    found = load_rollouts(tmp_path, feature='none')
    (none,) = found
    feature = found.feature
    assert (str(feature), none.features.shape) == ('none', (3, 0))
    with pytest.raises(DumpError, match=r'either raw features \(--keep raw\) or a pooling .*both'):
        open_source(tmp_path, keep='raw', pooling=(('horizon', 'mean'), ('denoise', 'mean')))


DAMAGES = {
    'no-pickle': (
        lambda file: file.unlink(),
        'a file with the steps of the episode beside ep0_succ1_meta.json',
    ),
    'no-json': (
        lambda file: file.with_name('ep0_succ1_meta.json').unlink(),
        'a file with the outcome of the episode beside ep0_succ1.pkl',
    ),
    'empty': (
        lambda file: file.write_bytes(pickle.dumps([])),
        'a list with one entry for each inference, found an empty list',
    ),
    'no-actions': (
        lambda file: file.write_bytes(pickle.dumps([{}])),
        'at step 0, found a dict without',
    ),
    'not-json': (
        lambda file: file.with_name('ep0_succ1_meta.json').write_text('{'),
        'expected a JSON file of an episode, found the error: Expecting',
    ),
    'json-list': (
        lambda file: file.with_name('ep0_succ1_meta.json').write_text('[]'),
        'expected task as text, found an empty list',
    ),
}
RECORDS = {
    'outcome': ({'meta': {'success': False}}, 'success 1, as in the file name, found 0'),
    'index': ({'meta': {'episode_id': 4}}, 'episode_id 0, as in the file name, found 4'),
    'task': ({'meta': {'task': None}}, 'expected task as text, found no value'),
    'nan': (
        {'sampled_action_embeds': torch.full((3, 2, 4, 6), torch.nan)},
        'sampled_action_embeds without NaN and infinity, found NaN .* step 0',
    ),
    'axes': ({'sampled_action_embeds': torch.zeros(3, 4, 6)}, r'found an array of shape \(3, 4'),
    'samples': ({'sampled_action_embeds': torch.zeros(2, 2, 4, 6)}, '3 samples, denoise'),
    'no-embeds': ({'sampled_action_embeds': None}, 'found no value at step 0'),
    'actions': (
        {'sampled_actions': np.zeros((3, 4))},
        'expected sampled_actions of shape .samples',
    ),
    'inf': (
        {'sampled_actions': np.full((3, 4, 7), np.inf)},
        'sampled_actions with float values, .* found NaN or infinity at step 0',
    ),
}


@pytest.mark.parametrize('name', [*DAMAGES, *RECORDS])
def test_a_bad_episode_is_refused_or_left_out(tmp_path, name):
    write_episode(tmp_path, episode=1)
    write_episode(tmp_path, episode=2, success=False)
    if name in RECORDS:
        changes, message = RECORDS[name]
        write_episode(tmp_path, **changes)
    else:
        damage, message = DAMAGES[name]
        damage(write_episode(tmp_path))
    with pytest.raises(DumpError, match=message) as caught:
        load_rollouts(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / BRIDGE / 'ep0_succ1'))
    source = open_source(tmp_path, skip_bad=True)
    assert [r.episode_index for r in source.rollouts()] == [1, 2]
    assert len(source.skipped) == 1


def test_an_episode_with_both_outcomes(tmp_path):
    write_episode(tmp_path, episode=1)
    write_episode(tmp_path, episode=1, success=False)
    write_episode(tmp_path, episode=2)
    with pytest.raises(DumpError, match=r'with one outcome of episode 1, found also .*ep1_succ'):
        load_rollouts(tmp_path)
    rollouts = load_rollouts(tmp_path, skip_bad=True)
    assert [r.episode_index for r in rollouts] == [2]


def test_another_width(tmp_path):
    write_episode(tmp_path, episode=0)
    write_episode(tmp_path, episode=1, sampled_action_embeds=torch.zeros(3, 2, 4, 8))
    for keep, message in (
        ('pooled', 'pooled width of 6, found 8'),
        ('raw', 'width 6, as in the other episodes, found width 8'),
    ):
        with pytest.raises(DumpError, match=message):
            load_rollouts(tmp_path, keep=keep)
