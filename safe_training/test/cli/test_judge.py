# SPDX-License-Identifier: Apache-2.0
"""The verb judge: a detector folder on the rollouts of a set."""

import json

import numpy as np
import pytest
from rollout_factory import make_rollout
from small_sets import TINY, contents, make_set

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

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


def test_a_set_of_other_features_is_refused(run, folder, tmp_path):
    other = FeatureSpec('hidden_states', 4, ('token',), (('token', 'mean'),))
    with RolloutSetWriter(tmp_path / 'set', feature=other) as writer:
        writer.add(make_rollout())
    status, _, errors = run('judge', tmp_path / 'set', folder)
    assert status == 1
    assert 'hidden_states[token=mean]' in errors
    assert 'hidden_states[token=last]' in errors


@pytest.mark.parametrize(('detector', 'reads'), [('signal', True), ('mahalanobis', False)])
def test_a_set_of_another_action_space_is_refused_if_the_detector_reads_actions(
    run, tmp_path, detector, reads
):
    signals = {'signals': lambda i: {'chunk_mse': np.full(8, i, np.float32)}, 'steps': 8}
    for name, space in (('robot', 'robot'), ('network', 'normalized'), ('unknown', '')):
        make_set(tmp_path / name, action_space=space, **signals)
    out = tmp_path / 'detector'
    fitting = ('--detector', detector, '--out', out, '--alpha', 0.3)
    assert run('fit', tmp_path / 'robot', *fitting)[0] == 0
    assert json.loads(run('info', out, '--json')[1])['action_space'] == 'robot'
    for name in ('robot', 'unknown'):
        assert run('judge', tmp_path / name, out)[0] == 0
    status, _, errors = run('judge', tmp_path / 'network', out)
    assert status == (1 if reads else 0)
    assert ("the space 'robot' that the detector was fitted on, found" in errors) == reads
    assert (
        "'normalized'; fit a detector on rollouts with the same action space" in errors
    ) == reads


def test_rollouts_longer_than_the_band_are_refused(run, folder, tmp_path):
    longer = make_set(tmp_path / 'set', length=20)
    status, _, errors = run('judge', longer, folder)
    assert status == 1
    assert 'number of steps of the band: 8' in errors
    assert 'set --max-steps to the number of steps' in errors


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
    assert str(folder) in errors and 'found alpha 0.123; choose a calibrated alpha' in errors


def test_bands_are_shown_at_each_rate_that_is_asked(run, rollouts, folder):
    asked = ('--bands', '--alpha', 0.3, '--alpha', 0.2, '--alpha', 0.3)
    status, said, errors = run('judge', rollouts, folder, *asked, '--json')
    assert (status, errors) == (0, '')
    rows = json.loads(said)['rows']
    assert [row['promised'] for row in rows][:2] == [0.2, 0.3]
    one = json.loads(run('judge', rollouts, folder, '--bands', '--alpha', 0.2, '--json')[1])['rows']
    assert one == [row for row in rows if row['promised'] == 0.2]


def test_parts_are_judged_at_one_rate(run, rollouts, folder):
    status, _, errors = run('judge', rollouts, folder, '--alpha', 0.3, '--alpha', 0.2)
    assert status == 2
    assert 'expected one rate, found 0.2, 0.3; give one rate' in errors


@pytest.mark.parametrize('more', [(), ('--bands',), ('--bands', '--alpha', 0.3)])
def test_an_uncalibrated_rate_is_no_fault_of_a_rollout(run, rollouts, folder, more):
    status, _, errors = run('judge', rollouts, folder, '--alpha', 0.07, *more)
    assert status == 1
    assert 'found alpha 0.07; choose a calibrated alpha' in errors
    assert str(folder) in errors
    assert 'rollout' not in errors.replace(str(folder), '').replace(str(rollouts), '')


def test_each_failure_has_an_estimated_beginning(run, folder, tmp_path):
    marked = make_set(
        tmp_path / 'set', failure_step=lambda index: None if index % 2 == 0 else index % 5
    )
    status, said, errors = run('judge', marked, folder, '--onset', '--json')
    assert (status, errors) == (0, '')
    failures = json.loads(said)['failures']
    assert len(failures) == 20
    for row in failures:
        assert 0 <= row['onset_step'] < row['steps']
        assert row['alarm_step'] is None or row['alarm_step'] < row['steps']
        assert row['failure_step'] == int(row['episode_id'].rpartition('/')[2]) % 5
    status, said, _ = run('judge', marked, folder, '--onset')
    assert status == 0
    assert 'It is not an annotation' in ' '.join(said.split())
    assert all(row['episode_id'] in said for row in failures)
    status, said, _ = run('judge', marked, folder, '--details')
    assert 'median distance of the estimated beginning from it [steps]' in said
