# SPDX-License-Identifier: Apache-2.0
"""The verb fit as a person or a script meets it: exit status, streams, files."""

import json

import pytest
from small_sets import SPEC, TINY, contents, make_set

from safe_monitor_node.storage.detector_folder import load_detector


def test_fit_writes_a_folder_that_knows_what_it_was_made_of(run, rollouts, tmp_path):
    out = tmp_path / 'new' / 'detector'
    arguments = ('--detector', 'safe_lstm', '--out', out, '--alpha', 0.3, '--max-steps', 12)
    status, said, _ = run('fit', rollouts, *arguments, *TINY)
    assert status == 0
    for fact in ('safe_lstm', '18 rollouts of 3 tasks', 'hidden_states[token=last]', 'alpha 0.3'):
        assert fact in said
    assert 'not used: 10 rollouts of 1 unseen tasks' in said
    assert list(out.parent.iterdir()) == [out], 'and nothing else'
    loaded = load_detector(out)
    assert loaded.detector.name == 'safe_lstm'
    assert loaded.detector.get_params()['hidden'] == 4
    assert loaded.feature == SPEC
    assert loaded.alpha == 0.3
    assert loaded.band.length == 12
    episodes = loaded.provenance['episodes']
    assert {part: len(names) for part, names in episodes.items()} == {
        'train': 18,
        'seen': 12,
        'unseen': 10,
    }
    (unseen,) = loaded.provenance['unseen_tasks']
    assert all(name.startswith(f'{unseen}/') for name in episodes['unseen'])
    calibrated = loaded.band.provenance
    assert loaded.band.n_center + loaded.band.n_calibration <= 12
    assert 'split 0' in calibrated['calibrated_on']


def test_a_folder_with_brackets_in_its_name_is_printed_as_it_is(run, rollouts, tmp_path):
    out = tmp_path / ('x' * 60) / 'detector[red]'
    arguments = ('--detector', 'clock', '--alpha', 0.3)
    assert f'written to {out}\n' in run('fit', rollouts, *arguments, '--out', out)[1]
    assert 'detector[red]' in run('judge', rollouts, out)[1]


def test_fit_says_the_same_to_machines(run, rollouts, tmp_path):
    out = tmp_path / 'detector'
    status, said, errors = run(
        'fit', rollouts, '--detector', 'clock', '--out', out, '--alpha', 0.3, '--json'
    )
    assert (status, errors) == (0, '')
    made = json.loads(said)
    assert made['detector'] == 'clock'
    assert made['provenance']['policy'] == 'synthetic'
    status, said, _ = run('info', out, '--json')
    assert status == 0
    assert json.loads(said) == {'path': str(out), **made}


def test_fit_says_when_no_alarm_can_be_promised(run, rollouts, tmp_path):
    out = tmp_path / 'detector'
    status, said, _ = run('fit', rollouts, '--detector', 'clock', '--out', out, '--alpha', 0.01)
    assert status == 0
    assert 'note:' in said


def test_the_same_seed_makes_the_same_folder(run, rollouts, folder, tmp_path):
    out = tmp_path / 'detector'
    arguments = ('--detector', 'safe_mlp', '--out', out, '--alpha', 0.3)
    assert run('fit', rollouts, *arguments, *TINY)[0] == 0
    assert contents(out) == contents(folder)
    again = (*arguments, '--overwrite', '--split', 1)
    assert run('fit', rollouts, *again, *TINY)[0] == 0
    assert contents(out) != contents(folder)


def test_one_task_can_be_fitted_when_none_is_held_out(run, tmp_path):
    one_task = make_set(tmp_path / 'set', tasks=1)
    out = tmp_path / 'detector'
    arguments = ('--detector', 'safe_mlp', '--out', out, '--alpha', 0.4, '--unseen-ratio', 0)
    assert run('fit', one_task, *arguments, *TINY)[0] == 0
    load_detector(out)


BAD_OPTIONS = [
    (('--alpha', '2'), 'alpha'),
    (('--alpha', '0'), 'alpha'),
    (('--alpha', 'nan'), 'alpha'),
    (('--train-ratio', '1'), 'seen tasks, found none; lower --train-ratio'),
    (('--train-ratio', '0'), 'train_ratio: expected a number in (0, 1], found 0.0'),
    (('--unseen-ratio', '1'), 'unseen_ratio: expected a number in [0, 1), found 1.0'),
    (('--unseen-ratio', 'nan'), 'unseen_ratio: expected a number in [0, 1), found nan'),
    (('--max-steps', '3'), '(the longest rollout has 8 steps), found 3; give --max-steps 8'),
    (('--max-steps', '-1'), '--max-steps'),
    (('--splits-from', 'absent.json'), 'absent.json: No such file or directory; check the path'),
    (('--split', '-1'), 'a split number from 0 to 4294967295, found -1'),
    (('--param', 'learning_rate=1e30'), 'set learning_rate to a smaller value'),
    (('--param', 'learning_rate=-1'), 'learning_rate: expected'),
    (('--param', 'schedule_every=0'), 'schedule_every: expected'),
    (('--param', 'epochs=0'), 'epochs: expected'),
    (('--param', 'hidden=0'), 'hidden: expected an integer of at least 1, found 0'),
    (('--param', 'accumulate=max'), 'one of none, sum, mean'),
    (('--param', 'optimizer=lion'), 'one of adam'),
    (('--pooling', 'token=mean'), 'the pooling of this set, hidden_states[token=last]'),
    (('--pooling', 'token'), 'expected AXIS=COMMAND'),
    (('--feature', 'logits'), "expected the feature 'hidden_states'"),
]


@pytest.mark.parametrize(('options', 'message'), BAD_OPTIONS, ids=str)
def test_what_cannot_be_fitted_says_why_and_leaves_nothing(
    run, rollouts, tmp_path, options, message
):
    out = tmp_path / 'new' / 'detector'
    status, said, errors = run(
        'fit', rollouts, '--detector', 'safe_mlp', '--out', out, *TINY, *options
    )
    assert status in (1, 2)
    assert said == ''
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def no_set(path):
    return path / 'absent'


def an_empty_folder(path):
    (path / 'empty').mkdir()
    return path / 'empty'


def successes_only(path):
    return make_set(path / 'set', outcome=lambda index: True)


def failures_only(path):
    return make_set(path / 'set', outcome=lambda index: False)


def unlabelled(path):
    return make_set(path / 'set', outcome=lambda index: None)


def one_task(path):
    return make_set(path / 'set', tasks=1)


def one_rollout_a_task(path):
    return make_set(path / 'set', per_task=1)


def truncated(path):
    made = make_set(path / 'set')
    file = made / 'arrays' / '000003.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    return made


def a_pickle(path):
    (path / 'rollouts.pkl').write_bytes(b'\x80\x04cos\nsystem\n')
    return path / 'rollouts.pkl'


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (no_set, 'found no file or folder; check the path'),
        (an_empty_folder, 'an empty folder'),
        (
            successes_only,
            'both outcomes, found 18 successes and 0 failures; add failures',
        ),
        (
            failures_only,
            'both outcomes, found 0 successes and 18 failures; add successes',
        ),
        (unlabelled, 'found 40 rollouts without a label'),
        (one_task, 'two or more tasks (one or more are unseen), found one task'),
        (one_rollout_a_task, 'record more rollouts per task'),
        (truncated, '000003.safetensors'),
        (a_pickle, 'rollouts.pkl'),
    ],
)
def test_a_set_that_cannot_be_fitted_on_says_why_and_leaves_nothing(run, tmp_path, source, message):
    place = source(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    out = tmp_path / 'new' / 'detector'
    status, said, errors = run('fit', place, '--detector', 'safe_mlp', '--out', out, *TINY)
    assert (status, said) == (1, '')
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, 'one clear error'
    assert sorted(tmp_path.rglob('*')) == before
    status, said, errors = run('evaluate', place, '--detector', 'safe_mlp', *TINY)
    assert (status, said) == (1, '')
    assert message in errors


def test_an_existing_folder_is_kept_when_not_asked_or_when_fitting_fails(run, rollouts, tmp_path):
    out = tmp_path / 'detector'
    arguments = ('fit', rollouts, '--detector', 'safe_mlp', '--out', out, '--alpha', 0.3, *TINY)
    assert run(*arguments)[0] == 0
    before = contents(out)
    status, _, errors = run(*arguments)
    assert status == 1
    assert 'found an existing folder; give another folder with --out, or add --overwrite' in errors
    status, _, errors = run(*arguments, '--overwrite', '--param', 'learning_rate=1e30')
    assert status == 1
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]
    assert run(*arguments, '--overwrite', '--split', 3)[0] == 0
    assert contents(out) != before


def test_only_a_detector_folder_is_overwritten(run, rollouts, tmp_path):
    out = tmp_path / 'home'
    out.mkdir()
    (out / 'thesis.tex').write_text('five years')
    status, _, errors = run(
        'fit', rollouts, '--detector', 'clock', '--out', out, '--alpha', 0.3, '--overwrite'
    )
    assert status == 1
    assert str(out) in errors
    assert contents(out) == {'thesis.tex': b'five years'}


def test_a_place_that_cannot_be_written_is_named(run, rollouts, tmp_path):
    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file' / 'detector'
    status, _, errors = run('fit', rollouts, '--detector', 'clock', '--out', out, '--alpha', 0.3)
    assert status == 1
    assert 'file' in errors
    assert list(tmp_path.iterdir()) == [tmp_path / 'file']


def test_bands_of_single_tasks_are_fitted_kept_and_used(run, tmp_path):
    many = make_set(tmp_path / 'set', tasks=3, per_task=60)
    out = tmp_path / 'detector'
    fit = ('fit', many, '--detector', 'clock', '--out', out, '--per-task', '--modulation', 'none')
    status, said, _ = run(*fit)
    assert status == 0
    assert '2 of 2 seen tasks have their own band' in said
    loaded = load_detector(out)
    assert len(loaded.band.tasks) == 2
    for task in loaded.band.tasks:
        assert loaded.band.at(0.1, task).task == task
    rows = json.loads(run('judge', many, out, '--json')[1])['parts']
    own = {row['part']: row['own_bands'] / (row['successes'] + row['failures']) for row in rows}
    assert own == {'train': 1.0, 'seen': 1.0, 'unseen': 0.0}
