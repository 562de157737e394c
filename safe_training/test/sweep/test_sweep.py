# SPDX-License-Identifier: Apache-2.0
"""A sweep gives what evaluating each configuration alone gives, goes on, and refuses bad grids."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from rollout_factory import make_rollout
from shared_files import DATA

from safe_monitor_node.detectors import DETECTORS, registry
from safe_training.cli.main import main
from safe_training.evaluation import evaluate as evaluation
from safe_training.evaluation import fit_and_calibrate
from safe_training.evaluation.evaluate import evaluate
from safe_training.evaluation.fit_and_calibrate import labelled
from safe_training.evaluation.protocol import (
    HELD_OUT_PROTOCOL,
    Protocol,
    choose_split,
    choose_splits,
    numbered_tasks,
)
from safe_training.recordings.readers.open_pi_zero import TASKS as SIMPLER_TASKS
from safe_training.recordings.rollouts import Rollouts
from safe_training.recordings.sources import load_rollouts
from safe_training.sweep import run as sweep_module
from safe_training.sweep.grid import Family, Subset, SweepError, Variant, read_grid, shipped_grids
from safe_training.sweep.plan import Settings, Unit, plan, planned_splits, tasks_of_subsets
from safe_training.sweep.results import read_results
from safe_training.sweep.unit import run_unit
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

# Models trained together and alone differ by rounding, about 1e-7 in a score. With these learning
# rates no score is as close as 1e-6 to its threshold, so that rounding decides no alarm.
GRID = """
benchmark: flow
splits: [0, 1]
detectors:
  - name: safe_lstm
    fixed: {epochs: 3, hidden: 8}
    grid: {learning_rate: [2.0e-3, 1.5e-2], lambda_reg: [0, 1.0e-2]}
  - name: mahalanobis
    grid: {accumulate: [none, mean]}
  - name: token_max_entropy
  - name: clock
"""

QUICK = """
benchmark: flow
splits: [0, 1]
detectors:
  - name: mahalanobis
    grid: {accumulate: [none, mean]}
  - name: token_max_entropy
  - name: clock
"""


def test_a_unit_without_a_fitter_is_not_finished(grid, sweep, tmp_path, monkeypatch, capsys):
    grid.write_text('benchmark: flow\nsplits: [0]\ndetectors:\n  - name: mahalanobis\n')
    with monkeypatch.context() as bare:
        bare.setattr(registry, '_REGISTERED', {})
        bare.setattr(registry, '_installed_fitters', lambda: ())
        assert sweep(grid, tmp_path / 'out') == 1
    assert 'install the package safe_training' in capsys.readouterr().err
    assert not list((tmp_path / 'out').rglob('*.parquet'))
    assert sweep(grid, tmp_path / 'out') == 0
    assert list((tmp_path / 'out').rglob('*.parquet'))


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / 'grid.yaml'
    path.write_text(GRID)
    return path


@pytest.fixture(scope='module')
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the first rollouts of each task of the shipped file, which are read in no time."""
    whole = load_rollouts(DATA / 'miniature_disturbed.npz')
    path = tmp_path_factory.mktemp('sets') / 'flow'
    with RolloutSetWriter(path, feature=whole.feature, policy='miniature') as writer:
        for rollout in whole:
            if rollout.episode_index < 6:
                writer.add(rollout)
    return path


@pytest.fixture
def sweep(small_set: Path) -> Callable[..., int]:
    """Run the verb in float32, which is what one model alone is trained in."""

    def run(grid: Path, out: Path, *more: str) -> int:
        return main(
            ['sweep', str(small_set), '--grid', str(grid), '--out', str(out), '--json']
            + ['--precision', 'float32', '--splits', '2', *more]
        )

    return run


@pytest.mark.slow
def test_a_sweep_finds_what_evaluating_each_configuration_alone_finds(
    grid, sweep, small_set, tmp_path, capsys
):
    assert sweep(grid, tmp_path / 'out') == 0
    said = json.loads(capsys.readouterr().out)
    assert said['units_run'] == 8 and said['units_kept'] == 0
    assert len(said['left_out']) == 2 and 'token' in said['left_out'][0]
    found = {
        (r.detector, r.params, r.split, r.part): r.values for r in read_results(tmp_path / 'out')
    }
    rollouts = labelled(load_rollouts(small_set))
    alone = [
        ('safe_lstm', {'epochs': 3, 'hidden': 8, 'learning_rate': rate, 'lambda_reg': reg})
        for rate in (2e-3, 1.5e-2)
        for reg in (0, 1e-2)
    ]
    alone += [('mahalanobis', {'accumulate': 'none'}), ('mahalanobis', {'accumulate': 'mean'})]
    alone += [('clock', {})]
    assert len(found) == len(alone) * 2 * 3
    splits = choose_splits(rollouts, HELD_OUT_PROTOCOL, [0, 1])
    for name, params in alone:
        text = json.dumps(params, sort_keys=True)
        rows = evaluate([name], rollouts, splits, params={name: params}, protocol=HELD_OUT_PROTOCOL)
        for row in rows:
            values = found[name, text, row.split, row.part]
            for metric, value in row.values.items():
                if metric != 'fit_seconds':
                    same = math.isclose(values[metric], value, abs_tol=2e-3)
                    assert same or (math.isnan(value) and math.isnan(values[metric])), metric


def test_the_scores_that_calibrate_are_the_scores_that_are_judged(small_set, monkeypatch):
    """Scored twice, in batches of another size, a success may cross its own threshold."""
    scored = []

    class Recorded(DETECTORS['clock']):
        def score_all(self, rollouts):
            scored.extend(r.episode_id for r in rollouts)
            return super().score_all(rollouts)

    monkeypatch.setattr(fit_and_calibrate, 'make_detector', lambda _, **params: Recorded(**params))
    rollouts = labelled(load_rollouts(small_set))
    (split,) = choose_splits(rollouts, HELD_OUT_PROTOCOL, [0])
    everything = sorted(r.episode_id for r in rollouts)
    evaluate(['clock'], rollouts, [split])
    assert sorted(scored) == everything
    scored.clear()
    settings = Settings(Protocol(), 'flow', 'float32')
    unit = Unit(Variant(), Family('clock', ({},)), 0)
    results, failures = run_unit(unit, split, rollouts, rollouts.feature, settings)
    assert results and not failures
    assert sorted(scored) == everything


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_gives_the_same(
    grid, sweep, tmp_path, capsys, monkeypatch
):
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert sweep(grid, whole) == 0
    write, written = sweep_module.write_results, []

    def stop_at_third(path, results):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, results)

    monkeypatch.setattr(sweep_module, 'write_results', stop_at_third)
    assert sweep(grid, cut) == 1
    assert sorted(p.name for p in cut.iterdir()) == sorted(
        ['splits.json', 'sweep.json', *(p.name for p in written)]
    )
    monkeypatch.undo()
    capsys.readouterr()
    assert sweep(grid, cut) == 0
    assert json.loads(capsys.readouterr().out)['units_kept'] == 2

    def numbers(folder):
        return [
            (r.detector, r.params, r.split, r.part, r.values['roc_auc_max_score'])
            for r in read_results(folder)
        ]

    assert numbers(cut) == numbers(whole)


def test_the_number_of_processes_changes_nothing(grid, sweep, tmp_path):
    grid.write_text(QUICK)
    folders = [tmp_path / jobs for jobs in ('1', '2')]
    for folder in folders:
        assert sweep(grid, folder, '--jobs', folder.name) == 0
    one, two = (
        [(r.detector, r.params, r.split, r.part, r.tasks, r.values) for r in read_results(folder)]
        for folder in folders
    )
    for *_, values in (*one, *two):
        del values['fit_seconds']
    assert repr(one) == repr(two)


@pytest.mark.slow
@pytest.mark.skipif(find_spec('ray') is None, reason='Ray (optional extra) is not installed')
def test_a_sweep_on_ray_gives_the_same(grid, sweep, tmp_path):
    assert sweep(grid, tmp_path / 'here') == 0
    assert sweep(grid, tmp_path / 'ray', '--ray') == 0
    here, there = read_results(tmp_path / 'here'), read_results(tmp_path / 'ray')
    assert [(r.detector, r.params, r.split, r.part) for r in here] == [
        (r.detector, r.params, r.split, r.part) for r in there
    ]
    for a, b in zip(here, there, strict=True):
        assert b.values['roc_auc_max_score'] == pytest.approx(
            a.values['roc_auc_max_score'], abs=2e-3, nan_ok=True
        )


def test_without_ray_its_option_says_how_to_get_it(grid, sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert sweep(grid, tmp_path / 'out', '--ray') == 1
    assert 'pip install "ray>=2.40"' in capsys.readouterr().err


def test_a_folder_of_another_sweep_is_refused(grid, sweep, tmp_path, capsys):
    out = tmp_path / 'out'
    assert sweep(grid, out) == 0
    grid.write_text(GRID.replace('- name: clock', '- name: constant'))
    assert sweep(grid, out, '--alpha', '0.2') == 1
    assert 'another sweep (settings differ)' in capsys.readouterr().err


def test_results_of_a_raw_dump_name_the_pooling(tmp_path, capsys):
    path = tmp_path / 'grid.yaml'
    path.write_text(
        'benchmark: raw\nunseen_ratio: 0\nseen_train_ratio: 0.7\n'
        'poolings: [{pooling: [token=mean]}, {pooling: [token=first]}]\n'
        'detectors: [{name: euclidean_knn, grid: {neighbours: [1]}}, {name: clock}]\n'
    )
    copied = tmp_path / 'dump'
    shutil.copytree(DATA / 'openvla_dump', copied)
    out = tmp_path / 'out'
    arguments = ['sweep', str(copied), '--grid', str(path), '--out', str(out), '--json']
    assert main([*arguments, '--splits', '1']) == 0
    found = {(r.detector, r.feature) for r in read_results(out)}
    assert found == {
        ('euclidean_knn', 'hidden_states[token=mean]'),
        ('euclidean_knn', 'hidden_states[token=first]'),
        ('clock', 'hidden_states[token=mean]'),
    }, 'the clock reads no features and is run once'


def test_training_rollouts_that_all_ended_alike_leave_the_learned_out_too(
    grid, sweep, small_set, tmp_path, capsys, monkeypatch
):
    rollouts = load_rollouts(small_set)
    feature = rollouts.feature
    alike = [r for r in rollouts if r.success]
    monkeypatch.setattr(sweep_module, 'load_rollouts', lambda *_, **__: Rollouts(alike, feature))
    assert sweep(grid, tmp_path / 'out') == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(x.startswith('safe_lstm') and 'successes' in x for x in said['left_out']) == 8
    assert {r.detector for r in read_results(tmp_path / 'out')} == {'clock'}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[', 'expected YAML'),
        ('benchmark: x', "expected the field 'detectors'"),
        ('benchmark: x\ndetectors: [{name: clock}]\nspeed: 1', "found 'speed'"),
        ('benchmark: x\ndetectors: [{name: klock}]', "expected a known name, found 'klock'"),
        (
            'benchmark: x\ndetectors: [{name: safe_mlp, grid: {width: [1]}}]',
            "expected a parameter of this detector, found 'width'",
        ),
        ('benchmark: x\ndetectors: [{name: safe_mlp, grid: {hidden: 1}}]', 'list of values'),
        ('benchmark: x\nsplits: [a]\ndetectors: [{name: clock}]', 'list of split numbers'),
        ('benchmark: 3\ndetectors: [{name: clock}]', 'a value of type str, found 3'),
        ('benchmark: x\nsubsets: [a]\ndetectors: [{name: clock}]', 'a value of type dict'),
        (
            'benchmark: x\nsubsets: {a/b: [x]}\ndetectors: [{name: clock}]',
            'names of letters, digits, "_" and "-", found \'a/b\'',
        ),
        (
            'benchmark: x\nsubsets: {a: [x], A: [y]}\ndetectors: [{name: clock}]',
            'more than capital letters',
        ),
        ('benchmark: x\nsubsets: {a: x_*}\ndetectors: [{name: clock}]', 'task names or patterns'),
        ('benchmark: x\nsubsets: {a: []}\ndetectors: [{name: clock}]', 'task names or patterns'),
    ],
)
def test_a_wrong_grid_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / 'grid.yaml'
    path.write_text(text)
    with pytest.raises(SweepError, match=r'grid\.yaml') as error:
        read_grid(str(path))
    assert message in str(error.value)


SUBSETS = """
benchmark: flow
subsets:
  doors: ['door-*', 'drawer-*', 'window-*']
  arms: ['arm_*']
  pucks: [push-v3, 'p*-place-v3', 'plate-*', 'sweep-*']
detectors:
  - name: mahalanobis
  - name: token_max_entropy
  - name: clock
"""


def test_each_subset_is_a_benchmark_of_its_own_and_goes_on(
    grid, sweep, small_set, tmp_path, capsys, monkeypatch
):
    grid.write_text(SUBSETS)
    out = tmp_path / 'out'
    read = []
    load = sweep_module.load_rollouts

    def count(*arguments, **options):
        read.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(sweep_module, 'load_rollouts', count)
    assert sweep(grid, out) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)['units_run'] == 3 * 2 * 2
    assert len(read) == 1, 'the source is read once for both subsets'
    assert 'subset arms, because the source has no task that matches arm_*' in said.err
    assert 'coffee-push-v3, dial-turn-v3, faucet-close-v3' in said.err
    for subset in ('doors', 'pucks'):
        assert f'left out: token_max_entropy, {subset}, split 0' in said.err
        assert len(list(out.glob(f'clock-{subset}-split?-*.parquet'))) == 2

    found = read_results(out)
    assert {(r.benchmark, r.whole, r.subset) for r in found} == {
        ('flow/doors', 'flow', 'doors'),
        ('flow/pucks', 'flow', 'pucks'),
    }
    everything = labelled(load(small_set))
    doors = everything.take(
        r for r in everything if r.task.startswith(('door-', 'drawer-', 'window'))
    )
    splits = choose_splits(doors, HELD_OUT_PROTOCOL, [0, 1])
    alone = evaluate(['mahalanobis'], doors, splits, protocol=HELD_OUT_PROTOCOL)
    values = {
        (r.split, r.part): r.values
        for r in found
        if (r.benchmark, r.detector) == ('flow/doors', 'mahalanobis')
    }
    assert len(values) == len(alone) == 2 * 3
    for row in alone:
        for metric, value in row.values.items():
            if metric != 'fit_seconds':
                there = values[row.split, row.part][metric]
                assert there == pytest.approx(value, nan_ok=True), metric

    next(out.glob('clock-pucks-split1-*.parquet')).unlink()
    assert sweep(grid, out) == 0
    assert json.loads(capsys.readouterr().out)['units_run'] == 1
    assert sweep(grid, out) == 0
    assert json.loads(capsys.readouterr().out)['units_run'] == 0
    assert len(read) == 2, 'where nothing is missing nothing is read'
    assert len(read_results(out)) == len(found)
    grid.write_text(SUBSETS.replace("'window-*'", 'window-open-v3'))
    assert sweep(grid, out) == 1
    assert 'another sweep (subsets differ)' in capsys.readouterr().err


def test_subsets_that_do_not_divide_the_tasks_are_refused(grid, sweep, tmp_path, capsys):
    for patterns, message in (
        ("{a: ['door-o*'], b: ['*-open-v3']}", "'door-open-v3' in a and b; change the patterns"),
        (
            "{a: ['arm_*'], b: [leg]}",
            'expected tasks of the subsets a (arm_*), b (leg), found only the tasks ',
        ),
        ("{a: ['dial-*']}", 'flow/a: split: expected rollouts of two or more tasks'),
    ):
        grid.write_text(f'benchmark: flow\nsubsets: {patterns}\ndetectors: [{{name: clock}}]')
        assert sweep(grid, tmp_path / 'out') == 1
        assert message in capsys.readouterr().err
        shutil.rmtree(tmp_path / 'out')
    grid.write_text('benchmark: flow\ndetectors: [{name: clock}]')
    assert sweep(grid, tmp_path / 'out', '--benchmark', 'my/flow') == 1
    assert "benchmark name without '/'" in capsys.readouterr().err


def recorded(tasks):
    """Return five rollouts of each task, numbered in the order given."""
    return [
        make_rollout(index, task=task, task_id=number)
        for number, task in enumerate(tasks)
        for index in range(5)
    ]


def protocol_of(grid, name):
    return Protocol(grid.unseen_ratio, grid.seen_train_ratio, name=name)


@pytest.mark.parametrize('both', [True, False])
def test_published_splits_of_simpler_leave_one_of_four_tasks_unseen(both):
    """The published code numbers the tasks in an order that is not that of their names."""
    grid = read_grid('open_pi_zero_simpler')
    dump = list(SIMPLER_TASKS) if both else list(SIMPLER_TASKS)[4:]
    rollouts = recorded(dump)
    subsets, notes = tasks_of_subsets(grid, sorted(dump))
    assert [subset.name for subset in subsets] == (['bridge', 'fractal'] if both else ['fractal'])
    assert len(notes) == (0 if both else 1)
    for subset in subsets:
        numbered = [task for task in dump if subset.has(task)]
        assert len(numbered) == 4
        for seed, unseen in zip(grid.splits, (0, 1, 0), strict=True):
            mine = [r for r in rollouts if subset.has(r.task)]
            split = choose_split(mine, seed, protocol_of(grid, 'paper'))
            assert split.unseen_tasks == (numbered[unseen],)
            assert {mine[i].task for i in split.unseen} == {numbered[unseen]}
            assert set(split.seen_tasks) == set(numbered) - {numbered[unseen]}
            assert len(split.train) == 3 * 3 and len(split.seen) == 3 * 2
    assert [t for t in dump if t.startswith('google')] != sorted(dump)[:4]


def test_published_splits_go_by_the_numbers_of_tasks_and_others_by_names(grid):
    described = ['stack', 'open', 'pour', 'close', 'lift', 'turn', 'push', 'wipe', 'fold', 'drop']
    rollouts = recorded(described)
    for seed, unseen in enumerate(([3, 0, 5], [7, 8, 5], [6, 9, 8])):
        split = choose_split(rollouts, seed, protocol_of(read_grid('pi0_libero'), 'paper'))
        assert split.unseen_tasks == tuple(described[number] for number in unseen)
    by_name = choose_split(rollouts, 0, protocol_of(read_grid(str(grid)), 'robust'))
    assert by_name.unseen_tasks == tuple(sorted(described)[number] for number in (3, 0, 5))


def test_tasks_without_numbers_of_their_own_are_split_by_name_and_that_is_said(
    grid, sweep, small_set, tmp_path, capsys, monkeypatch
):
    same = [replace(r, task_id=0) for r in load_rollouts(small_set)]
    assert numbered_tasks(same) is None
    feature = load_rollouts(small_set).feature
    monkeypatch.setattr(sweep_module, 'load_rollouts', lambda *_, **__: Rollouts(same, feature))
    grid.write_text('benchmark: flow\ndetectors: [{name: clock}]')
    assert sweep(grid, tmp_path / 'out', '--protocol', 'paper') == 0
    assert 'splits use the order of the task names' in capsys.readouterr().err


def test_leaving_one_task_out_has_a_split_for_each_task_of_each_subset(
    grid, small_set, tmp_path, capsys, monkeypatch
):
    grid.write_text(
        "benchmark: flow\nsubsets: {open: ['*-open-v3'], push: [push-v3, sweep-v3, plate-*]}\n"
        'detectors: [{name: clock}]'
    )
    out = tmp_path / 'out'
    arguments = [
        'sweep',
        str(small_set),
        '--grid',
        str(grid),
        '--out',
        str(out),
        '--protocol',
        'loto',
    ]
    assert main(arguments) == 0
    found = read_results(out)
    assert {r.protocol for r in found} == {'loto'}
    folds = {(r.subset, r.split) for r in found}
    assert folds == {('open', k) for k in range(3)} | {('push', k) for k in range(3)}
    assert {r.values['tasks'] for r in found if r.part == 'unseen'} == {1}
    capsys.readouterr()
    assert main([*arguments, '--splits', '3']) == 2
    assert 'one split for each task' in capsys.readouterr().err


def test_splits_of_a_sweep_are_kept_and_give_the_same_again(
    grid, sweep, small_set, tmp_path, capsys
):
    grid.write_text('benchmark: flow\ndetectors: [{name: signal}]')
    assert sweep(grid, tmp_path / 'one', '--splits', '2') == 0
    kept = str(tmp_path / 'one' / 'splits.json')
    for _ in range(2):  # and it can be gone on with
        arguments = ['sweep', str(small_set), '--grid', str(grid), '--out', str(tmp_path / 'two')]
        assert main([*arguments, '--splits-from', kept]) == 0
    one, two = (
        {(r.split, r.part): r.values['roc_auc_max_score'] for r in read_results(tmp_path / name)}
        for name in ('one', 'two')
    )
    assert one == pytest.approx(two, nan_ok=True)
    detector = str(tmp_path / 'detector')
    fit = ['fit', str(small_set), '--detector', 'signal', '--out', detector]
    assert main([*fit, '--splits-from', kept, '--split', '1']) == 0
    capsys.readouterr()
    assert main([*arguments, '--splits-from', kept, '--splits', '2']) == 2
    grid.write_text('benchmark: flow\ndetectors: [{name: signal}]')
    assert sweep(grid, tmp_path / 'one', '--splits', '1') == 0
    assert len(json.loads(Path(kept).read_text())['splits']) == 2, 'results of both are there'
    # Other splits may not be mixed with those of a folder.
    other = tmp_path / 'other.json'
    text = Path(kept).read_text()
    evaluate = [
        'evaluate',
        str(small_set),
        '--detector',
        'clock',
        '--splits',
        '2',
        '--first-split',
        '5',
    ]
    assert main([*evaluate, '--save-splits', str(other)]) == 0
    assert main([*arguments, '--splits-from', str(other)]) == 1
    assert 'another sweep (splits differ)' in capsys.readouterr().err
    assert Path(kept).read_text() == text
    grid.write_text(SUBSETS)
    assert main([*arguments[:-1], str(tmp_path / 'three'), '--splits-from', kept]) == 1
    assert 'remove --splits-from' in capsys.readouterr().err


def test_two_grids_of_a_detector_are_not_pooled_and_further_detectors_may_join(
    grid, sweep, tmp_path, capsys
):
    out = tmp_path / 'out'
    lstm = '- {name: safe_lstm, fixed: {epochs: 1, hidden: 4, lambda_reg: %s}}'
    grid.write_text('benchmark: flow\ndetectors:\n' + lstm % '0.1')
    assert sweep(grid, out) == 0
    grid.write_text('benchmark: flow\ndetectors:\n- {name: clock}\n' + lstm % '0.1')
    capsys.readouterr()
    assert sweep(grid, out) == 0
    assert json.loads(capsys.readouterr().out)['units_run'] == 2
    grid.write_text('benchmark: flow\ndetectors:\n- {name: clock}\n' + lstm % '0.2')
    assert sweep(grid, out) == 1
    assert 'another grid of safe_lstm' in capsys.readouterr().err


def test_a_sweep_of_version_0_1_is_continued(grid, sweep, tmp_path, capsys):
    out = tmp_path / 'out'
    text = 'benchmark: flow\n{}: [0, 1]\ndetectors: [{{name: clock}}]'
    grid.write_text(text.format('splits'))
    assert sweep(grid, out) == 0
    manifest = json.loads((out / 'sweep.json').read_text())
    protocol = manifest['settings']['protocol']
    for old, new in (('horizon', 'max_steps'), ('calibration', 'calibrate_on'), ('scheme', 'name')):
        protocol[old] = protocol.pop(new)
    assert protocol['modulation'] == 'max_deviation'
    protocol['modulation'] = 'adaptive'
    (out / 'sweep.json').write_text(json.dumps(manifest))
    splits = json.loads((out / 'splits.json').read_text())
    splits['scheme'] = splits.pop('protocol')
    for split in splits['splits']:
        split['seed'] = split.pop('split')
    (out / 'splits.json').write_text(json.dumps(splits))
    next(out.glob('clock-split1-*.parquet')).unlink()
    grid.write_text(text.format('seeds'))
    capsys.readouterr()
    assert sweep(grid, out) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done['units_run'], done['units_kept']) == (1, 1)


def test_a_table_of_an_unfinished_sweep_says_so(grid, sweep, tmp_path, capsys):
    out = tmp_path / 'out'
    grid.write_text('benchmark: flow\ndetectors: [{name: clock}, {name: signal}]')
    assert sweep(grid, out) == 0
    capsys.readouterr()
    assert main(['table', str(out)]) == 0
    assert capsys.readouterr().err == ''
    next(out.glob('clock-split1-*.parquet')).unlink()
    assert main(['table', str(out)]) == 0
    said = capsys.readouterr().err
    assert 'expected results of 2 splits, found fewer for clock;' in said and str(out) in said
    for path in out.glob('signal-*.parquet'):
        path.unlink()
    assert main(['table', str(out)]) == 0
    assert 'found fewer for clock and none for signal;' in capsys.readouterr().err
    assert main(['table', str(out), '--protocol', 'robust']) == 0
    assert 'none for signal' in capsys.readouterr().err
    assert sweep(grid, out) == 0
    capsys.readouterr()
    assert main(['table', str(out)]) == 0
    assert capsys.readouterr().err == ''


def test_a_finished_unit_without_results_is_not_missing(grid, sweep, tmp_path, capsys):
    out = tmp_path / 'out'
    grid.write_text('benchmark: flow\ndetectors: [{name: clock}, {name: token_max_entropy}]')
    assert sweep(grid, out) == 0
    assert {result.detector for result in read_results(out)} == {'clock'}
    capsys.readouterr()
    assert main(['table', str(out)]) == 0
    assert capsys.readouterr().err == ''


def test_a_table_says_that_a_manifest_is_damaged(grid, sweep, tmp_path, capsys):
    out = tmp_path / 'out'
    grid.write_text('benchmark: flow\ndetectors: [{name: clock}]')
    assert sweep(grid, out) == 0
    (out / 'sweep.json').write_text('{}')
    assert main(['table', str(out)]) == 0
    assert 'sweep.json: expected the manifest of a sweep, found' in capsys.readouterr().err


def test_the_planned_splits_of_each_protocol(grid):
    known = read_grid(str(grid))
    names = ['safe_lstm', 'mahalanobis', 'token_max_entropy', 'clock']
    assert planned_splits('paper', known, None, 5) == dict.fromkeys(names, (0, 1))
    robust = planned_splits('robust', known, None, 5)
    assert robust == dict.fromkeys(names, tuple(range(50))) | {'safe_lstm': tuple(range(10))}
    assert planned_splits('paper', known, 3, 5) == dict.fromkeys(names, (0, 1, 2))
    assert planned_splits('robust', known, 3, 5) == dict.fromkeys(names, (0, 1, 2))
    assert planned_splits('loto', known, None, 5) == dict.fromkeys(names, (0, 1, 2, 3, 4))


def test_a_network_has_fewer_units_than_a_detector_that_is_quick_to_fit(grid):
    known = read_grid(str(grid))
    splits = {'safe_lstm': (0,), 'mahalanobis': (0, 1), 'token_max_entropy': (), 'clock': (0, 1)}
    units = plan(known, [Variant()], {None: splits})
    assert [(unit.split, unit.family.detector) for unit in units] == [
        (0, 'safe_lstm'),
        (0, 'mahalanobis'),
        (0, 'clock'),
        (1, 'mahalanobis'),
        (1, 'clock'),
    ]


def test_a_sweep_is_complete_with_fewer_splits_of_a_network(
    grid, small_set, tmp_path, capsys, monkeypatch
):
    small = '- {name: safe_mlp, fixed: {epochs: 1, hidden: 2}}'
    grid.write_text(f'benchmark: flow\ndetectors:\n- name: constant\n{small}')
    out = tmp_path / 'out'
    monkeypatch.setattr(evaluation, 'CHEAP_SPLITS', 3)
    monkeypatch.setattr(evaluation, 'ROBUST_SPLITS', 2)
    arguments = ['sweep', str(small_set), '--grid', str(grid), '--out', str(out), '--json']
    assert main([*arguments, '--precision', 'float32']) == 0
    counts = Counter(path.name.partition('-')[0] for path in out.glob('*.parquet'))
    assert counts == {'constant': 3, 'safe_mlp': 2}
    capsys.readouterr()
    assert main(['table', str(out)]) == 0
    assert capsys.readouterr().err == ''
    next(out.glob('safe_mlp-split1-*.parquet')).unlink()
    assert main(['table', str(out)]) == 0
    said = capsys.readouterr().err
    assert 'expected results of 3 or 2 splits, found fewer for safe_mlp;' in said


def test_names_of_files_tell_units_apart_and_last():
    family, doors = Family('clock', ({},)), Subset('doors', ('door-*',))
    plain = Unit(Variant(), family, 0)
    assert plain.name() == 'clock-split0-dbc89313ac14576f.parquet', (
        'as of sweeps before there were subsets'
    )
    others = [
        Unit(Variant(), family, 1),
        Unit(Variant('f'), family, 0),
        Unit(Variant(), family, 0, doors),
        Unit(Variant(), family, 0, Subset('doors', ('door-open-v3',))),
        Unit(Variant(), family, 0, Subset('gates', ('door-*',))),
    ]
    assert len({unit.name() for unit in [plain, *others]}) == 6


def test_the_published_grids_have_their_published_size():
    counts = {}
    for name in shipped_grids():
        grid = read_grid(name)
        learned = [f for f in grid.families if f.detector in ('safe_lstm', 'safe_mlp')]
        counts[name] = [len(f.configurations) * len(grid.variants) for f in learned]
        seeds = 5 if name == 'pi0_fast_franka' else 3
        reading = sum('features' in DETECTORS[f.detector].needs for f in grid.families)
        splits = {family.detector: grid.splits for family in grid.families}
        assert len(plan(grid, grid.variants, {None: splits})) == seeds * (
            reading * len(grid.variants) + len(grid.families) - reading
        )
    assert counts['openvla_libero10'] == [36, 36]
    assert counts['openvla_widowx'] == [36, 27]
    assert counts['pi0_fast_libero'] == [72, 72]
    assert counts['pi0_libero'] == [135, 135]
    assert counts['open_pi_zero_simpler'] == [192, 192]
    assert counts['pi0_fast_franka'] == [48, 48]


def test_an_unknown_grid_lists_those_that_are_shipped(tmp_path):
    with pytest.raises(SweepError, match='openvla_libero10'):
        read_grid('no_such_grid')
