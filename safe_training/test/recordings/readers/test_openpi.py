# SPDX-License-Identifier: Apache-2.0
"""Readers of openpi's recordings: which record belongs to which episode, and what is refused."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from shared_files import golden_arrays, golden_json

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.pi0_fast_droid import balanced
from safe_training.recordings.sources import load_rollouts, open_source
from vla_feature_bridge.tokens import token_statistics

TASKS = ('open the drawer', 'close the drawer')


class Recorder:
    """Writes a root as openpi does; ``style`` is how the policy records are named."""

    def __init__(self, root, policy='pi0', style='named', droid=False):
        self.root, self.policy, self.style, self.droid = root, policy, style, droid
        (root / 'env_records').mkdir(parents=True)
        (root / 'policy_records').mkdir()
        self.count = 0

    def episode(self, task=0, episode=0, success=True, steps=3, description=None, **changes):
        description = TASKS[task] if description is None else description
        suffix = '--meta.pkl' if self.droid else '.pkl'
        stem = f'task{task}--ep{episode}--succ{int(success)}'
        record = {
            'task_suite_name': 'libero_10',
            'task_id': task,
            'task_description': description,
            'eposide_idx': episode,
            'episode_success': success,
            'mp4_path': f'rollouts/{stem}.mp4',
            'model_infer_times': steps,
            'replan_steps': 2,
        } | changes
        record = {key: value for key, value in record.items() if value is not None}
        self.env = self.root / 'env_records' / (stem + suffix)
        self.env.write_bytes(pickle.dumps(record))
        self.policy_files = [self.inference(task, episode, t, description) for t in range(steps)]
        return self.env

    def inference(self, task, episode, step, prompt, **changes):
        rng = np.random.default_rng([task, episode, step])
        record = {
            'prompt': prompt,
            'run/task_id': task,
            'run/episode_idx': episode,
            'actions': rng.normal(size=(5, 7)),
            'state': np.zeros(8, np.float32),
        }
        if self.policy == 'pi0':
            record['pre_velocity'] = rng.normal(size=(4, 5, 6)).astype(np.float32)
        else:
            tokens = 2 + (task + episode + step) % 4
            for name, width in (('encoded', 6), ('pre_logits', 6), ('logits', 9)):
                array = rng.normal(size=(tokens, width)) * 3
                record[name] = array.astype(ml_dtypes.bfloat16)
        record = {k: v for k, v in (record | changes).items() if v is not None}
        name = {
            'named': f'step_{self.count}--run--task_{task}--ep_{episode}--t_{2 * step}--meta.pkl',
            'plain': f'step_{self.count}--meta.pkl',
        }[self.style]
        self.count += 1
        file = self.root / 'policy_records' / name
        file.write_bytes(pickle.dumps(record))
        return file


def change(file, **changes):
    """Replace entries of a pickled dict; None removes one."""
    record = {**pickle.loads(file.read_bytes()), **changes}
    record = {key: value for key, value in record.items() if value is not None}
    file.write_bytes(pickle.dumps(record))


def record_three(root, **options):
    """Write three episodes, 11 inferences; returns the recorder."""
    recorder = Recorder(root, **options)
    recorder.episode(0, 0, steps=3)
    recorder.episode(0, 1, success=False, steps=6)
    recorder.episode(1, 0, steps=2)
    return recorder


def names(rollouts):
    return [rollout.episode_id for rollout in rollouts]


@pytest.mark.parametrize('style', ['named', 'plain'])
def test_pi0(tmp_path, style):
    record_three(tmp_path, style=style)
    (tmp_path / 'env_records' / 'task0--ep1--succ0.mp4').write_bytes(b'')
    source = open_source(tmp_path)
    assert (source.kind, source.policy, len(source)) == ('pi0', 'pi0', 3)
    rollouts = list(source.rollouts())
    assert str(source.feature) == 'pre_velocity[horizon=mean,denoise=mean]'
    assert names(rollouts) == ['task0--ep0', 'task0--ep1', 'task1--ep0']
    assert [len(r) for r in rollouts] == [3, 6, 2]
    assert [r.success for r in rollouts] == [True, False, True]
    assert [r.video for r in rollouts] == ['', 'env_records/task0--ep1--succ0.mp4', '']
    for rollout in rollouts:
        assert (rollout.task, rollout.exec_horizon) == (TASKS[rollout.task_id], 2)
        assert rollout.action_space == 'robot'
        assert rollout.token_probability is None
        for step in range(len(rollout)):
            rng = np.random.default_rng([rollout.task_id, rollout.episode_index, step])
            np.testing.assert_array_equal(rollout.actions[step, 0], rng.normal(size=(5, 7)))
            raw = rng.normal(size=(4, 5, 6)).astype(np.float32)
            np.testing.assert_allclose(rollout.features[step], raw.mean((0, 1)), atol=1e-6)


def test_natural_order_of_many_records(tmp_path):
    recorder = Recorder(tmp_path, style='plain')
    for episode in range(12):
        recorder.episode(0, episode, steps=3)
    rollouts = load_rollouts(tmp_path)
    assert [r.episode_index for r in rollouts] == list(range(12))
    for rollout in rollouts:
        first = np.random.default_rng([0, rollout.episode_index, 0]).normal(size=(5, 7))
        np.testing.assert_array_equal(rollout.actions[0, 0], first)


@pytest.mark.parametrize('policy', ['pi0', 'pi0_fast', 'droid'])
@pytest.mark.parametrize('style', ['named', 'plain'])
def test_every_record_is_read_once(tmp_path, monkeypatch, policy, style):
    """The first record shows the policy and the feature too, and is kept until it is read."""
    if policy == 'droid':
        record_franka(tmp_path)
    else:
        record_three(tmp_path, policy=policy, style=style)
    opened = Counter()
    read_bytes = Path.read_bytes

    def counting(file):
        opened[file.relative_to(tmp_path)] += 1
        return read_bytes(file)

    monkeypatch.setattr(Path, 'read_bytes', counting)
    source = open_source(tmp_path, all_episodes=True)
    for _ in source.rollouts():
        pass
    assert opened == Counter(file.relative_to(tmp_path) for file in tmp_path.rglob('*.pkl'))
    # A record is kept no longer than until then.
    opened.clear()
    for _ in source.rollouts():
        pass
    records = tmp_path.rglob('policy_records/*.pkl')
    assert opened == Counter(file.relative_to(tmp_path) for file in records)


def test_a_first_record_that_has_changed_is_read_again(tmp_path):
    recorder = record_three(tmp_path)
    source = open_source(tmp_path)
    changed = np.ones((5, 7))
    change(first_record(recorder), actions=changed)
    first = next(source.rollouts())
    np.testing.assert_array_equal(first.actions[0, 0], changed)


@pytest.mark.parametrize('feature', ['pre_logits', 'encoded'])
def test_pi0_fast_with_another_number_of_tokens_in_every_step(tmp_path, feature):
    recorder = record_three(tmp_path, policy='pi0_fast')
    raw = load_rollouts(tmp_path, feature=feature, keep='raw')
    spec = raw.feature
    pooled = load_rollouts(tmp_path, feature=feature)
    assert (spec.axes, spec.pooling, spec.dim, spec.pooled) == (('token',), (), 6, False)
    assert raw[1].feature_lengths.tolist() == [3, 4, 5, 2, 3, 4]
    assert raw[1].features.shape == (6, 5, 6)
    files = sorted(recorder.root.glob('policy_records/step_?--*'))[:3]
    for step, file in enumerate(files):
        record = pickle.loads(file.read_bytes())
        found = raw[0].step(step)
        assert found.features.dtype == ml_dtypes.bfloat16
        assert found.features.tobytes() == record[feature].tobytes()
        exact = record[feature].astype(np.float64).mean(0)
        np.testing.assert_allclose(pooled[0].features[step], exact, rtol=1e-6)
        logits = record['logits'].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found.token_probability, p.max(1), rtol=1e-6)
        np.testing.assert_allclose(found.token_entropy, -(p * np.log(p)).sum(1), rtol=1e-5)
        tail = raw[0].token_probability[step, len(p) :]
        assert np.isnan(tail).all()


def test_token_statistics_of_the_published_code():
    vectors = golden_arrays('token_metrics')
    cases = [key for key in vectors if key.endswith('logits') and vectors[key].ndim == 2]
    for key in cases:
        probability, entropy = token_statistics(vectors[key])
        case = key.split('/')[0]
        expected = {name: vectors[name] for name in vectors if name.startswith(f'{case}/out')}
        values = {
            'max_token_prob': (-np.log(probability)).max(),
            'avg_token_prob': (-np.log(probability)).mean(),
            'max_token_entropy': entropy.max(),
            'avg_token_entropy': entropy.mean(),
        }
        for name, value in expected.items():
            kind = name.split('/')[-1]
            if kind in values:
                np.testing.assert_allclose(values[kind], value, rtol=1e-5, atol=1e-5)


def test_token_statistics_of_what_is_not_allowed():
    probability, entropy = token_statistics(np.array([[0, -np.inf, 0], [5, -np.inf, -np.inf]]))
    np.testing.assert_allclose(probability, [0.5, 1])
    np.testing.assert_allclose(entropy, [np.log(2), 0], atol=1e-7)
    for bad in (np.full((1, 3), np.nan), np.full((1, 3), -np.inf), np.zeros(3), 'x'):
        with pytest.raises(ValueError, match=r'expected (an array of )?logits .*, found'):
            token_statistics(bad)


@pytest.mark.parametrize('policy', ['pi0', 'pi0_fast'])
def test_several_samples_without_features(tmp_path, policy):
    recorder = record_three(tmp_path, policy=policy)
    for number, file in enumerate(sorted(recorder.root.glob('policy_records/*'))):
        drop = dict.fromkeys(('pre_velocity', 'encoded', 'pre_logits', 'logits'))
        actions = np.random.default_rng(number).normal(size=(4, 5, 7))
        change(file, **drop, actions=actions, decode_step=None if policy == 'pi0' else np.int32(7))
    source = open_source(tmp_path)
    rollouts = list(source.rollouts())
    assert (source.kind, str(source.feature)) == (policy, 'none')
    assert [r.features.shape for r in rollouts] == [(3, 0), (6, 0), (2, 0)]
    assert rollouts[1].actions.shape == (6, 4, 5, 7)
    with pytest.raises(DumpError, match=r'expected one of .* because --keep raw needs a feature'):
        load_rollouts(tmp_path, keep='raw')


def test_features_can_be_left_away(tmp_path):
    record_three(tmp_path, policy='pi0_fast')
    rollouts = load_rollouts(tmp_path, feature='none')
    feature = rollouts.feature
    assert (str(feature), rollouts[0].features.shape) == ('none', (3, 0))
    assert rollouts[0].token_entropy.shape == (3, 4)
    with pytest.raises(DumpError, match='one of the features pre_logits, encoded, none, found'):
        open_source(tmp_path, feature='pre_velocity')


# -- what goes wrong


def lose_record(recorder):
    sorted(recorder.root.glob('policy_records/step_4*'))[0].unlink()


def add_record(recorder):
    recorder.inference(0, 1, 40, TASKS[0])


def stray_records(recorder):
    recorder.inference(1, 9, 0, TASKS[1])


def env_again(recorder):
    shutil.copy(recorder.env, recorder.env.with_name('task1--ep0--succ1--again.pkl'))


def first_env(recorder):
    return recorder.root / 'env_records' / 'task0--ep0--succ1.pkl'


def first_record(recorder):
    return next(recorder.root.glob('policy_records/step_0--*'))


def edit_env(**changes):
    return lambda recorder: change(first_env(recorder), **changes)


def edit_record(**changes):
    return lambda recorder: change(first_record(recorder), **changes)


def mixed_runs(recorder):
    later = recorder.root / 'policy_records' / 'step_2--run--task_0--ep_0--t_4--meta.pkl'
    later.rename(later.with_name('step_2--run--task_0--ep_0--t_0--meta.pkl'))


WITHOUT_0_1 = ['task0--ep0', 'task1--ep0']
WITHOUT_0_0 = ['task0--ep1', 'task1--ep0']
WITHOUT_1_0 = ['task0--ep0', 'task0--ep1']
ALL = ['task0--ep0', 'task0--ep1', 'task1--ep0']
NAN = np.full((4, 5, 6), np.nan, np.float32)

#: The damage of a named recording, the error text, and the episodes that --skip-bad keeps.
DAMAGES = {
    'lost': (
        lose_record,
        'expected 6 policy records of task 0, episode 1 in .* found 5',
        WITHOUT_0_1,
    ),
    'more': (add_record, 'expected 6 policy records .* found 7', WITHOUT_0_1),
    'unmatched': (
        stray_records,
        'expected an env record of task 1, episode 9 in .* these 1 policy',
        ALL,
    ),
    'twice': (env_again, 'expected each episode once, found task 1, episode 0 also', WITHOUT_1_0),
    'runs': (mixed_runs, 'in which the time t_ increases .* two runs may be mixed', WITHOUT_0_0),
    'outcome': (
        edit_env(episode_success=False),
        'episode_success 1, as in the file name, found 0',
        WITHOUT_0_0,
    ),
    'task': (edit_env(task_id=1), 'task_id 0, as in the file name, found 1', WITHOUT_0_0),
    'count': (edit_env(model_infer_times=4), 'expected 4 policy records .* found 3', WITHOUT_0_0),
    'count-text': (
        edit_env(model_infer_times='3'),
        'model_infer_times as an integer from 0',
        WITHOUT_0_0,
    ),
    'horizon': (edit_env(replan_steps=6), 'replan_steps from 1 to 5, .* found 6', WITHOUT_0_0),
    'no-index': (edit_env(eposide_idx=None), 'the keys eposide_idx, found', WITHOUT_0_0),
    'description': (edit_env(task_description=3), 'task_description as text', WITHOUT_0_0),
    'nan': (
        edit_record(pre_velocity=NAN),
        'pre_velocity without NaN and infinity, found NaN',
        WITHOUT_0_0,
    ),
    'no-actions': (edit_record(actions=None), 'the key actions, found only', WITHOUT_0_0),
    'actions': (
        edit_record(actions=np.zeros(3)),
        'expected actions of shape .horizon',
        WITHOUT_0_0,
    ),
    'actions-change': (
        edit_record(actions=np.zeros((4, 7))),
        'one dtype and one shape at all steps',
        WITHOUT_0_0,
    ),
    'axes': (edit_record(pre_velocity=np.zeros((5, 6))), r'\(5, 6\) at step 0', WITHOUT_0_0),
    'width': (
        lambda r: change(r.policy_files[0], pre_velocity=np.zeros((4, 5, 8), np.float32)),
        'expected a pooled width of 6, found 8',
        WITHOUT_1_0,
    ),
    'no-feature': (
        lambda r: change(r.policy_files[0], pre_velocity=None),
        'the key pre_velocity, found only',
        WITHOUT_1_0,
    ),
    'a-list': (
        lambda r: first_record(r).write_bytes(pickle.dumps([1])),
        'expected a dict',
        WITHOUT_0_0,
    ),
    'cut': (
        lambda r: first_record(r).write_bytes(first_record(r).read_bytes()[:-50]),
        'before the end of the file; copy',
        WITHOUT_0_0,
    ),
    'env-cut': (
        lambda r: first_env(r).write_bytes(first_env(r).read_bytes()[:-50]),
        'before the end of the file; copy',
        WITHOUT_0_0,
    ),
    'renamed': (
        lambda r: first_record(r).rename(r.root / 'policy_records' / 'best.pkl'),
        'expected a file name that ends in meta.pkl, found best.pkl',
        WITHOUT_0_0,
    ),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_bad_episode_is_refused_or_left_out(tmp_path, name):
    damage, message, left = DAMAGES[name]
    damage(record_three(tmp_path))
    with pytest.raises(DumpError, match=message) as caught:
        load_rollouts(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    source = open_source(tmp_path, skip_bad=True)
    assert names(source.rollouts()) == left
    assert source.skipped


#: Without names, one lost record shifts all later records: no episode can be left out.
SHIFTS = {
    'lost': (lambda r: r.policy_files[0].unlink(), 'expected 11 policy records, the sum of'),
    'more': (
        lambda r: r.inference(0, 0, 0, TASKS[0]),
        'expected 11 .* found 12 policy records; the file names',
    ),
    'env': (lambda r: r.env.write_bytes(b''), 'all episodes need this file: copy'),
    'mixed': (
        lambda r: r.policy_files[0].rename(
            r.root / 'policy_records' / 'step_9--run--task_1--ep_0--t_0--meta.pkl'
        ),
        'records of two recordings may be mixed',
    ),
}


@pytest.mark.parametrize('name', SHIFTS)
def test_a_recording_that_only_order_ties_is_refused_as_a_whole(tmp_path, name):
    damage, message = SHIFTS[name]
    damage(record_three(tmp_path, style='plain'))
    for skip_bad in (False, True):
        with pytest.raises(DumpError, match=message):
            load_rollouts(tmp_path, skip_bad=skip_bad)


def test_a_shift_that_counts_do_not_show_is_found_by_the_prompt(tmp_path):
    recorder = record_three(tmp_path, style='plain')
    for file, count in ((first_env(recorder), 2), (recorder.env, 3)):
        change(file, model_infer_times=count)
    with pytest.raises(DumpError, match='episode 1, found a record of episode 0; a policy'):
        load_rollouts(tmp_path, skip_bad=True)
    for file in recorder.root.glob('policy_records/*'):
        change(file, **{'run/episode_idx': None})
    message = "task 'close the drawer', found a record with the prompt 'open the drawer'; a policy"
    with pytest.raises(DumpError, match=message):
        load_rollouts(tmp_path)


def test_both_spellings_of_the_episode_index(tmp_path):
    recorder = record_three(tmp_path)
    change(first_env(recorder), eposide_idx=None, episode_idx=0)
    rollouts = load_rollouts(tmp_path)
    assert names(rollouts) == ALL


# -- Franka


def record_franka(path, successes=(3, 2), failures=(1, 4), policy='pi0_fast'):
    """Write one root a task, numbered 0 in each, as the Franka recordings were made."""
    for number, (good, bad) in enumerate(zip(successes, failures, strict=True)):
        recorder = Recorder(path / f'run{number}', policy, droid=True)
        for episode in range(good + bad):
            recorder.episode(0, episode, episode < good, 4, f'task {"ba"[number]}')
    return recorder


def test_franka_roots(tmp_path):
    recorder = record_franka(tmp_path)
    recorder.episode(0, 30, True, steps=2, description='task a')
    source = open_source(tmp_path)
    assert (source.kind, source.why) == (
        'pi0_fast_droid',
        'contains 2 roots with env_records and policy_records',
    )
    rollouts = list(source.rollouts())
    counts = Counter((r.task, r.success) for r in rollouts)
    assert counts == {(task, ok): n for task, n in (('task a', 2), ('task b', 1)) for ok in (0, 1)}
    assert {r.task_id for r in rollouts if r.task == 'task a'} == {0}
    for task in ('task a', 'task b'):
        numbers = sorted(r.episode_index for r in rollouts if r.task == task)
        assert numbers == list(range(len(numbers)))
    assert 'keeps 6 of 11 episodes: 1 episodes do not have the standard' in source.notes[0]
    assert 'and 4 episodes are left out to balance the success rates' in source.notes[0]
    everything = load_rollouts(tmp_path, all_episodes=True)
    assert len(everything) == 11
    assert {r.episode_id.split('/')[0] for r in everything} == {'run0', 'run1'}


def test_a_task_with_a_standard_length_of_its_own(tmp_path):
    recorder = Recorder(tmp_path, 'pi0_fast', droid=True)
    for episode, steps in enumerate((25, 25, 30, 24)):
        recorder.episode(0, episode, episode % 2 == 0, steps, 'close the drawer')
    assert [len(r) for r in load_rollouts(tmp_path)] == [25, 25]


def test_franka_records_that_number_the_task_differently(tmp_path):
    recorder = Recorder(tmp_path, 'pi0_fast', droid=True)
    recorder.episode(0, 0, True, 3, 'x')
    recorder.episode(0, 1, False, 3, 'x')
    for file in list(tmp_path.glob('policy_records/*--ep_1--*')):
        file.rename(file.with_name(file.name.replace('--task_0--', '--task_7--')))
    assert [len(r) for r in load_rollouts(tmp_path)] == [3, 3]


def test_two_tasks_in_one_root_are_not_mixed(tmp_path):
    recorder = Recorder(tmp_path, 'pi0_fast', droid=True)
    for task in (0, 1):
        for episode in (0, 1):
            recorder.episode(task, episode, episode == 0, 3)
    rollouts = load_rollouts(tmp_path, all_episodes=True)
    assert [len(r) for r in rollouts] == [3, 3, 3, 3]
    by_task = {r.task: r for r in rollouts if r.success}
    for number, task in enumerate(TASKS):
        expected = np.random.default_rng([number, 0, 0]).normal(size=(5, 7))
        np.testing.assert_array_equal(by_task[task].actions[0, 0], expected)


def test_the_subset_that_was_published():
    for case in golden_json('droid_sr_filter'):
        kept = balanced(
            case['task'],
            case['success'],
            case['sr_min'],
            case['sr_max'],
            case['max_per_task'],
            np.random.RandomState(case['numpy_seed']),
        )
        assert kept == case['kept_indices']


# -- unseen tasks in a root of their own


def test_a_second_root_of_unseen_tasks(tmp_path):
    record_three(tmp_path / 'seen')
    Recorder(tmp_path / 'unseen').episode(0, 0, True, 3, 'wipe the table')
    source = open_source(tmp_path / 'seen', unseen_root=tmp_path / 'unseen')
    rollouts = list(source.rollouts())
    assert [r.unseen for r in rollouts] == [False, False, False, True]
    last = rollouts[3]
    assert (last.task_id, last.task) == (2, 'wipe the table')
    assert last.episode_id == 'unseen/task0--ep0'
    Recorder(tmp_path / 'other', 'pi0_fast').episode(0, 0, True, 3, 'x')
    with pytest.raises(DumpError, match=r'in the format pi0, .* found the format pi0_fast'):
        open_source(tmp_path / 'seen', unseen_root=tmp_path / 'other')


def test_a_protocol_that_keeps_no_episode_is_named(tmp_path):
    recorder = Recorder(tmp_path, 'pi0_fast', droid=True)
    for episode in range(3):
        recorder.episode(0, episode, True, 4, 'x')
    with pytest.raises(DumpError, match=r'the published protocol keeps 0 of 3 .* --all-episodes'):
        load_rollouts(tmp_path)
    assert len(load_rollouts(tmp_path, all_episodes=True)) == 3
