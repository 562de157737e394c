# SPDX-License-Identifier: Apache-2.0
"""The verb evaluate: protocols, saved splits, tables and results."""

import json

import numpy as np
import pytest
from rollout_factory import make_rollout
from small_sets import SPEC, TINY, make_set

from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

CHEAP = ('--detector', 'clock', '--alpha', 0.3)


def evaluated(run, rollouts, *arguments):
    status, said, errors = run('evaluate', rollouts, *CHEAP, *arguments, '--json')
    assert (status, errors) == (0, ''), errors
    return json.loads(said)


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
        assert auc['low'] is None, 'a pooled AUC has no value by task'
        early = summary['found_early']
        assert early['low'] <= early['over_tasks'] <= early['high']
        unseen = [row['per_task'] for row in found['rows'] if row['part'] == 'unseen']
        assert early['tasks'] == len({task for tasks in unseen for task in tasks})
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


def test_many_random_splits_are_the_default_and_fewer_if_a_network_is_trained(run, rollouts):
    both = ('--detector', 'safe_mlp', *TINY)
    found = evaluated(run, rollouts, *both, '--first-split', 3)
    assert found['splits'] == list(range(3, 53))
    assert found['protocol']['name'] == 'robust'
    splits = {
        name: sorted({row['split'] for row in found['rows'] if row['detector'] == name})
        for name in ('clock', 'safe_mlp')
    }
    assert splits == {'clock': list(range(3, 53)), 'safe_mlp': list(range(3, 13))}


def test_each_task_is_shown_if_it_is_asked_for(run, rollouts):
    splits = (*CHEAP, '--detector', 'random', '--splits', 8)
    status, said, _ = run('evaluate', rollouts, *splits)
    assert status == 0
    assert 'by task' not in said
    lines = ' '.join(said.split())
    assert 'clock, unseen: found early ' in lines
    assert 'about 90 % of the cases' in lines
    status, said, _ = run('evaluate', rollouts, *splits, '--by-task')
    shown = said.split('unseen: by task')[1]
    for task in range(4):
        assert shown.count(f'task_{task} ') == 2, 'once for each detector'


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
    assert status == 1 and 'expected the number of a saved split, one of 3, 4, found 9' in errors


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (('--protocol', 'loto', '--splits', 2), '--splits cannot be used with --protocol loto, '),
        (
            ('--protocol', 'loto', '--unseen-ratio', 0.5),
            '--unseen-ratio cannot be used with --protocol loto, ',
        ),
        (
            ('--protocol', 'paper', '--first-split', 2),
            '--first-split cannot be used with --protocol paper, ',
        ),
        (
            ('--splits-from', 'x', '--protocol', 'loto'),
            '--protocol cannot be used with --splits-from, ',
        ),
        (
            ('--per-task', '--calibrate-on', 'loto'),
            '--per-task cannot be used with --calibrate-on loto',
        ),
        (('--benchmark', 'mine'), 'found no --out; add --out RESULTS'),
    ],
)
def test_options_without_a_meaning_are_refused_and_not_ignored(run, rollouts, arguments, match):
    status, _, errors = run('evaluate', rollouts, *CHEAP, *arguments)
    assert status == 2
    assert match in errors


def test_details_show_every_moment_and_task(run, rollouts, folder):
    evaluate = ('evaluate', rollouts, '--detector', 'clock', '--splits', 2)
    for words in (('judge', rollouts, folder), evaluate):
        status, said, _ = run(*words, '--details')
        assert status == 0
        for words in ('running at 50 %', 'whole rollout (leaks', 'F1 of failures', 'by task'):
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
    status, said, _ = run('table', tmp_path / 'results', '--json')
    assert status == 0
    (row,) = json.loads(said)['robust']
    assert (row['benchmark'], row['detector'], row['splits']) == ('mine', 'clock', 2)
    assert row['unseen/roc_auc_max_score_until_min_length:mean'] == 0.5


def test_a_band_that_cannot_alarm_is_said_beside_its_rates(run, rollouts):
    status, said, _ = run(
        'evaluate', rollouts, '--detector', 'clock', '--splits', 2, '--alpha', 0.01
    )
    assert status == 0
    assert 'on 2 of 2 splits the successes are too few for calibration' in ' '.join(said.split())
    assert 'the band is infinite and no alarm is possible' in ' '.join(said.split())


def test_numbers_that_some_splits_lack_are_counted(run, tmp_path):
    place = tmp_path / 'set'
    with RolloutSetWriter(place, feature=SPEC, policy='synthetic') as writer:
        for task in range(4):
            for index in range(10):
                writer.add(
                    make_rollout(
                        index,
                        features=np.full((4, 4), index, np.float32),
                        task=f'task_{task}',
                        task_id=task,
                        success=task == 0 or index % 2 == 0,
                    )
                )
    status, said, _ = run(
        'evaluate', place, '--detector', 'random', '--protocol', 'loto', '--alpha', 0.5
    )
    assert status == 0
    assert '(3)' in said and 'number of splits in which the value' in said


def test_the_beginnings_of_spliced_failures_are_judged(run, tmp_path):
    # Some failures are longer than the median success of their task.
    place = make_set(tmp_path / 'set', steps=(8, 24))
    arguments = ('evaluate', place, '--detector', 'mahalanobis', '--splits', 2, '--onset')
    status, said, errors = run(*arguments, '--json')
    assert (status, errors) == (0, '')
    (row,) = json.loads(said)['rows']
    assert (row['detector'], row['failures']) == ('mahalanobis', 'spliced')
    assert 0 < row['number'] <= 2 * 5 * 3 and row['number'] % 3 == 0
    assert set(row['onset']) == set(row['alarm']) == {'median_distance', 'near'}
    status, said, _ = run(*arguments)
    assert status == 0
    assert 'A spliced failure consists of the first steps' in ' '.join(said.split())
    status, _, errors = run(*arguments, '--details')
    assert status == 2 and '--details cannot be used with --onset, which prints only' in errors


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


def test_no_split_is_wrong_usage(run, rollouts):
    status, _, errors = run('evaluate', rollouts, '--splits', 0)
    assert status == 2
    assert '--splits: expected at least 1, found 0' in errors
