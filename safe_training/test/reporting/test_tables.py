# SPDX-License-Identifier: Apache-2.0
"""Table 1 and the robust table: published choices, honest spreads, nested choice, three formats."""

import csv
import io
import json
import math

import numpy as np
import pytest
from shared_files import golden_json

from safe_training.cli.main import main
from safe_training.reporting.tables.aggregated import paper_table, results_by_kind, robust_tables
from safe_training.reporting.tables.csv import to_csv
from safe_training.reporting.tables.entries import (
    HEADLINE,
    MACRO,
    TableError,
    entries,
    paper_entries,
    paper_entry,
    robust_entry,
    rows_of,
)
from safe_training.reporting.tables.exact import exact_table
from safe_training.reporting.tables.latex import to_latex
from safe_training.reporting.tables.markdown import to_markdown
from safe_training.sweep.results import Result, canonical, write_results

GOLDEN = golden_json('table1_aggregation')
PARTS = {'train': 'train', 'seen': 'val_seen', 'unseen': 'val_unseen'}

# The published names of methods, and ours.
MODELS = {'lstm': 'safe_lstm', 'indep': 'safe_mlp', 'rnd': 'rnd', 'logpZO': 'logpzo'}
DISTANCES = {
    'mahala': 'mahalanobis',
    'euclid': 'euclidean_knn',
    'cosine': 'cosine_knn',
    'pca_kmeans': 'pca_kmeans',
}
METRICS = {
    'max_token_prob': 'token_max_neg_log_prob',
    'avg_token_entropy': 'token_avg_entropy',
    'total_var': 'action_total_var',
    'general_var': 'action_general_var',
    'entropy_linkage': 'action_cluster_entropy',
    'stac_single': 'stac_single',
}


def golden_results():
    """Return the mocked runs of the golden file as results of ours."""
    found = []

    def add(run, prefix, detector, params):
        for part, published in PARTS.items():
            value = run[f'falert_early_roc_auc/{prefix}_{published}']
            found.append(
                Result(
                    'golden',
                    'paper',
                    detector,
                    canonical({'id': params}),
                    str(run.get('dataset.token_idx_rel')),
                    run['train.seed'],
                    part,
                    {HEADLINE: value},
                )
            )

    for run in GOLDEN['runs']:
        name = run.get('model.name')
        if name is not None:
            detector = DISTANCES[run['model.distance']] if name == 'embed' else MODELS[name]
            varied = {
                key: value
                for key, value in run.items()
                if key.startswith('model.') and key not in ('model.name', 'model.distance')
            }
            add(run, 'model', detector, varied)
            continue
        measured = {
            key.split('/')[1][: -len('_train')]
            for key in run
            if key.startswith('falert_early_roc_auc/') and key.endswith('_train')
        }
        for metric in measured:
            base = metric.removeprefix('neg_').removesuffix('_rmean').split('.')[0]
            add(run, metric, METRICS[base], metric)
    return found


def published_name(row):
    name = row['model.name']
    if name.startswith('embed-'):
        return DISTANCES[name.removeprefix('embed-')]
    return MODELS.get(name) or METRICS[name]


def test_published_choices_and_means_come_out():
    found = entries(golden_results(), paper_entry)
    by_detector = {entry.detector: entry for entry in found}
    expected = {published_name(row): row for row in GOLDEN['table']}
    compared = 0
    for detector, row in expected.items():
        entry = by_detector[detector]
        for part, published in PARTS.items():
            summary = entry.values[f'{part}/{HEADLINE}']
            assert summary.mean * 100 == pytest.approx(row[published], abs=1e-2)
            assert summary.splits == 3
            compared += 1
        if row['method_full'] is not None:
            chosen = {json.loads(c.params)['id'] for c in entry.chosen.values()}
            assert chosen == {row['method_full']}
        if row['dataset.token_idx_rel'] is not None:
            assert {c.feature for c in entry.chosen.values()} == {row['dataset.token_idx_rel']}
    assert compared == 3 * 11
    order = [e.detector for e in found if e.detector in expected]
    assert order == list(expected), 'rows are in the published order'


def test_spreads_are_standard_deviations_and_not_the_published_ones():
    """The published code appends the mean as a fourth run before it takes the deviation (T2)."""
    by_detector = {e.detector: e for e in entries(golden_results(), paper_entry)}
    for row in GOLDEN['table']:
        summary = by_detector[published_name(row)].values[f'unseen/{HEADLINE}']
        seeds = np.array([row[f'{seed}-val_unseen'] for seed in range(3)])
        assert summary.std * 100 == pytest.approx(seeds.std(ddof=1), abs=1e-2)
        published = float(row['avg_mstd-val_unseen'].split('{')[2].rstrip('}'))
        with_mean = np.append(seeds, seeds.mean()).std(ddof=1)
        assert with_mean == pytest.approx(published, abs=1e-2)
        assert with_mean == pytest.approx(seeds.std(ddof=1) * math.sqrt(2 / 3))
        assert summary.std * 100 > published


def result(detector, seed, part, value, *, params=None, protocol='robust', benchmark='toy', **more):
    values = {HEADLINE: value, MACRO: value, f'clock_{MACRO}': 0.5, 'alpha': 0.1, **more}
    params = canonical(params or {})
    return Result(benchmark, protocol, detector, params, 'f[mean]', seed, part, values)


def runs(detector, seen, unseen, **options):
    """Return one result for each split and part; NaN values are given too."""
    found = []
    for part, values in (('seen', seen), ('unseen', unseen)):
        found += [result(detector, i, part, value, **options) for i, value in enumerate(values)]
    return found


def test_robust_choice_is_made_on_each_split_and_never_by_unseen_tasks():
    results = [
        *runs('safe_mlp', [0.9, 0.1], [0.2, 0.9], params={'a': 1}),
        *runs('safe_mlp', [0.8, 0.7], [1.0, 0.4], params={'a': 2}),
    ]
    entry = robust_entry(results)
    assert [json.loads(entry.chosen[i].params)['a'] for i in (0, 1)] == [1, 2]
    assert entry.values[f'unseen/{MACRO}'].mean == pytest.approx((0.2 + 0.4) / 2)
    swapped = [
        *runs('safe_mlp', [0.9, 0.1], [0.0, 0.0], params={'a': 1}),
        *runs('safe_mlp', [0.8, 0.7], [1.0, 1.0], params={'a': 2}),
    ]
    assert robust_entry(swapped).chosen == entry.chosen
    one = paper_entry(results)
    assert {json.loads(c.params)['a'] for c in one.chosen.values()} == {2}, 'best mean on seen'
    assert (one.combinations, entry.combinations) == (2, 2)


def test_a_combination_that_lacks_splits_is_not_compared_with_those_that_have_them():
    results = [
        *runs('safe_mlp', [0.9, math.nan], [0.9, 0.9], params={'a': 1}),
        *runs('safe_mlp', [0.6, 0.6], [0.5, 0.5], params={'a': 2}),
    ]
    entry = paper_entry(results)
    assert json.loads(entry.chosen[0].params) == {'a': 2}
    assert entry.combinations == 1


def test_a_split_without_any_number_on_seen_tasks_allows_no_choice():
    nan = math.nan
    several = [
        *runs('safe_mlp', [nan, 0.6], [0.9, 0.5], params={'a': 1}),
        *runs('safe_mlp', [nan, 0.5], [0.1, 0.4], params={'a': 2}),
    ]
    entry = robust_entry(several)
    assert list(entry.chosen) == [1]
    assert entry.splits == 2
    assert '1/2' in to_markdown(robust_tables(several)[0])
    alone = robust_entry(runs('clock', [nan, nan], [0.5, 0.5]))
    assert list(alone.chosen) == [0, 1], 'one combination needs no choice'
    assert paper_entry(runs('clock', [nan, nan], [0.5, 0.5])) is None


def test_nan_seeds_are_said_and_not_silently_dropped():
    table = robust_tables(runs('clock', [0.5] * 3, [0.5, math.nan, 0.7]))[0]
    assert any('only 2 of 3 splits' in note for note in table.notes)


def paper_runs(benchmark, detector, seen, unseen, **options):
    return runs(detector, seen, unseen, protocol='paper', benchmark=benchmark, **options)


def test_methods_that_do_not_apply_are_dashes_and_nothing_is_bold_without_intervals():
    results = [
        *paper_runs('one', 'safe_mlp', [0.7, 0.8, 0.9], [0.6, 0.7, 0.8]),
        *paper_runs('one', 'clock', [0.5] * 3, [0.5] * 3),
        *paper_runs('two', 'token_max_entropy', [0.6] * 3, [0.75] * 3),
        *paper_runs('two', 'safe_mlp', [0.5] * 3, [0.5] * 3),
    ]
    text = to_markdown(paper_table(results))
    rows = {
        cells[2]: cells[3:-1]
        for cells in ([c.strip() for c in line.split('|')] for line in text.splitlines())
        if len(cells) > 3
    }
    assert rows['Method'] == [
        'one Seen',
        'one Unseen',
        'one of',
        'two Seen',
        'two Unseen',
        'two of',
    ]
    assert rows['SAFE-MLP'] == [
        '80.00 ± 10.00',
        '70.00 ± 10.00',
        '1',
        '50.00 ± 0.00',
        '50.00 ± 0.00',
        '1',
    ]
    assert rows['Max entropy'] == ['-', '-', '-', '60.00 ± 0.00', '75.00 ± 0.00', '1']
    assert rows['Clock'][3:] == ['-', '-', '-']
    assert [*rows][2:] == ['Max entropy', 'SAFE-MLP', 'Clock'], "in the paper's order"
    assert 'Published protocol' in text and 'a running monitor does not know it' in text


def test_every_registered_detector_has_its_row():
    from safe_monitor_node.detectors import DETECTORS

    rows = {detector: (group, title) for group, detector, title in rows_of(set(DETECTORS))}
    assert set(rows) == set(DETECTORS)
    assert rows['safe_lstm'] == ('SAFE', 'SAFE-LSTM')


def test_a_detector_of_someone_else_has_a_row_too():
    text = to_markdown(robust_tables(runs('my_own', [0.5], [0.5]))[0])
    assert '| Others | my\\_own |' in text


def of_tasks(detector, aucs, found, *, splits=4, protocol='robust', benchmark='toy'):
    """Return results on unseen tasks; each split has every task, and no split differs."""
    tasks = {
        f'task {i}': {
            HEADLINE: auc,
            'found_early': early,
            'n_failures': 10,
            'n_failures_with_median': 10,
            'n_successes': 20,
            'false_alarm_rate': 0.25,
            'min_length': 1 if i == 0 else 5,
        }
        for i, (auc, early) in enumerate(zip(aucs, found, strict=True))
    }
    values = {
        HEADLINE: 0.65,
        MACRO: float(np.mean(aucs)),
        f'clock_{MACRO}': 0.5,
        'found_early': float(np.mean(found)),
        'clock_found_early': 0.05,
        'steps_saved': 12.5,
        'steps_saved_over_clock': -1.25,
        'macro_roc_auc_running_100_percent': 0.8,
        'alpha': 0.1,
        'false_alarm_rate': 0.25,
        'detection_rate': 0.6,
        'balanced_accuracy': 0.675,
        'detection_time': 0.4,
    }
    return [
        Result(benchmark, protocol, detector, '{}', 'f', split, part, values, tasks)
        for split in range(splits)
        for part in ('seen', 'unseen')
    ]


def row_of(table, method):
    titles = [column.title for column in table.columns]
    (row,) = [row for row in table.rows if row.cells[0].text == method]
    return list(zip(titles, row.cells, strict=True))[1:]


def test_robust_table_begins_with_what_is_found_early():
    aucs = [0.5, 0.6, 0.7, 0.8]
    (table,) = robust_tables(of_tasks('safe_mlp', aucs, [0.0, 0.5, 0.5, 1.0]))
    line = next(x for x in to_markdown(table).splitlines() if 'SAFE-MLP' in x)
    cells = [c.strip() for c in line.split('|')][3:-1]
    assert cells[0] == '50.0 ± 0.0'
    low, high = (float(x) for x in cells[1].split(' to '))
    assert low == 12.5 and high == 87.5
    assert cells[2:5] == ['5.0', '12.5 ± 0.0', '-1.2 ± 0.0']
    assert cells[5] == '65.0 ± 0.0'
    low, high = (float(x) for x in cells[6].split(' to '))
    assert 50 <= low < 65 < high <= 80
    assert cells[7:10] == ['80.0 ± 0.0', '50.0', '65.0 ± 0.0']
    assert cells[10:] == ['25.0 ± 0.0', '10.0', '60.0 ± 0.0', '67.5 ± 0.0', '40.0 ± 0.0', '4', '1']
    notes = ' '.join(table.notes)
    assert 'about 90 % of the cases' in notes
    assert 'The shortest rollout has one step in task 0' in notes


def test_bold_rests_on_paired_intervals_over_tasks():
    """The tasks differ a lot, but the difference of two detectors hardly differs between tasks."""
    generator = np.random.default_rng(0)
    base = generator.uniform(0.4, 0.9, size=12)
    results = [
        *of_tasks('safe_mlp', base + 0.05, [0.5] * 12),
        *of_tasks('signal', base + 0.05 + generator.normal(0, 0.02, 12), [0.5] * 12),
        *of_tasks('mahalanobis', base, [0.5] * 12),
    ]
    (table,) = robust_tables(results)
    bold = {
        method: {title for title, cell in row_of(table, method) if cell.emphasis}
        for method in ('SAFE-MLP', 'Action signal', 'Mahalanobis dist.')
    }
    assert bold == {
        'SAFE-MLP': {'macro AUC'},
        'Action signal': {'macro AUC'},
        'Mahalanobis dist.': set(),
    }, 'found early is the same for all: nothing is bold'
    notes = ' '.join(table.notes)
    assert 'WARNING: 12 tasks do not tell which one is better' in notes
    assert 'Mahalanobis dist.: +5' in notes


def test_many_tasks_need_no_warning():
    base = np.linspace(0.4, 0.9, 24)
    noise = np.tile([0.01, -0.01], 12)
    results = [*of_tasks('signal', base, base), *of_tasks('safe_mlp', base + noise, base)]
    (table,) = robust_tables(results)
    assert 'WARNING' not in ' '.join(table.notes)


def test_results_without_numbers_of_tasks_have_no_interval_and_say_so():
    (table,) = robust_tables(runs('safe_mlp', [0.7] * 4, [0.5, 0.6, 0.7, 0.8]))
    cells = dict(row_of(table, 'SAFE-MLP'))
    assert 'found early' not in cells and '95 %' not in cells
    assert (cells['macro AUC'].text, cells['macro AUC'].spread) == ('65.0', '12.9')
    assert not any(cell.emphasis for cell in cells.values())
    assert any('no intervals over tasks' in note for note in table.notes)


def test_tables_by_task_show_what_averages_hide(tmp_path, capsys):
    results = [
        *of_tasks('signal', [0.5, 0.9], [0.0, 1.0]),
        *of_tasks('signal', [0.5, 0.9], [0.0, 1.0], protocol='loto'),
    ]
    (tmp_path / 'results').mkdir()
    write_results(tmp_path / 'results' / 'x.parquet', results)
    assert main(['table', str(tmp_path / 'results')]) == 0
    assert 'by task' not in capsys.readouterr().out
    assert main(['table', str(tmp_path / 'results'), '--by-task']) == 0
    said = capsys.readouterr().out
    assert said.count('by task') == 2
    assert '| task 0 | 4 | 10 | 20 | 0.0 ± 0.0 |' in said
    assert '| task 1 | 4 | 10 | 20 | 100.0 ± 0.0 |' in said


def test_choosing_on_unseen_tasks_is_said_loudly_in_every_format(tmp_path, capsys):
    results = [
        *runs('safe_mlp', [0.9, 0.1], [0.2, 0.9], params={'a': 1}),
        *runs('safe_mlp', [0.8, 0.7], [0.3, 0.4], params={'a': 2}),
        *paper_runs('toy', 'safe_mlp', [0.9, 0.9], [0.3, 0.3], params={'a': 1}),
        *paper_runs('toy', 'safe_mlp', [0.8, 0.8], [0.6, 0.6], params={'a': 2}),
        *runs('safe_mlp', [0.9], [0.3], params={'a': 1}, protocol='loto'),
    ]
    split = robust_entry(results[:8], 'unseen')
    assert [json.loads(split.chosen[i].params)['a'] for i in (0, 1)] == [2, 1]
    assert split.values[f'unseen/{MACRO}'].mean == pytest.approx((0.3 + 0.9) / 2)
    (published,), _ = paper_entries(results, 'unseen')
    assert {json.loads(c.params)['a'] for c in published.chosen.values()} == {2}
    assert published.values[f'unseen/{HEADLINE}'].mean == pytest.approx(0.6)
    assert published.values[f'seen/{HEADLINE}'].mean == pytest.approx(0.8)

    folder = tmp_path / 'results'
    folder.mkdir()
    write_results(folder / 'x.parquet', results)
    assert main(['table', str(folder), '--out', str(tmp_path / 'out')]) == 0
    honest = {p.name: p.read_text() for p in (tmp_path / 'out').iterdir()}
    assert not any('CHOSEN' in text or 'REPORTED' in text for text in honest.values())
    capsys.readouterr()
    arguments = ['table', str(folder), '--select-on', 'unseen', '--out', str(tmp_path / 'out')]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count('CHOSEN ON THE REPORTED TASKS') == 3
    there = {p.name: p.read_text() for p in (tmp_path / 'out').iterdir()}
    assert {name: there[name] for name in honest} == honest, 'the others are not replaced'
    for kind in ('paper', 'robust', 'loto'):
        markdown, latex, table = (
            there[f'table1_{kind}_chosen_on_unseen.{suffix}'] for suffix in ('md', 'tex', 'csv')
        )
        title = markdown.splitlines()[0]
        assert title.startswith('### ') and title.endswith('ON THE REPORTED UNSEEN TASKS')
        assert '**Chosen on the unseen tasks that are reported**' in markdown
        assert '\nCHOSEN ON THE REPORTED TASKS' in markdown
        assert 'no part in the choice' not in markdown and 'same Seen is reported' not in markdown
        assert 'ON THE REPORTED UNSEEN TASKS' in latex.splitlines()[0]
        shown = [line for line in latex.splitlines() if not line.startswith('%')]
        assert any('\\textbf{Chosen on the unseen tasks' in line for line in shown)
        rows = list(csv.DictReader(io.StringIO(table)))
        assert [row['chosen_on'] for row in rows] == ['unseen (THE REPORTED PART)']
        assert [row['protocol'] for row in rows] == [kind]


def test_leaving_one_task_out_has_a_table_of_its_own_that_random_splits_are_not_averaged_with():
    nan = math.nan
    results = [
        *runs('safe_mlp', [0.9] * 2, [0.2] * 2),
        *runs('safe_mlp', [0.9] * 4, [0.5, 0.6, nan, 0.7], protocol='loto', params={'a': 1}),
        *runs('safe_mlp', [0.8] * 4, [1.0] * 4, protocol='loto', params={'a': 2}),
        *runs('clock', [0.5] * 4, [0.5, 0.5, nan, 0.5], protocol='loto'),
        *paper_runs('toy', 'safe_mlp', [0.9], [0.1]),
    ]
    robust, folds = robust_tables(results)
    assert robust.title == 'toy, 2 task splits, unseen tasks'
    assert dict(row_of(robust, 'SAFE-MLP'))['macro AUC'].text == '20.0'
    assert folds.title == 'toy, leave one task out, 4 folds, the unseen task of each'
    headings = [column.title for column in folds.columns[1:]]
    assert headings[0] == 'macro AUC' and headings[-2:] == ['folds', 'of']
    assert 'AUC' not in headings, 'there is nothing to pool'
    cells = folds.rows[0].cells[1:]
    assert (cells[0].text, cells[0].spread) == ('60.0', '10.0'), 'chosen on each fold by seen tasks'
    assert [cell.text for cell in cells[-2:]] == ['3/4', '2']
    assert 'Each task is unseen once' in folds.notes[0]
    assert 'only 3 of 4 folds have the number for safe_mlp, clock' in folds.notes[-1]
    assert {kind: len(there) for kind, there in results_by_kind(results).items()} == {
        'robust': 4,
        'loto': 24,
    }


def simpler(detector, bridge, fractal, **options):
    """Return published runs on two subsets; of each (seen, unseen) one value a split."""
    found = []
    for subset, (seen, unseen) in (('bridge', bridge), ('fractal', fractal)):
        name = f'simpler/{subset}'
        found += runs(detector, seen, unseen, protocol='paper', benchmark=name, **options)
    return found


def test_subsets_share_a_column_averaged_within_each_split_before_it_is_summarised():
    bridge, fractal = ([0.9] * 3, [0.5, 0.6, 0.7]), ([0.5] * 3, [0.9, 0.6, 0.9])
    results = [
        *simpler('safe_mlp', bridge, fractal, params={'a': 1}),
        *simpler('safe_mlp', ([0.6] * 3, [0.9] * 3), ([0.7] * 3, [0.9] * 3), params={'a': 2}),
        *paper_runs('other', 'safe_mlp', [0.5] * 3, [0.5] * 3),
    ]
    table = paper_table(results)
    assert [c.over for c in table.columns[1:]] == ['other'] * 3 + ['simpler'] * 3
    cells = table.rows[0].cells[4:]
    # Unseen means of the splits: 0.7, 0.6, 0.8. On fractal alone a = 2 is best, on both a = 1.
    assert [(c.text, c.spread) for c in cells] == [('70.00', '0.00'), ('70.00', '10.00'), ('2', '')]
    assert any('simpler: mean over the subsets bridge, fractal' in note for note in table.notes)
    titles = [t.title for t in robust_tables(results)]
    assert [title.split(',')[0] for title in titles] == [
        'simpler/bridge',
        'simpler/fractal',
        'other',
    ]


def test_the_choice_is_by_the_mean_over_subsets():
    results = [
        *simpler('safe_mlp', ([0.9] * 2, [0.1] * 2), ([0.1] * 2, [0.1] * 2), params={'a': 1}),
        *simpler('safe_mlp', ([0.6] * 2, [0.2] * 2), ([0.6] * 2, [0.4] * 2), params={'a': 2}),
    ]
    (entry,), _ = paper_entries(results)
    assert {json.loads(c.params)['a'] for c in entry.chosen.values()} == {2}
    assert entry.benchmark == 'simpler' and entry.combinations == 2


def test_a_combination_that_lacks_a_subset_is_not_compared_with_those_that_have_both():
    results = [
        *simpler('safe_mlp', ([0.9] * 2, [0.9] * 2), ([], []), params={'a': 1}),
        *simpler('safe_mlp', ([0.6] * 2, [0.6] * 2), ([0.6] * 2, [0.6] * 2), params={'a': 2}),
        *simpler('safe_lstm', ([0.9] * 2, [0.9] * 2), ([0.9], [0.9])),
        *simpler('stac', ([], []), ([0.9] * 2, [0.9] * 2)),
    ]
    found, notes = paper_entries(results)
    by_detector = {entry.detector: entry for entry in found}
    assert set(by_detector) == {'safe_mlp', 'safe_lstm'}
    assert by_detector['safe_mlp'].combinations == 1
    assert by_detector['safe_mlp'].values[f'unseen/{HEADLINE}'].mean == pytest.approx(0.6)
    assert by_detector['safe_lstm'].values[f'unseen/{HEADLINE}'].splits == 1
    assert 'safe_mlp (2 of 4 runs), safe_lstm (1 of 2 runs), stac (2 of 2 runs)' in notes[0]
    table = paper_table(results)
    assert any('seen: only 1 of 2 splits have the number for safe_lstm' in n for n in table.notes)


def test_a_subset_without_a_number_leaves_the_split_without_one():
    nan = math.nan
    results = simpler('clock', ([0.5] * 2, [0.5, nan]), ([0.5] * 2, [0.5, 0.7]))
    (entry,), _ = paper_entries(results)
    assert entry.values[f'unseen/{HEADLINE}'].splits == 1
    assert entry.values[f'seen/{HEADLINE}'].splits == 2


def test_one_subset_alone_is_said_and_a_whole_beside_subsets_is_refused():
    one = simpler('clock', ([0.5] * 2, [0.5] * 2), ([], []))
    _, notes = paper_entries(one)
    assert notes == ['simpler: only the subset bridge has results.']
    with pytest.raises(TableError, match=r'results of all tasks and of the subsets bridge;'):
        paper_table([*one, *paper_runs('simpler', 'clock', [0.5], [0.5])])
    apart = [
        *simpler('clock', ([0.5], [0.5]), ([], [])),
        *simpler('random', ([], []), ([0.5], [0.5])),
    ]
    with pytest.raises(TableError, match=r'found none; .* simpler: .* clock \(1 of 1 runs\)'):
        paper_table(apart)


def test_names_cannot_break_a_format():
    results = paper_runs('a|b_{%}\n# <script>', 'safe_mlp', [0.5] * 3, [0.5] * 3)
    table = paper_table(results)
    markdown = to_markdown(table)
    assert 'a\\|b\\_{%} # \\<script\\> Seen' in markdown
    latex = to_latex(table)
    assert 'a|b\\_\\{\\%\\} \\# \\textless{}script\\textgreater{}' in latex
    body = [x for x in latex.splitlines() if ' & ' in x and '\\multicolumn' not in x]
    assert {line.count(' & ') for line in body} == {4}
    rows = list(csv.reader(io.StringIO(to_csv(exact_table(entries(results, paper_entry))))))
    assert rows[1][0] == 'a|b_{%}\n# <script>'


def test_csv_holds_exact_numbers():
    results = runs('safe_mlp', [0.7, 0.8], [1 / 3, 2 / 3], params={'a': 1})
    row = next(csv.DictReader(io.StringIO(to_csv(exact_table(entries(results, robust_entry))))))
    assert row['group'] == 'SAFE' and row['chosen'] == '{"a": 1} f[mean]'
    assert float(row[f'unseen/{MACRO}:mean']) == pytest.approx(0.5, abs=1e-15)
    assert row[f'unseen/{MACRO}:splits'] == '2'


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'results'
    path.mkdir()
    write_results(path / 'p.parquet', paper_runs('one', 'safe_mlp', [0.7] * 3, [0.6] * 3))
    write_results(path / 'r.parquet', runs('safe_mlp', [0.7] * 9, [0.6] * 9, benchmark='one'))
    return path


def test_the_verb_prints_and_writes_both_tables(folder, tmp_path, capsys):
    out = tmp_path / 'new' / 'tables'
    assert main(['table', str(folder), '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert 'Table 1, published protocol' in said
    assert 'one, 9 task splits, unseen tasks' in said
    assert {p.name for p in out.iterdir()} == {
        f'table1_{protocol}.{suffix}'
        for protocol in ('paper', 'robust')
        for suffix in ('md', 'tex', 'csv')
    }
    assert (out / 'table1_paper.md').read_text() in said
    for kind, start in (('latex', '% '), ('csv', 'benchmark,')):
        assert main(['table', str(folder), '--format', kind]) == 0
        assert capsys.readouterr().out.startswith(start)


def test_a_protocol_alone(folder, tmp_path, capsys):
    assert main(['table', str(folder), '--protocol', 'robust']) == 0
    assert 'published' not in capsys.readouterr().out
    (folder / 'r.parquet').unlink()
    assert main(['table', str(folder), '--protocol', 'paper']) == 0
    said = capsys.readouterr().out
    assert 'Based on only the 3 splits of the published protocol' in said
    for other in ('robust', 'loto'):
        assert main(['table', str(folder), '--protocol', other]) == 1
        assert f'expected results of the protocol {other}, found none' in capsys.readouterr().err
    write_results(folder / 'p.parquet', runs('safe_mlp', [0.7], [0.6]))
    assert main(['table', str(folder), '--protocol', 'paper']) == 1
    assert 'expected results of the published protocol' in capsys.readouterr().err


def test_tables_that_cannot_be_written_change_nothing(folder, tmp_path, capsys):
    out = tmp_path / 'tables'
    out.mkdir()
    (out / 'table1_paper.md').write_text('before')
    (out / 'table1_robust.csv').mkdir()
    assert main(['table', str(folder), '--out', str(out)]) == 1
    assert {p.name for p in out.iterdir()} >= {'table1_paper.md', 'table1_robust.csv'}
    assert not list(out.glob('.*')), 'nothing half-written stays'


def test_wrong_folders_are_refused(tmp_path, capsys):
    assert main(['table', str(tmp_path / 'absent')]) == 1
    assert 'expected a results folder, found nothing' in capsys.readouterr().err
    write_results(tmp_path / 'none.parquet', [])
    assert main(['table', str(tmp_path)]) == 1
    assert 'expected rows in the folders, found none' in capsys.readouterr().err


def test_the_same_thing_twice_is_refused():
    with pytest.raises(TableError, match=r'found two results of .*, split 0, part seen'):
        robust_entry([*runs('clock', [0.5], [0.5]), *runs('clock', [0.5], [0.5])])
