# SPDX-License-Identifier: Apache-2.0
"""The verbs fit and evaluate as a person or a script meets them: exit status, streams, files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from safe_monitor_node.storage.detector_folder import load_detector
from safe_training.cli.main import main
from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

SPEC = FeatureSpec('hidden_states', 4, ('token',), (('token', 'last'),))
TINY = ('--param', 'hidden=4', '--param', 'epochs=3')


def make_set(path, tasks=4, per_task=10, outcome=lambda index: index % 2 == 0, length=8):
    """Write a rollout set; by default every second rollout of a task fails, and can be seen to."""
    rng = np.random.default_rng(0)
    with RolloutSetWriter(path, feature=SPEC, policy='synthetic') as writer:
        for task in range(tasks):
            for index in range(per_task):
                success = outcome(index)
                steps = int(rng.integers(length - 3, length + 1))
                features = rng.normal(size=(steps, 4)) + (success is False)
                writer.add(
                    Rollout(
                        features.astype(np.float32),
                        task=f'task_{task}',
                        task_id=task,
                        success=success,
                        episode_index=index,
                    )
                )
    return path


@pytest.fixture(scope='module')
def rollouts(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp('sets') / 'rollouts')


@pytest.fixture(scope='module')
def folder(rollouts, tmp_path_factory):
    out = tmp_path_factory.mktemp('detectors') / 'mlp'
    arguments = ('fit', rollouts, '--detector', 'safe_mlp', '--out', out, '--alpha', 0.3, *TINY)
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture
def run(capsys):
    """Run one command; returns exit status, standard output and standard error."""

    def ran(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert 'Traceback' not in said.err
        return status, said.out, said.err

    return ran


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- fit


def test_fit_writes_a_folder_that_knows_what_it_was_made_of(run, rollouts, tmp_path):
    out = tmp_path / 'new' / 'detector'
    arguments = ('--detector', 'safe_lstm', '--out', out, '--alpha', 0.3, '--max-steps', 12)
    status, said, _ = run('fit', rollouts, *arguments, *TINY)
    assert status == 0
    for fact in ('safe_lstm', '18 rollouts of 3 tasks', 'hidden_states[token=last]', 'alpha 0.3'):
        assert fact in said
    assert 'never used: 10 rollouts of 1 tasks' in said
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
    (('--train-ratio', '1'), 'hold no success; lower --train-ratio'),
    (('--train-ratio', '0'), 'train_ratio must lie in'),
    (('--unseen-ratio', '1'), 'unseen_ratio must lie in'),
    (('--unseen-ratio', 'nan'), 'unseen_ratio must lie in'),
    (('--max-steps', '3'), 'the longest rollout has 8; give --max-steps 8'),
    (('--max-steps', '-1'), '--max-steps'),
    (('--split', '-1'), 'number of a split must lie in'),
    (('--param', 'learning_rate=1e30'), 'lower learning_rate'),
    (('--param', 'learning_rate=-1'), 'learning_rate must be'),
    (('--param', 'schedule_every=0'), 'schedule_every must be'),
    (('--param', 'epochs=0'), 'epochs must be'),
    (('--param', 'hidden=0'), 'hidden must be an integer of at least 1, found 0'),
    (('--param', 'accumulate=max'), 'one of none, sum, mean'),
    (('--param', 'optimizer=lion'), 'one of adam'),
    (('--pooling', 'token=mean'), 'this set holds hidden_states[token=last]'),
    (('--pooling', 'token'), 'expected AXIS=COMMAND'),
    (('--feature', 'logits'), "expected feature 'hidden_states'"),
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
        (no_set, 'found none; check the path'),
        (an_empty_folder, 'an empty folder'),
        (successes_only, 'all 18 training rollouts are successes'),
        (failures_only, 'all 18 training rollouts are failures'),
        (unlabelled, 'none of the 40 rollouts has an outcome'),
        (one_task, 'no task can be held out as unseen'),
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
    assert 'exists already; give another --out, or --overwrite' in errors
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


# --- evaluate

RATES = (
    'roc_auc_max_score_until_min_length',
    'macro_roc_auc_max_score_until_min_length',
    'clock_roc_auc_max_score_until_min_length',
    'false_alarm_rate',
    'detection_rate',
    'balanced_accuracy',
    'detection_time',
)


def test_a_folder_is_evaluated_on_what_trained_calibrated_and_was_left(run, rollouts, folder):
    status, said, errors = run('judge', rollouts, folder, '--json')
    assert (status, errors) == (0, '')
    found = json.loads(said)
    assert found['alpha'] == 0.3
    assert [row['part'] for row in found['parts']] == ['train', 'seen', 'unseen']
    for row in found['parts']:
        for name in RATES:
            assert row[name] is None or 0.0 <= row[name] <= 1.0
        for name, (low, high) in row['intervals'].items():
            assert low is None or low <= row[name] <= high
        curve = row['alpha_curve']
        at = min(range(len(curve['alphas'])), key=lambda i: abs(curve['alphas'][i] - 0.3))
        assert curve['false_alarm_rate'][at] == row['false_alarm_rate']
        # The lowest threshold alarms on everything, the highest on nothing.
        operating = row['operating_curve']['detection_rate']
        assert (operating[0], operating[-1]) in ((1.0, 0.0), (None, None))
    unseen = found['parts'][-1]
    assert (unseen['successes'], unseen['failures'], unseen['tasks']) == (5, 5, 1)


def test_rollouts_that_a_folder_does_not_know_are_new(run, folder, tmp_path):
    others = make_set(tmp_path / 'set', tasks=5, per_task=12)
    _, said, _ = run('judge', others, folder, '--json')
    sizes = {row['part']: row['successes'] + row['failures'] for row in json.loads(said)['parts']}
    assert sizes == {'train': 18, 'seen': 12, 'unseen': 10, 'new': 20}


def test_a_folder_and_a_fit_of_the_same_seed_are_judged_alike(run, rollouts, folder):
    by_folder = json.loads(run('judge', rollouts, folder, '--json')[1])['parts']
    arguments = ('--detector', 'safe_mlp', '--splits', 1, '--alpha', 0.3, *TINY, '--json')
    by_fit = json.loads(run('evaluate', rollouts, *arguments)[1])['rows']
    for row in by_fit:
        assert row.pop('fit_seconds') > 0
    for one, other in zip(by_folder, by_fit, strict=True):
        for name in ('intervals', 'alpha_curve', 'operating_curve'):
            assert one.pop(name)
        # The order of the rollouts differs, and with it the rounding of means.
        assert one.pop('per_task') == {
            task: pytest.approx(values) for task, values in other.pop('per_task').items()
        }
        assert one == pytest.approx(other)


def test_several_detectors_and_splits_are_summarised(run, rollouts):
    detectors = ('--detector', 'safe_mlp', '--detector', 'clock', '--alpha', 0.3)
    status, said, _ = run(
        'evaluate', rollouts, *detectors, '--splits', 3, '--first-split', 5, '--json', *TINY
    )
    assert status == 0
    found = json.loads(said)
    assert found['splits'] == [5, 6, 7]
    assert found['params'] == {'safe_mlp': {'hidden': 4, 'epochs': 3}, 'clock': {}}
    assert len(found['rows']) == 2 * 3 * 3
    for detector in ('safe_mlp', 'clock'):
        summary = found['summary'][detector]['unseen']
        rows = [
            row['roc_auc_max_score_until_min_length']
            for row in found['rows']
            if (row['detector'], row['part']) == (detector, 'unseen')
        ]
        auc = summary['roc_auc_max_score_until_min_length']
        assert auc['splits'] == 3
        assert auc['mean'] == pytest.approx(np.mean(rows))
        assert auc['std'] == pytest.approx(np.std(rows, ddof=1))
        assert auc['low'] <= auc['mean'] <= auc['high']
    clock = found['summary']['clock']['unseen']
    for name in ('roc_auc_max_score_until_min_length', 'macro_roc_auc_max_score_until_min_length'):
        assert clock[name]['mean'] == clock[f'clock_{name}']['mean'] == 0.5, 'no length leak'


def test_the_table_has_the_clock_beside_every_number(run, rollouts, folder):
    evaluate = ('evaluate', rollouts, '--detector', 'clock', '--alpha', 0.3)
    for words in (('judge', rollouts, folder), evaluate):
        status, said, _ = run(*words)
        assert status == 0
        for word in ('AUC', 'macro', 'clock', 'false', 'T_det', 'train', 'seen', 'unseen'):
            assert word in said


def test_a_set_of_other_features_is_refused(run, folder, tmp_path):
    other = FeatureSpec('hidden_states', 4, ('token',), (('token', 'mean'),))
    with RolloutSetWriter(tmp_path / 'set', feature=other) as writer:
        writer.add(Rollout(np.zeros((3, 4), np.float32), task='t', success=True))
    status, _, errors = run('judge', tmp_path / 'set', folder)
    assert status == 1
    assert 'hidden_states[token=mean]' in errors
    assert 'hidden_states[token=last]' in errors


def test_rollouts_longer_than_the_band_are_refused(run, folder, tmp_path):
    longer = make_set(tmp_path / 'set', length=20)
    status, _, errors = run('judge', longer, folder)
    assert status == 1
    assert 'band of 8 steps' in errors
    assert 'calibrate again with a larger max_steps' in errors


def test_a_damaged_folder_is_refused_by_its_name(run, rollouts, folder, tmp_path):
    damaged = tmp_path / 'damaged'
    damaged.mkdir()
    for name, data in contents(folder).items():
        (damaged / name).write_bytes(data)
    weights = damaged / 'weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'?')
    for arguments in (('judge', rollouts, damaged), ('info', damaged)):
        status, said, errors = run(*arguments)
        assert (status, said) == (1, '')
        assert str(weights) in errors


# --- wrong usage


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'VERB'),
        (('train',), 'train'),
        (('fit',), 'required'),
        (('fit', 'set', '--detector', 'safe_mlp'), '--out'),
        (('fit', 'set', '--detector', 'sage_mlp', '--out', 'x'), 'safe_mlp'),
        (('fit', 'set', '--detector', 'clock', '--out', 'x', '--alpha', 'small'), '--alpha'),
        (
            ('fit', 'set', '--detector', 'clock', '--out', 'x', '--modulation', 'flat'),
            'max_deviation',
        ),
        (('judge', 'set'), 'FOLDER'),
        (('judge', 'set', 'x', '--bands', '--details'), 'not allowed with'),
        (('judge', 'set', 'x', '--detector', 'clock'), '--detector'),
        (('evaluate', 'set', '--bogus'), '--bogus'),
    ],
    ids=str,
)
def test_wrong_usage_is_status_2_and_says_what_is_right(run, arguments, message):
    status, said, errors = run(*arguments)
    assert (status, said) == (2, '')
    assert message in errors
    assert 'usage:' in errors


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('hidden', 'expected NAME=VALUE'),
        ('=3', "has a parameter ''"),
        ('hiden=3', "none of safe_mlp has a parameter 'hiden'; safe_mlp has accumulate, hidden"),
        ('safe_lstm.hidden=3', 'none of safe_mlp'),
        ('sage_mlp.hidden=3', "unknown detector 'sage_mlp'"),
        ('hidden=many', "expected a value of type int, such as 256, found 'many'"),
    ],
)
def test_a_wrong_setting_is_status_2_before_anything_is_read(run, setting, message, tmp_path):
    arguments = ('--detector', 'safe_mlp', '--param', setting)
    status, said, errors = run('fit', rollouts, *arguments, '--out', tmp_path / 'detector')
    assert (status, said) == (2, '')
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_no_split_is_wrong_usage(run, rollouts):
    status, _, errors = run('evaluate', rollouts, '--splits', 0)
    assert status == 2
    assert '--splits must be at least 1' in errors


@pytest.mark.parametrize('verb', [(), ('info',), ('convert',), ('fit',), ('evaluate',)], ids=str)
def test_every_verb_explains_itself(run, verb):
    status, said, _ = run(*verb, '--help')
    assert status == 0
    assert 'usage: safe_training' in said
    assert not verb or 'python -m safe_training' in said, 'with an example'


# --- settings


@pytest.mark.parametrize(
    ('settings', 'params'),
    [
        ([], {'safe_mlp': {}, 'clock': {}}),
        (['epochs=7'], {'safe_mlp': {'epochs': 7}, 'clock': {}}),
        (['safe_mlp.epochs=7'], {'safe_mlp': {'epochs': 7}, 'clock': {}}),
        (['epochs=7', 'epochs=9'], {'safe_mlp': {'epochs': 9}, 'clock': {}}),
        (['lambda_reg=1'], {'safe_mlp': {'lambda_reg': 1.0}, 'clock': {}}),
        (['lambda_reg=1e-3'], {'safe_mlp': {'lambda_reg': 1e-3}, 'clock': {}}),
        (['time_weighting=true'], {'safe_mlp': {'time_weighting': True}, 'clock': {}}),
        (['accumulate=sum'], {'safe_mlp': {'accumulate': 'sum'}, 'clock': {}}),
        (['accumulate="sum"'], {'safe_mlp': {'accumulate': 'sum'}, 'clock': {}}),
        (['threshold=3'], {'safe_mlp': {'threshold': 3.0}, 'clock': {}}),
        (['threshold=null'], {'safe_mlp': {'threshold': None}, 'clock': {}}),
    ],
    ids=str,
)
def test_settings_are_read(settings, params):
    found = detector_params(['safe_mlp', 'clock'], settings)
    assert found == params
    for name, value in found['safe_mlp'].items():
        assert type(value) is type(params['safe_mlp'][name])


def test_a_setting_goes_to_every_detector_that_has_it_or_to_the_one_it_names():
    names = ['safe_mlp', 'safe_lstm']
    found = detector_params(names, ['hidden=8', 'safe_lstm.hidden=16', 'history=3'])
    assert found == {'safe_mlp': {'hidden': 8}, 'safe_lstm': {'hidden': 16, 'history': 3}}


@pytest.mark.parametrize(
    'setting',
    [
        'epochs=1.5',
        'epochs=true',
        'epochs=',
        'epochs=null',
        'epochs=[1]',
        'epochs=' + '1' * 5000,
        'lambda_reg=true',
        'lambda_reg=small',
        'lambda_reg=NaN',
        'lambda_reg=Infinity',
        'lambda_reg=1' + '0' * 400,
        'threshold=high',
        'threshold=true',
        'threshold=NaN',
        'time_weighting=1',
        'time_weighting=yes',
        'accumulate=1',
        'accumulate=null',
        'accumulate={}',
    ],
    ids=lambda setting: setting[:20],
)
def test_a_value_of_another_type_is_refused(setting):
    with pytest.raises(UsageError, match='expected a value of type'):
        detector_params(['safe_mlp'], [setting])


# --- a process of its own


def test_a_real_process_ends_with_the_status_and_one_line_that_says_why(rollouts, folder):
    before = contents(folder)
    command = ['fit', str(rollouts), '--detector', 'clock', '--out', str(folder), '--json']
    done = subprocess.run(
        [sys.executable, '-m', 'safe_training', *command],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == (
        f'safe_training fit: {folder}: exists already; give another --out, or --overwrite\n'
    )
    assert contents(folder) == before


# --- protocols, saved splits, details


CHEAP = ('--detector', 'clock', '--alpha', 0.3)


def evaluated(run, rollouts, *arguments):
    status, said, errors = run('evaluate', rollouts, *CHEAP, *arguments, '--json')
    assert (status, errors) == (0, ''), errors
    return json.loads(said)


def test_many_random_splits_are_the_default(run, rollouts):
    found = evaluated(run, rollouts)
    assert found['splits'] == list(range(10))
    assert found['protocol']['name'] == 'robust'


def test_published_splits_and_one_task_left_out(run, rollouts):
    assert evaluated(run, rollouts, '--protocol', 'paper')['splits'] == [0, 1, 2]
    found = evaluated(run, rollouts, '--protocol', 'loto')
    assert found['splits'] == [0, 1, 2, 3]
    left_out = [row['per_task'] for row in found['rows'] if row['part'] == 'unseen']
    assert [list(tasks) for tasks in left_out] == [[f'task_{k}'] for k in range(4)]


def test_saved_splits_give_the_same_numbers_again(run, rollouts, tmp_path):
    kept = tmp_path / 'splits.json'
    first = evaluated(run, rollouts, '--splits', 2, '--first-split', 3, '--save-splits', kept)
    again = evaluated(run, rollouts, '--splits-from', kept)
    assert again['splits'] == [3, 4]
    folds = tmp_path / 'folds.json'
    evaluated(run, rollouts, '--protocol', 'loto', '--save-splits', folds)
    assert evaluated(run, rollouts, '--splits-from', folds)['protocol']['name'] == 'loto'
    for one, other in zip(first['rows'], again['rows'], strict=True):
        one.pop('fit_seconds'), other.pop('fit_seconds')
        assert one == other
    fit = ('fit', rollouts, *CHEAP, '--out', tmp_path / 'detector', '--splits-from', kept)
    status, said, _ = run(*fit, '--split', 4, '--json')
    assert status == 0
    made = json.loads(said)['provenance']
    split = next(s for s in json.loads(kept.read_text())['splits'] if s['split'] == 4)
    assert made['unseen_tasks'] == split['unseen_tasks']
    status, _, errors = run(*fit, '--split', 9, '--overwrite')
    assert status == 1 and 'expected a split among [3, 4], found 9' in errors


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (('--protocol', 'loto', '--splits', 2), '--splits has no meaning with --protocol loto'),
        (('--protocol', 'loto', '--unseen-ratio', 0.5), '--unseen-ratio has no meaning'),
        (
            ('--protocol', 'paper', '--first-split', 2),
            '--first-split has no meaning with --protocol paper',
        ),
        (('--splits-from', 'x', '--protocol', 'loto'), 'no meaning'),
        (('--per-task', '--calibrate-on', 'loto'), 'choose one of the two'),
        (('--benchmark', 'mine'), 'give --out as well'),
    ],
)
def test_options_without_a_meaning_are_refused_and_not_ignored(run, rollouts, arguments, match):
    status, _, errors = run('evaluate', rollouts, *CHEAP, *arguments)
    assert status == 2
    assert match in errors


@pytest.mark.parametrize(
    'option',
    [('--split', 3), ('--first-split', 0), ('--splits', 2), ('--modulation', 'none')],
)
def test_a_folder_takes_no_options_of_fitting(run, rollouts, folder, option):
    status, _, errors = run('judge', rollouts, folder, *option)
    assert status == 2
    assert f'unrecognized arguments: {option[0]}' in errors


def test_a_folder_is_judged_at_the_alpha_that_is_asked_for(run, rollouts, folder):
    found = json.loads(run('judge', rollouts, folder, '--alpha', 0.5, '--json')[1])
    assert found['alpha'] == 0.5
    assert {row['alpha'] for row in found['parts']} == {0.5}
    status, _, errors = run('judge', rollouts, folder, '--alpha', 0.123)
    assert status == 1
    assert str(folder) in errors and 'not calibrated for alpha 0.123' in errors


def test_details_show_every_moment_and_task(run, rollouts, folder):
    evaluate = ('evaluate', rollouts, '--detector', 'clock', '--splits', 2)
    for words in (('judge', rollouts, folder), evaluate):
        status, said, _ = run(*words, '--details')
        assert status == 0
        for words in ('running at 50 %', 'by the end (leaks', 'F1 of failures', 'by task'):
            assert words in said


def test_results_of_an_evaluation_make_a_table(run, rollouts, tmp_path):
    for _ in range(2):  # the second replaces the first
        evaluated(
            run, rollouts, '--splits', 2, '--out', tmp_path / 'results', '--benchmark', 'mine'
        )
    assert len(list((tmp_path / 'results').iterdir())) == 1
    status, said, _ = run('table', tmp_path / 'results')
    assert status == 0
    assert 'mine, 2 task splits' in said and 'Clock' in said


def test_bands_of_single_tasks_are_fitted_kept_and_used(run, tmp_path):
    many = make_set(tmp_path / 'set', tasks=3, per_task=60)
    out = tmp_path / 'detector'
    fit = ('fit', many, '--detector', 'clock', '--out', out, '--per-task', '--modulation', 'none')
    status, said, _ = run(*fit)
    assert status == 0
    assert '2 of 2 seen tasks have a band of their own' in said
    loaded = load_detector(out)
    assert len(loaded.band.tasks) == 2
    for task in loaded.band.tasks:
        assert loaded.band.at(0.1, task).task == task
    rows = json.loads(run('judge', many, out, '--json')[1])['parts']
    own = {row['part']: row['own_bands'] / (row['successes'] + row['failures']) for row in rows}
    assert own == {'train': 1.0, 'seen': 1.0, 'unseen': 0.0}


def test_a_band_that_cannot_alarm_is_said_beside_its_rates(run, rollouts):
    status, said, _ = run(
        'evaluate', rollouts, '--detector', 'clock', '--splits', 2, '--alpha', 0.01
    )
    assert status == 0
    assert 'In 2 of 2 splits the band is infinite' in said


def test_numbers_that_some_splits_lack_are_counted(run, tmp_path):
    place = tmp_path / 'set'
    with RolloutSetWriter(place, feature=SPEC, policy='synthetic') as writer:
        for task in range(4):
            for index in range(10):
                writer.add(
                    Rollout(
                        np.full((4, 4), index, np.float32),
                        task=f'task_{task}',
                        task_id=task,
                        success=task == 0 or index % 2 == 0,
                        episode_index=index,
                    )
                )
    status, said, _ = run(
        'evaluate', place, '--detector', 'random', '--protocol', 'loto', '--alpha', 0.5
    )
    assert status == 0
    assert '(3)' in said and 'only so many splits' in said


def test_nothing_is_cut_off_in_a_narrow_terminal(tmp_path):
    from rich.console import Console

    from safe_training.reporting.tables.model import Cell, Column, ResultTable, TableRow
    from safe_training.reporting.tables.terminal import print_table

    with (tmp_path / 'out').open('w') as file:
        columns = (Column('task', align='left'), *(Column(f'column {k}') for k in range(12)))
        row = TableRow((Cell('a task'), *(Cell(f'12.{k}', spread='3.4') for k in range(12))))
        print_table(Console(width=40, file=file), ResultTable('title', columns, (row,)))
    said = (tmp_path / 'out').read_text()
    assert all(f'12.{k}\u00b13.4' in said for k in range(12))
    assert '\u2026' not in said
