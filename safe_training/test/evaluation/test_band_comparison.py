# SPDX-License-Identifier: Apache-2.0
"""Bands of single tasks keep their promise within each task, and the report tells kinds apart."""

import json
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from rollout_factory import make_rollout
from scipy.stats import binom

from safe_training.calibration.curves import Successes
from safe_training.cli import main as cli
from safe_training.cli.compare_bands import _plain
from safe_training.evaluation.band_comparison import COMPARED, BandResult, Comparison, compare_bands
from safe_training.evaluation.fit_and_calibrate import HELD_OUT, calibrated_band
from safe_training.evaluation.protocol import (
    HELD_OUT_PROTOCOL,
    EvaluationError,
    Protocol,
    choose_split,
    choose_splits,
)
from safe_training.metrics.binomial import Tally, worst_task
from safe_training.reporting.tables.bands import promised_cell

TASKS = ('easy', 'hard')


def successes_of(counts):
    """Return so many successes of each task."""
    return [
        make_rollout(index, steps=8, task=task, success=True)
        for task, count in counts.items()
        for index in range(count)
    ]


def curve(generator, task):
    """Return a score curve; successes of hard tasks look worse."""
    level = generator.normal() + (3.0 if task.startswith('hard') else 0.0)
    return level + 0.3 * generator.normal(size=generator.integers(3, 9)).cumsum()


def split_of(successes):
    return choose_split(successes, 0, Protocol(unseen_ratio=0.0))


def band_of(split, successes, curves, seed, alpha=0.1, modulation='none'):
    protocol = Protocol(per_task=True, max_steps=8, alpha=alpha, modulation=modulation)
    scored = Successes(
        curves, [r.episode_id for r in successes], [r.task for r in successes], HELD_OUT
    )
    return calibrated_band(
        scored,
        successes,
        replace(split, number=seed),
        protocol,
        alphas=[alpha],
    )


@pytest.mark.parametrize('modulation', ['none', 'std'])
@pytest.mark.parametrize(('n', 'alpha'), [(5, 0.2), (10, 0.2), (20, 0.1), (100, 0.05)])
def test_the_promise_holds_within_each_task(n, alpha, modulation):
    resamplings = 1000
    generator = np.random.default_rng([n, len(modulation)])
    successes = successes_of(dict.fromkeys(TASKS, n))
    split = split_of(successes)
    alarms, shared = dict.fromkeys(TASKS, 0), dict.fromkeys(TASKS, 0)
    for draw in range(resamplings):
        curves = [curve(generator, r.task) for r in successes]
        band = band_of(split, successes, curves, draw, alpha, modulation)
        for task in TASKS:
            new = curve(generator, task)
            assert band.at(alpha, task).task == task
            assert 'tasks' not in band.tasks[task].provenance
            alarms[task] += band.at(alpha, task).first_crossing(new) is not None
            shared[task] += band.at(alpha).first_crossing(new) is not None
    most = binom.ppf(1 - 1e-4, resamplings, alpha)
    for task in TASKS:
        assert alarms[task] <= most, (task, alarms)
        # And not by never alarming.
        assert alarms[task] > 0.3 * alpha * resamplings, (task, alarms)
    if n == 100 and modulation == 'none':
        # The band of all tasks keeps its promise on the whole and breaks it on the hard task.
        assert shared['hard'] > most
        assert shared['easy'] < 0.2 * alpha * resamplings


def test_tasks_of_few_successes_keep_the_promise_together():
    # Under the band of all tasks, which the easy one rules, the hard ones would alarm far more.
    alpha, resamplings, counts = 0.1, 1000, {'easy': 50, 'hard a': 6, 'hard b': 6}
    generator = np.random.default_rng(0)
    successes = successes_of(counts)
    split = split_of(successes)
    alarms, under_all = 0, 0
    for draw in range(resamplings):
        band = band_of(split, successes, [curve(generator, r.task) for r in successes], draw)
        task = ('hard a', 'hard b')[draw % 2]
        new = curve(generator, task)
        assert band.at(alpha, task).task == task
        assert band.tasks[task].provenance['tasks'] == ['hard a', 'hard b']
        assert band.tasks[task].n_calibration == 12
        alarms += band.at(alpha, task).first_crossing(new) is not None
        under_all += band.at(alpha).first_crossing(new) is not None
    most = binom.ppf(1 - 1e-4, resamplings, alpha)
    assert 0.3 * alpha * resamplings < alarms <= most
    assert under_all > most


def test_too_few_successes_even_together_leave_the_band_of_all_tasks():
    generator = np.random.default_rng(0)
    successes = successes_of({'easy': 20, 'hard': 3, '': 2})
    curves = [curve(generator, r.task) for r in successes]
    band = band_of(split_of(successes), successes, curves, 0)
    assert list(band.tasks) == ['easy']
    assert band.at(0.1, 'easy').task == 'easy'
    assert band.at(0.1, 'hard').task == band.at(0.1, '').task == ''
    assert np.isfinite(band.at(0.1, 'hard').upper).all()
    assert "task 'easy' alone" in band.tasks['easy'].provenance['calibrated_on']
    assert len(band.tasks['easy'].provenance['calibration_rollouts']) == 20


def rollouts_with_signal(tasks=5, per_task=24):
    """Return rollouts whose signal tells failures apart, and tasks from each other."""
    generator = np.random.default_rng(0)
    rollouts = []
    for task in range(tasks):
        for index in range(per_task):
            length = int(generator.integers(5, 9))
            failed = index % 4 == 3
            level = generator.normal() + 2.0 * task + 3.0 * failed
            rollouts.append(
                make_rollout(
                    index,
                    steps=length,
                    task=f'task_{task}',
                    success=not failed,
                    signals={'chunk_mse': level + 0.3 * generator.normal(size=length)},
                )
            )
    return rollouts


def test_every_kind_of_band_is_judged_by_rollouts_that_did_not_make_it():
    rollouts = rollouts_with_signal()
    splits = choose_splits(rollouts, HELD_OUT_PROTOCOL, range(3))
    found = compare_bands('signal', rollouts, splits, Comparison([0.1, 0.3], draws=5))
    assert [kept.band for kept in found[:16:2]] == list(COMPARED)
    assert len(found) == 3 * 2 * len(COMPARED)
    for kept in found:
        split = splits[kept.split]
        new = [rollouts[i] for i in split.unseen if not rollouts[i].failed]
        held_out = [rollouts[i] for i in split.seen if not rollouts[i].failed]
        assert set(kept.new.rollouts) == {r.task for r in new}
        draws = 5 if kept.band == 'moving' else 1
        assert sum(kept.new.rollouts.values()) == draws * len(new)
        half = len(held_out) - len(held_out) // 2
        expected = len(held_out) if kept.band == 'loto' else 5 * half
        judged = sum(kept.like.rollouts.values())
        assert judged == expected or (judged == 0 and kept.alpha == 0.1)
        assert kept.like.repeats == (1 if kept.band == 'loto' else 5)
        assert all(0 <= time <= 1 for time in kept.detection_times)

    def rate(kind, alpha, which):
        return np.mean(
            [getattr(k, which).rate for k in found if (k.band, k.alpha) == (kind, alpha)]
        )

    for kind in ('none', 'max-deviation', 'std', 'constant', 'moving'):
        assert rate(kind, 0.3, 'like') == pytest.approx(0.3, abs=0.12)
    # A band knows nothing of tasks with other scores; labels teach it.
    assert rate('none', 0.1, 'new') > 0.3
    assert rate('moving', 0.1, 'new') < rate('none', 0.1, 'new') - 0.1


def test_a_split_that_cannot_judge_is_refused():
    rollouts = rollouts_with_signal()
    for options in ({'unseen_ratio': 0.0}, {'seen_train_ratio': 1.0}):
        protocol = Protocol(**options)
        splits = choose_splits(rollouts, protocol, [0])
        with pytest.raises(
            EvaluationError, match='rollouts that were not used for its calibration'
        ):
            compare_bands('signal', rollouts, splits, Comparison([0.1]), protocol=protocol)


def test_rollouts_that_are_drawn_again_are_no_further_rollouts():
    few, enough = Tally(repeats=5), Tally(repeats=1)
    for _ in range(5):
        for index in range(9):
            few.add('a', index == 0)
    for index in range(10):
        enough.add('b', index == 0)
    assert worst_task([few]) is None
    assert worst_task([few, enough]) == ('b', 0.1)


def test_bands_that_cannot_alarm_say_nothing_of_the_promise():
    rollouts = rollouts_with_signal(per_task=8)
    splits = choose_splits(rollouts, HELD_OUT_PROTOCOL, [0])
    (kept,) = compare_bands('signal', rollouts, splits, Comparison([0.1], ['none']))
    assert kept.n_calibration < 18 and kept.finite, 'a half has fewer than nine'
    assert np.isnan(kept.like.rate) and not np.isnan(kept.new.rate)
    (never,) = compare_bands('signal', rollouts, splits, Comparison([0.01], ['none']))
    assert not never.finite and np.isnan(never.new.rate)


def test_a_rate_is_marked_only_where_its_whole_interval_is_above():
    def tally(*rates):
        counted = Tally()
        for task, rate in enumerate(rates):
            for index in range(100):
                counted.add(f'task {task}', index < 100 * rate)
        return counted

    assert promised_cell({0: tally(0.2, 0.21, 0.22, 0.23)}, 0.1).flag == 'above'
    # Every split has the same rate of 0.17, but it comes from one task.
    splits = {number: tally(0.08, 0.02, 0.08, 0.5) for number in range(50)}
    cell = promised_cell(splits, 0.1)
    assert (cell.text, cell.spread, cell.flag) == ('17.0', '0.0', '')
    low, high = (float(x) for x in cell.detail.split(' to '))
    assert low < 10 < 17 < high
    assert not promised_cell({0: tally(0.9)}, 0.1).flag, 'one task says nothing of others'


def test_a_tally_adds_up_by_task():
    tally = Tally()
    assert np.isnan(tally.rate)
    for task, alarmed in (('a', True), ('a', False), ('b', False), ('b', False)):
        tally.add(task, alarmed)
    assert tally.rate == 0.25
    assert tally.alarms == {'a': 1, 'b': 0} and tally.rollouts == {'a': 2, 'b': 2}


# --- the verb


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    """Write rollouts with one feature that tells failures apart."""
    path = tmp_path_factory.mktemp('set') / 'rollouts.npz'
    rollouts = rollouts_with_signal()
    lengths = [len(r) for r in rollouts]
    np.savez(
        path,
        features=np.concatenate([r.signals['chunk_mse'] for r in rollouts])[:, None].astype('f4'),
        action_signals=np.concatenate([r.signals['chunk_mse'] for r in rollouts])[:, None],
        action_signal_names=np.array(['chunk_mse']),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        success=np.array([not r.failed for r in rollouts]),
        task=np.array([r.task for r in rollouts]),
        instruction=np.array([r.task for r in rollouts]),
        episode_index=np.array([r.episode_index for r in rollouts], dtype=np.int32),
    )
    return path


def verb(capsys, *arguments, name='compare-bands'):
    status = cli.main([name, *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_verb_prints_a_table_for_each_promise(archive, capsys):
    status, out, _ = verb(capsys, archive, '--detector', 'signal', '--splits', 2, '--alpha', 0.2)
    assert status == 0
    assert 'signal, 2 task splits: promised false-alarm rate 20.0 %' in out
    for band in COMPARED.values():
        assert band.title in out
    status, out, _ = verb(
        capsys, archive, '--detector', 'signal', '--splits', 2, '--band', 'none', '--json'
    )
    found = json.loads(out)['bands']
    assert status == 0 and len(found) == 2 * 4 and {row['kind'] for row in found} == {'none'}


def test_the_verb_judges_a_folder_by_others_than_it_was_ranked_on(archive, capsys, tmp_path):
    out = tmp_path / 'detector'
    fit = ['fit', str(archive), '--detector', 'signal', '--out', str(out), '--modulation', 'none']
    assert cli.main([*fit, '--per-task']) == 0
    capsys.readouterr()
    judge = (archive, out, '--bands', '--alpha', 0.2)
    status, said, _ = verb(capsys, *judge, name='judge')
    assert status == 0
    for words in (
        'ranked on',
        'Tasks with their own band at alpha 0.1',
        'seen (calibration)',
        'unseen',
        'Over tasks: bootstrap interval',
        'Clopper-Pearson',
    ):
        assert words in ' '.join(said.split())
    rows = json.loads(verb(capsys, *judge, '--json', name='judge')[1])['rows']
    by_name = {row['rollouts']: row for row in rows}
    assert by_name['seen (calibration)']['realised'] <= 0.2
    unseen = by_name['unseen']
    assert unseen['low'] <= unseen['realised'] <= unseen['high']
    assert unseen['tasks_low'] <= unseen['realised'] <= unseen['tasks_high']


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (('--detector', 'signal', '--alpha', 2), '--alpha: expected a rate above 0 and below 1'),
        (('--detector', 'signal', '--splits', 0), '--splits: expected at least 1'),
        (
            ('--detector', 'signal', '--adaptation-step', 0),
            '--adaptation-step: expected a number in',
        ),
        (
            ('--detector', 'signal', '--splits', 2, '--splits-from', 'x'),
            '--splits cannot be used with --splits-from, ',
        ),
        (
            ('--detector', 'signal', '--first-split', 2, '--splits-from', 'x'),
            '--first-split cannot be used with --splits-from, which reads existing splits; '
            'remove one of the two options',
        ),
    ],
)
def test_wrong_usage_is_refused(archive, capsys, arguments, match):
    status, _, errors = verb(capsys, archive, *arguments)
    assert status == 2
    assert match in errors


def test_the_detection_time_is_the_mean_of_numpy_as_in_0_1():
    times = [0.1, 0.2, 0.3]
    assert np.mean(times) != fmean(times), 'the test sees the difference'
    shown = _plain(BandResult('none', 0.1, 0, detection_times=times))
    assert shown['detection_time'] == np.mean(times)
