# SPDX-License-Identifier: Apache-2.0
"""Results files: what is written is read, and wrong, hostile or doubled files are refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from safe_training.sweep.results import Result, ResultsError, canonical, read_results, write_results


def result(split=0, part='seen', detector='clock', params='{}', **values):
    return Result('toy', 'robust', detector, params, 'f[mean]', split, part, values)


def test_what_is_written_is_read_back(tmp_path):
    first = [result(0, roc_auc=0.5, tasks=3), result(1, roc_auc=math.nan, tasks=4)]
    second = [result(0, 'unseen', roc_auc=1.0), result(0, 'train', other=-math.inf)]
    write_results(tmp_path / 'b.parquet', first)
    write_results(tmp_path / 'a.parquet', second)
    read = read_results(tmp_path)
    assert [r.key for r in read] == [r.key for r in second + first], 'by file name, then by row'
    assert read[2].values == {'roc_auc': 0.5, 'tasks': 3.0}
    assert math.isnan(read[3].values['roc_auc'])
    assert math.isnan(read[1].values['roc_auc']), 'lacking in its row'
    assert read[1].values['other'] == -math.inf
    schema = pyarrow.parquet.read_schema(tmp_path / 'b.parquet')
    assert schema.field('split').type == pyarrow.int64()
    assert schema.field('roc_auc').type == pyarrow.float64()


def test_numbers_of_tasks_are_read_back_and_may_be_absent(tmp_path):
    tasks = {'a "task"': {'found_early': 0.1 + 0.2, 'n_failures': 3.0}, 'b': {'found_early': 1.0}}
    lacking = {'c': {'found_early': math.nan}}
    written = [replace(result(0), tasks=tasks), replace(result(1), tasks=lacking), result(2)]
    write_results(tmp_path / 'a.parquet', written)
    read = read_results(tmp_path)
    assert read[0].tasks == tasks
    assert math.isnan(read[1].tasks['c']['found_early'])
    assert read[2].tasks == {}
    edited(tmp_path / 'a.parquet', per_task=None)
    assert [r.tasks for r in read_results(tmp_path)] == [{}] * 3, 'as version 0.2 wrote it'


def test_a_benchmark_may_be_of_a_subset_of_tasks(tmp_path):
    written = [replace(result(), benchmark='toy/bridge', protocol='loto'), result()]
    write_results(tmp_path / 'a.parquet', written)
    read = read_results(tmp_path)
    assert [(r.whole, r.subset, r.protocol) for r in read] == [
        ('toy', 'bridge', 'loto'),
        ('toy', '', 'robust'),
    ]


def test_several_folders_are_read_together(tmp_path):
    for split in (0, 1):
        (tmp_path / str(split)).mkdir()
        write_results(tmp_path / str(split) / 'x.parquet', [result(split)])
    assert [r.split for r in read_results(tmp_path / '0', tmp_path / '1')] == [0, 1]


def test_work_that_gave_nothing_is_a_file_without_rows(tmp_path):
    write_results(tmp_path / 'none.parquet', [])
    assert read_results(tmp_path) == []


def test_parameters_are_equal_where_their_text_is():
    text = canonical({'seed': 3, 'b': np.float64(0.5), 'a': [1, np.int64(2)]})
    assert text == canonical({'a': [1, 2], 'b': 0.5}) == '{"a": [1, 2], "b": 0.5}'
    for value in (object(), math.nan, {1, 2}):
        with pytest.raises(ResultsError, match='expected parameters of'):
            canonical({'a': value})


def test_results_of_version_0_1_have_the_names_of_today(tmp_path):
    write_results(
        tmp_path / 'x.parquet',
        [
            result(
                3,
                roc_auc_by_earliest_stop=0.1,
                clock_macro_average_precision_at_earliest_stop=0.2,
                macro_roc_auc_by_end=0.3,
                false_alarm_rate_by_earliest_stop=0.4,
                brier_at_earliest_stop=0.5,
                roc_auc_at_25_percent=0.6,
            )
        ],
    )
    table = pyarrow.parquet.read_table(tmp_path / 'x.parquet')
    names = ['seed' if name == 'split' else name for name in table.column_names]
    pyarrow.parquet.write_table(table.rename_columns(names), tmp_path / 'x.parquet')
    [read] = read_results(tmp_path)
    assert read.split == 3
    assert read.values == {
        'roc_auc_max_score_until_min_length': 0.1,
        'clock_macro_average_precision_score_at_min_length': 0.2,
        'macro_roc_auc_max_score': 0.3,
        'false_alarm_rate_until_min_length': 0.4,
        'brier_score_at_min_length': 0.5,
        'roc_auc_at_25_percent': 0.6,
    }


def test_the_same_split_is_never_counted_twice(tmp_path):
    with pytest.raises(ResultsError, match=r'each result once, .*split 0, part seen; remove'):
        write_results(tmp_path / 'x.parquet', [result(0), result(0)])
    write_results(tmp_path / 'x.parquet', [result(0)])
    with pytest.raises(
        ResultsError, match=r'x\.parquet.*found the same result also in .*x\.parquet'
    ):
        read_results(tmp_path, tmp_path)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'x.parquet'
    write_results(path, [result(0)])

    def fail(table, where):
        where.write_bytes(b'PAR1')
        raise OSError('disk full')

    monkeypatch.setattr(pyarrow.parquet, 'write_table', fail)
    with pytest.raises(OSError, match='disk full'):
        write_results(path, [result(1)])
    assert [p.name for p in tmp_path.iterdir()] == ['x.parquet']
    assert read_results(tmp_path)[0].split == 0


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (result(part='test'), 'part: expected one of'),
        (result(split=1.5), r'split: expected a value of type int, found 1\.5'),
        (result(params='[]'), 'expected a JSON object'),
        (result(params='{'), 'expected a JSON object'),
        (result(detector=None), 'detector: expected a value of type str, found None'),
        (
            result(benchmark=1),
            "expected no number with the name of another column, found the name 'benchmark'",
        ),
    ],
)
def test_wrong_results_are_not_written(tmp_path, bad, message):
    if 'benchmark' in bad.values:
        bad = Result('toy', 'robust', 'clock', '{}', 'f', 0, 'seen', {'benchmark': 1.0})
    with pytest.raises(ResultsError, match=message):
        write_results(tmp_path / 'x.parquet', [bad])
    assert not list(tmp_path.iterdir())


def test_a_name_that_would_not_be_found_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"ends in \.parquet, found 'x\.csv'"):
        write_results(tmp_path / 'x.csv', [result()])


def edited(path, **columns):
    table = pyarrow.parquet.read_table(path)
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.remove_column(index)
        if values is not None:
            table = table.add_column(index, name, pyarrow.array(values))
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda p: p.write_bytes(b''), 'expected a Parquet file'),
        (lambda p: p.write_bytes(p.read_bytes()[:-20]), 'expected a Parquet file'),
        (lambda p: p.write_bytes(p.read_bytes()[:30] + p.read_bytes()[60:]), 'expected a Parquet'),
        (lambda p: edited(p, params=None), 'without params'),
        (lambda p: edited(p, split=[0.5]), "column 'split': expected int64"),
        (lambda p: edited(p, split=pyarrow.array([None], pyarrow.int64())), 'empty cells'),
        (lambda p: edited(p, roc_auc=['high']), "column 'roc_auc': expected numbers"),
        (lambda p: edited(p, part=['val']), 'part: expected one of'),
        (lambda p: edited(p, params=['[' * 100_000]), 'expected a JSON object'),
        (lambda p: edited(p, params=[json.dumps('x' * 10_000)]), 'expected a JSON object'),
        (lambda p: edited(p, per_task=['[1]']), 'numbers of each task as a JSON object'),
        (lambda p: edited(p, per_task=['{"a": {"b": "c"}}']), 'numbers of each task'),
        (lambda p: edited(p, per_task=['{"a": 3}']), 'numbers of each task'),
        (lambda p: edited(p, per_task=['[' * 100_000]), 'numbers of each task'),
        (lambda p: edited(p, per_task=[0.5]), "column 'per_task': expected text"),
    ],
)
def test_damaged_and_wrong_files_are_refused_by_name(tmp_path, damage, message):
    path = tmp_path / 'x.parquet'
    write_results(path, [result(0, roc_auc=0.5)])
    damage(path)
    with pytest.raises(ResultsError, match=message) as caught:
        read_results(tmp_path)
    assert 'x.parquet' in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_that_claims_too_much_is_refused_before_it_is_read(tmp_path):
    table = pyarrow.table({f'c{i}': pyarrow.array([0.0]) for i in range(1001)})
    pyarrow.parquet.write_table(table, tmp_path / 'x.parquet')
    with pytest.raises(ResultsError, match='at most'):
        read_results(tmp_path)


def test_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(ResultsError, match=r'expected \*\.parquet files, found none'):
        read_results(tmp_path)
    with pytest.raises(ResultsError, match='expected a results folder, found nothing'):
        read_results(tmp_path / 'absent')
    (tmp_path / 'x.parquet').write_bytes(b'')
    with pytest.raises(ResultsError, match='found a file; give the folder of this file'):
        read_results(tmp_path / 'x.parquet')
