# SPDX-License-Identifier: Apache-2.0
"""The verb calibrate, and the options good-runs of fit and evaluate, as a person meets them."""

import dataclasses
import json

import numpy as np
import pytest
from rollout_factory import make_rollouts
from small_sets import SPEC, contents, make_set

from safe_monitor_node.bands.good_runs import SeenScores
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

DETECTOR = ('--detector', 'mahalanobis', '--alpha', 0.3)


def write(path, rollouts, feature=SPEC):
    with RolloutSetWriter(path, feature=feature, policy='synthetic') as writer:
        for rollout in rollouts:
            writer.add(rollout)
    return path


def runs_of(task='new', count=6, success=True, offset=2.0, name='', dim=4):
    rng = np.random.default_rng(5)
    made = make_rollouts(
        count, rng=rng, steps=(5, 8), task=task, task_id=77, success=lambda index: success, dim=dim
    )
    return [
        dataclasses.replace(
            rollout, features=rollout.features + offset, episode_id=f'{task}/{name}{index}'
        )
        for index, rollout in enumerate(made)
    ]


@pytest.fixture(scope='module')
def big(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp('sets') / 'rollouts', tasks=5, per_task=24)


@pytest.fixture(scope='module')
def fitted(big, tmp_path_factory):
    from safe_training.cli.main import main

    out = tmp_path_factory.mktemp('detectors') / 'mahalanobis'
    assert main(['fit', str(big), '--out', str(out), *map(str, DETECTOR)]) == 0
    return out


def test_fit_stores_what_good_runs_need(fitted):
    loaded = load_detector(fitted)
    seen = loaded.seen_scores
    assert set(seen.largest) == set(map(str, loaded.provenance['seen_tasks']))
    trained = loaded.provenance['episodes']['train']
    assert sum(values.size for values in seen.largest.values()) < len(trained)
    assert seen.most_runs >= 5


def test_a_detector_folder_gets_the_threshold_of_a_new_task(run, fitted, tmp_path):
    runs = write(tmp_path / 'runs', runs_of())
    before = contents(fitted)
    out = tmp_path / 'with_new'
    status, said, errors = run('calibrate', fitted, runs, '--out', out)
    assert (status, errors) == (0, '')
    old, new = load_detector(fitted), load_detector(out)
    assert contents(fitted) == before
    scores = [float(np.max(s)) for s in new.detector.score_all(runs_of()[:5])]
    band = new.band.tasks['new']
    assert band.provenance['largest_scores'] == pytest.approx(scores)
    threshold = new.band.at(0.3, 'new').at(0)
    shift = old.seen_scores.shift(5)
    assert threshold == pytest.approx(np.mean(scores) + shift.quantile(0.3))
    assert f"task 'new': threshold {threshold:.4g} at alpha 0.3" in said
    assert '1 more successes are not used (--k 6 uses all)' in said
    assert 'promise: At most a share alpha' in said
    np.testing.assert_array_equal(new.band.upper, old.band.upper)
    assert new.provenance['episodes']['good runs'] == [f'new/{index}' for index in range(5)]
    _, told, _ = run('info', out)
    flat = ' '.join(told.split())
    assert "task 'new'" in flat
    assert 'not a promise for this task alone' in flat
    assert 'band.kind functional_max_deviation' in flat and 'band.tasks ["new"]' in flat
    assert '{' not in flat
    assert json.loads(run('info', out, '--json')[1])['good_runs']['tasks']['new']['k'] == 5


def test_the_good_runs_are_a_part_of_their_own_when_the_folder_is_judged(run, fitted, tmp_path):
    runs = write(tmp_path / 'runs', [*runs_of(count=8), *runs_of(success=False, name='f')])
    out = tmp_path / 'with_new'
    assert run('calibrate', fitted, runs, '--out', out)[0] == 0
    parts = json.loads(run('judge', runs, out, '--json')[1])['parts']
    assert {row['part']: row['successes'] for row in parts} == {'good runs': 5, 'new': 3}
    rows = json.loads(run('judge', runs, out, '--bands', '--alpha', 0.3, '--json')[1])['rows']
    assert {row['rollouts']: row['successes'] for row in rows} == {
        'good runs (calibration)': 5,
        'new': 3,
    }


def test_several_tasks_and_fewer_runs_take_the_shrunk_form(run, fitted, tmp_path):
    runs = write(tmp_path / 'runs', [*runs_of('one', 2), *runs_of('two', 3)])
    made = json.loads(run('calibrate', fitted, runs, '--out', tmp_path / 'out', '--json')[1])[
        'tasks'
    ]
    assert [(task['task'], task['k'], task['form']) for task in made] == [
        ('one', 2, 'shrunk'),
        ('two', 3, 'shrunk'),
    ]
    assert all(0 <= task['factor'] < 1 for task in made)


def test_a_threshold_that_keeps_no_promise_is_said(run, fitted, tmp_path):
    few = SeenScores({task: np.array([1.0, 2.0]) for task in ('a', 'b')})
    loaded = load_detector(fitted)
    alpha = float(loaded.band.alphas[0])
    folder = dataclasses.replace(loaded, seen_scores=few, alpha=alpha).save(tmp_path / 'few')
    runs = write(tmp_path / 'runs', runs_of(count=1))
    status, said, _ = run('calibrate', folder, runs, '--k', 1, '--out', tmp_path / 'out')
    assert status == 0
    assert f'threshold inf at alpha {alpha:g}' in said
    assert f'no finite threshold keeps the promise of alpha {alpha:g}' in said
    made = load_detector(tmp_path / 'out').band
    assert made.at(alpha, 'new').task == '', 'the band of all tasks is used'


def test_failures_are_left_out_and_said(run, fitted, tmp_path):
    mixed = [
        *runs_of(count=2, success=False, name='f'),
        *runs_of(count=1, success=None, name='u'),
        *runs_of(count=5),
    ]
    runs = write(tmp_path / 'runs', mixed)
    status, said, _ = run('calibrate', fitted, runs, '--out', tmp_path / 'out')
    assert status == 0
    assert '2 failures are left out' in said
    assert '1 rollouts without an outcome are left out (verb `label` sets it)' in said
    band = load_detector(tmp_path / 'out').band.tasks['new']
    assert band.provenance['calibration_rollouts'] == [f'new/{index}' for index in range(5)]


def test_a_seen_task_is_said_and_its_training_rollouts_do_not_count(run, fitted, big, tmp_path):
    seen = load_detector(fitted).provenance['seen_tasks'][0]
    runs = write(tmp_path / 'runs', runs_of(seen, name='again'))
    status, said, _ = run('calibrate', fitted, runs, '--out', tmp_path / 'out')
    assert status == 0
    assert 'the detector was trained on other rollouts of this task' in said
    status, _, errors = run('calibrate', fitted, big, '--out', tmp_path / 'all')
    assert (status, (tmp_path / 'all').exists()) == (1, False)
    assert 'successes are left out, because the detector was trained on them' in errors


@pytest.mark.parametrize(
    ('rollouts', 'options', 'message'),
    [
        (runs_of(count=3), ('--k', 5), 'expected at least 5 successes of the task, found 3'),
        (runs_of(success=False), (), 'at least 1 successes of the task, found 0 (6 failures are'),
        (runs_of(count=30), ('--k', 30), 'use at most'),
        (runs_of(), ('--k', 0), '--k: expected at least 1, found 0'),
        (runs_of(''), (), 'expected rollouts with the name of their task'),
    ],
    ids=str,
)
def test_what_makes_no_threshold_is_refused_and_leaves_nothing(
    run, fitted, tmp_path, rollouts, options, message
):
    runs = write(tmp_path / 'runs', rollouts)
    status, said, errors = run('calibrate', fitted, runs, '--out', tmp_path / 'out', *options)
    assert status in (1, 2)
    assert said == ''
    assert message in errors
    assert not (tmp_path / 'out').exists()


def test_other_features_and_action_spaces_are_refused(run, fitted, tmp_path):
    other = FeatureSpec('hidden_states', 3, ('token',), (('token', 'last'),))
    runs = write(tmp_path / 'runs', runs_of(dim=3), other)
    status, _, errors = run('calibrate', fitted, runs, '--out', tmp_path / 'out')
    assert status == 1
    assert 'expected the features of the detector' in errors


def test_a_run_that_is_longer_than_the_band_is_refused(run, fitted, tmp_path):
    long = make_rollouts(
        1, rng=np.random.default_rng(0), steps=30, task='new', success=lambda i: True
    )
    runs = write(tmp_path / 'runs', long)
    status, _, errors = run('calibrate', fitted, runs, '--out', tmp_path / 'out')
    assert status == 1
    assert 'fit the detector again with --max-steps 30' in errors


def test_a_folder_without_the_scores_says_how_to_get_them(run, tmp_path):
    one_task = make_set(tmp_path / 'set', tasks=1)
    out = tmp_path / 'detector'
    arguments = ('--detector', 'mahalanobis', '--out', out, '--alpha', 0.4, '--unseen-ratio', 0)
    status, said, _ = run('fit', one_task, *arguments)
    assert status == 0
    assert 'no scores for good runs' in said
    runs = write(tmp_path / 'runs', runs_of())
    status, _, errors = run('calibrate', out, runs, '--out', tmp_path / 'new')
    assert status == 1
    assert 'fit the detector again' in errors
    assert 'at least 2 tasks' in errors
    shown = ' '.join(run('info', out)[1].split())
    assert 'no scores for thresholds of new tasks: ' in shown
    assert 'at least 2 tasks' in shown


def test_fit_does_both_in_one_step(run, big, fitted, tmp_path):
    runs = write(tmp_path / 'runs', runs_of())
    two, one = tmp_path / 'two_steps', tmp_path / 'one_step'
    assert run('calibrate', fitted, runs, '--out', two, '--k', 4)[0] == 0
    arguments = ('fit', big, *DETECTOR, '--good-runs', runs, '--k', 4, '--out', one)
    status, said, _ = run(*arguments)
    assert status == 0
    assert "task 'new': threshold" in said
    assert contents(one) == contents(two)
    status, _, errors = run('fit', big, *DETECTOR, '--k', 4, '--out', tmp_path / 'none')
    assert (status, 'add --good-runs' in errors) == (2, True)


def test_evaluate_measures_false_alarms_with_and_without_good_runs(run, big):
    options = ('--detector', 'mahalanobis', '--protocol', 'loto', '--good-runs', 5)
    status, said, _ = run('evaluate', big, *options, '--json')
    assert status == 0
    found = json.loads(said)
    assert found['k'] == 5
    assert sorted(row['task'] for row in found['rows']) == [f'task_{i}' for i in range(5)]
    for row in found['rows']:
        for rates in (row['without'], row['with_runs']):
            assert 0 <= rates['false_alarm_rate'] <= 1
    status, said, _ = run('evaluate', big, *options)
    assert status == 0
    assert 'mean over tasks' in said
    status, _, errors = run('evaluate', big, *options, '--details')
    assert (status, '--details cannot be used with --good-runs' in errors) == (2, True)


def test_a_recording_gives_the_same_threshold_as_the_set(run, fitted, tmp_path):
    runs, bag = write(tmp_path / 'runs', runs_of()), tmp_path / 'runs.mcap'
    assert run('convert', runs, bag)[0] == 0
    made = [
        json.loads(run('calibrate', fitted, source, '--out', tmp_path / name, '--json')[1])
        for source, name in ((runs, 'a'), (bag, 'b'))
    ]
    thresholds = [found['tasks'][0]['threshold'] for found in made]
    assert thresholds[0] == thresholds[1]
