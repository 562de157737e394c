# SPDX-License-Identifier: Apache-2.0
"""Files that version 0.1 wrote are read as 0.1 read them: ``test/version_0_1/expected.json``.

Its README says what each file is. Tests that would write work on copies.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor, MonitorError
from safe_monitor_node.monitor.thresholds import choose_thresholds
from safe_monitor_node.storage.adaptation_file import AdaptationFile
from safe_monitor_node.storage.detector_folder import DetectorFolderError, describe, load_detector
from safe_training.cli.main import main
from safe_training.evaluation.saved_splits import read_splits
from safe_training.recordings.convert import convert
from safe_training.recordings.describe import info
from safe_training.recordings.sources import load_rollouts, open_source
from safe_training.sweep.results import read_results
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

FILES = Path(__file__).resolve().parents[1] / 'version_0_1'
EXPECTED: dict[str, Any] = json.loads((FILES / 'expected.json').read_text(encoding='utf-8'))

#: Words of version 0.1 and the words of today: keys, and values of keys that name something.
NEW_WORDS: dict[str, str] = {
    'scheme': 'protocol',
    'seed': 'split',
    # what a label did
    'LEARNED': 'UPDATED',
    'TAKEN_BACK': 'UNDONE',
    # how a source was recognised
    'holds rollout_set.json': 'contains rollout_set.json',
    'holds metadata.yaml of rosbag2': 'contains metadata.yaml of rosbag2',
    'is named *.mcap': 'the name ends in .mcap',
    'holds raw pre_logits (token), pooled while it is read': 'contains the raw feature pre_logits '
    'with the axes token; the feature is pooled during reading',
    # metrics
    **{
        f'{rate}_by_earliest_stop': f'{rate}_until_min_length'
        for rate in ('detection_rate', 'false_alarm_rate', 'balanced_accuracy', 'detection_time')
    },
    **{
        f'{clock}{macro}{area}_{old}': f'{clock}{macro}{area}_{new}'
        for clock in ('', 'clock_')
        for macro in ('', 'macro_')
        for area in ('roc_auc', 'average_precision')
        for old, new in (
            ('at_earliest_stop', 'score_at_min_length'),
            ('by_earliest_stop', 'max_score_until_min_length'),
            ('by_end', 'max_score'),
        )
    },
    'brier_at_earliest_stop': 'brier_score_at_min_length',
    'calibration_error_at_earliest_stop': 'calibration_error_score_at_min_length',
}
DETECTORS: dict[str, Any] = EXPECTED['detectors']
UNCALIBRATED = 'uncalibrated'
CALIBRATED = [name for name in DETECTORS if name != UNCALIBRATED]


def today(old: Any) -> Any:
    """Return what 0.1 said in the words of today."""
    if isinstance(old, dict):
        return {NEW_WORDS.get(key, key): today(value) for key, value in old.items()}
    if isinstance(old, list):
        return [today(value) for value in old]
    return NEW_WORDS.get(old, old) if isinstance(old, str) else old


def close(found: Any, expected: Any) -> None:
    """Hold numbers against those of expected.json, which have 7 digits; inf and nan are texts."""
    np.testing.assert_allclose(
        np.array(found, dtype=float), np.array(expected, dtype=float), rtol=1e-5, atol=1e-6
    )


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the folder of the files, and find it as it was."""
    monkeypatch.chdir(FILES)
    before = {path: path.stat().st_mtime_ns for path in FILES.rglob('*')}
    yield
    assert {path: path.stat().st_mtime_ns for path in FILES.rglob('*')} == before


@pytest.fixture(scope='module')
def rollouts() -> list[Rollout]:
    """Return the rollouts that the detectors were fitted on."""
    return list(RolloutSet.open(FILES / 'sets/full'))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run one verb and return what it printed."""
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# -- sets and recordings


def described(rollout: Rollout) -> dict[str, Any]:
    """Return every scalar, and of each array dtype, shape and the CRC-32 of its bytes."""
    scalars = (
        'task', 'task_id', 'episode_index', 'success', 'instruction', 'policy', 'feature_name',
        'exec_horizon', 'failure_step', 'video', 'unseen',
    )  # fmt: skip
    names = (
        'features', 'feature_lengths', 'actions', 'token_probability', 'token_entropy', 'stamps',
        'inference_time',
    )  # fmt: skip
    arrays = {name: getattr(rollout, name) for name in names}
    arrays |= {f'signals.{name}': values for name, values in rollout.signals.items()}
    return {
        **{name: getattr(rollout, name) for name in scalars},
        'arrays': {
            name: f'{array.dtype} {"x".join(map(str, array.shape))} '
            f'{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}'
            for name, array in arrays.items()
            if array is not None
        },
    }


def facts(notes: list[str]) -> list[str]:
    """Return notes without their advice."""
    return [note.partition(';')[0] for note in notes]


@pytest.mark.parametrize('path', EXPECTED['sources'])
def test_every_set_and_recording_holds_what_it_held(path: str) -> None:
    expected = EXPECTED['sources'][path]
    found = info(path)
    # The facts are the same; the advice after them is in other words.
    assert facts(found.pop('notes')) == facts(today(expected['info'].pop('notes')))
    assert found.pop('action_space') == ''
    assert found == today(expected['info'])
    if 'rollouts' in expected:
        rollouts = {r.episode_id: described(r) for r in load_rollouts(path)}
        assert rollouts == expected['rollouts']


@pytest.mark.parametrize('name', ['run.mcap', 'run.bag', 'run_sqlite'])
def test_a_recording_is_converted_to_a_recording_with_the_messages_of_today(
    name: str, tmp_path: Path
) -> None:
    assert convert(f'bags/{name}', tmp_path / 'new.mcap')['rollouts']
    found = {r.episode_id: described(r) for r in load_rollouts(tmp_path / 'new.mcap')}
    assert found == {r.episode_id: described(r) for r in load_rollouts(f'bags/{name}')}


@pytest.mark.parametrize('storage', list(StoragePlugin), ids=lambda s: s.name)
def test_messages_without_a_definition_are_recognised(
    storage: StoragePlugin, tmp_path: Path
) -> None:
    """Recorders before ROS 2 Iron stored no definition."""
    with (
        Reader('bags/run.bag') as reader,
        Writer(tmp_path / 'run', version=9, storage_plugin=storage) as writer,
    ):
        topics = {
            c.id: writer.add_connection(c.topic, c.msgtype, msgdef='', rihs01=c.digest)
            for c in reader.connections
        }
        for connection, time, data in reader.messages():
            writer.write(topics[connection.id], time, data)
    found = {r.episode_id: described(r) for r in load_rollouts(tmp_path / 'run')}
    expected = EXPECTED['recorded_rollouts']
    assert set(found) == set(expected)
    for name, rollout in expected.items():
        assert found[name]['arrays'] | {'stamps': ''} == rollout['arrays'] | {'stamps': ''}


@pytest.mark.parametrize('name', ['run.mcap', 'run.bag', 'run_sqlite'])
def test_a_recording_holds_every_array_in_every_storage(name: str, tmp_path: Path) -> None:
    # A copy without the labels that were added later.
    bag = Path('bags', name)
    copy = (shutil.copytree if bag.is_dir() else shutil.copy)(bag, tmp_path / name)
    found = {r.episode_id: described(r) for r in load_rollouts(copy)}
    assert found == EXPECTED['recorded_rollouts']


@pytest.mark.parametrize('path', EXPECTED['labels'])
def test_labels_are_those_that_were_given(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, 'label', path, '--list', '--all', '--json'))
    assert found.pop('bad') == [], 'a key of later versions: episodes that cannot be read'
    assert found == EXPECTED['labels'][path]


def test_labels_of_a_table_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FILES / 'sets/labelled', tmp_path / 'set')
    path = str(tmp_path / 'set')
    said(capsys, 'label', path, '--episode', 'd/1', '--outcome', 'unknown')
    said(capsys, 'label', path, '--csv', 'labels.csv')
    found = json.loads(said(capsys, 'label', path, '--list', '--all', '--json'))
    assert found == EXPECTED['labels']['sets/labelled'] | {'path': path, 'bad': []}


def test_a_raw_set_is_pooled_as_it_was() -> None:
    source = open_source('sets/raw', pooling=(('token', 'mean'),))
    found = {r.episode_id: described(r) for r in source.rollouts()}
    assert found == EXPECTED['pooled_from_raw']


# -- interrupted conversions


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """Return a copy of the interrupted work."""
    return shutil.copytree(FILES / 'interrupted', tmp_path / 'interrupted')


def test_interrupted_work_of_the_same_name_is_continued(
    interrupted: Path, rollouts: list[Rollout]
) -> None:
    expected = EXPECTED['interrupted']['named']
    feature = FeatureSpec('hidden_states', 8, ('token',), (('token', 'last'),))
    with RolloutSetWriter(
        interrupted / 'named', feature=feature, policy='a-vla', source='made up', work='fixture'
    ) as writer:
        assert writer.continued == expected['continued']
        assert writer.left_out == expected['left_out']
        writer.add(rollouts[2])
    assert RolloutSet.open(interrupted / 'named').episode_ids == expected['episodes']


@pytest.mark.parametrize('command', ['mean', 'last'])
def test_an_interrupted_conversion_of_another_version_is_done_anew(
    interrupted: Path, command: str
) -> None:
    """The name of the work holds the version, so not even the same call goes on with it."""
    done = convert('sets/raw', interrupted / 'converted', pooling=(('token', command),), jobs=1)
    assert done['continued'] == EXPECTED['interrupted']['converted otherwise']['continued'] == 0
    assert done['rollouts'] == EXPECTED['interrupted']['converted']['rollouts']
    assert sorted(p.name for p in interrupted.iterdir()) == ['.named.partial', 'converted']
    found = {r.episode_id: described(r) for r in load_rollouts(interrupted / 'converted')}
    if command == 'mean':
        assert found == EXPECTED['pooled_from_raw']


# -- splits


@pytest.mark.parametrize('path', EXPECTED['splits'])
def test_saved_splits_hold_the_same_episodes(path: str, rollouts: list[Rollout]) -> None:
    expected = EXPECTED['splits'][path]
    of = rollouts if 'flagged' in path else list(RolloutSet.open('sets/plain'))
    saved = read_splits(Path(path), of)
    found = {
        str(number): {
            'seen_tasks': list(split.seen_tasks),
            'unseen_tasks': list(split.unseen_tasks),
            **{part: [of[i].episode_id for i in members] for part, members in split.parts.items()},
        }
        for number, split in saved.splits.items()
    }
    assert {'protocol': saved.protocol, 'splits': found} == today(expected)


# -- detector folders


def entry(name: str, what: str) -> Any:
    """Return an entry of a detector folder; the name of another folder stands for the same."""
    value = DETECTORS[name][what]
    return DETECTORS[value][what] if isinstance(value, str) else value


def test_every_folder_is_among_the_expected() -> None:
    assert {path.name for path in Path('detectors').iterdir()} == set(DETECTORS)


@pytest.mark.parametrize('name', CALIBRATED)
def test_a_detector_folder_scores_and_alarms_as_it_did(name: str, rollouts: list[Rollout]) -> None:
    calibrated = load_detector(f'detectors/{name}')
    scores = {r.episode_id: calibrated.detector.score(r) for r in rollouts}
    expected = entry(name, 'scores')
    assert set(scores) == set(expected)
    for episode, values in scores.items():
        close(values, expected[episode])
    band = calibrated.band
    for task, by_alpha in entry(name, 'thresholds').items():
        found = {f'{alpha:g}': band.at(alpha, task) for alpha in band.alphas}
        # Where the task has no finite threshold, that of all tasks stands in.
        assert {alpha for alpha, of in found.items() if of.task == task} == set(by_alpha)
        for alpha, values in by_alpha.items():
            close(found[alpha].upper, values)
    alarms = {
        r.episode_id: band.at(calibrated.alpha, r.task).first_crossing(scores[r.episode_id])
        for r in rollouts
    }
    assert {e: step for e, step in alarms.items() if step is not None} == entry(
        name, 'first_alarms'
    )


@pytest.mark.parametrize('name', CALIBRATED)
def test_a_monitor_takes_the_same_alphas_of_a_detector_folder(name: str) -> None:
    expected = DETECTORS[name]['monitor']
    calibrated = load_detector(f'detectors/{name}')
    if 'refused' in expected:
        with pytest.raises((MonitorError, BandError)) as refusal:
            choose_thresholds(calibrated)
        assert type(refusal.value).__name__ == expected['refused']
    else:
        alarm, warning = choose_thresholds(calibrated)
        assert {'alarm': alarm.alpha, 'warning': warning.alpha} == expected


@pytest.mark.parametrize('name', CALIBRATED)
def test_a_detector_folder_says_what_it_said(name: str) -> None:
    found = describe(f'detectors/{name}')
    expected = DETECTORS[name]['info']
    if 'band' not in expected:
        del found['provenance']
        band = found.pop('band')
        found |= {
            f'band.{part}': band[part] for part in ('steps', 'kind', 'n_calibration', 'n_center')
        }
    assert found.pop('action_space') == ''
    for added in ('choose', 'window'):  # parameters that 0.1 did not have
        found['params'].pop(added, None)
    assert found == expected


def test_a_detector_folder_without_a_band_is_refused() -> None:
    """0.1 could write and score it; a calibrated detector always has its band now."""
    with pytest.raises(
        DetectorFolderError, match=r'detector\.json: expected a band.*fit the detector again'
    ):
        load_detector(f'detectors/{UNCALIBRATED}')


# -- adaptation


def bands(monitor: EpisodeMonitor) -> dict[str, Any]:
    """Return where the moving thresholds of a monitor are."""
    adaptation = monitor.adaptation
    assert adaptation is not None
    found = {}
    for task in adaptation.tasks:
        moving = adaptation.of(task)
        alarm, warning = adaptation.thresholds(task)
        found[task] = {
            'level': moving.level,
            'successes': moving.successes,
            'false_alarms': moving.false_alarms,
            'observed': moving.observed,
            'alarm': alarm.upper,
            'warning': warning.upper,
        }
    return found


def hold_bands(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold moving thresholds against expected.json."""
    assert set(found) == set(expected)
    for task, values in found.items():
        assert set(values) == set(expected[task])
        for name, value in values.items():
            close(value, expected[task][name])


@pytest.mark.parametrize('path', EXPECTED['adaptation'])
def test_a_monitor_goes_on_from_an_adaptation_file(
    path: str, tmp_path: Path, rollouts: list[Rollout]
) -> None:
    expected = EXPECTED['adaptation'][path]
    calibrated = load_detector(expected['folder'])
    settings = {'alpha': expected['alpha'], 'adaptation_step': expected['rate']}
    monitor = EpisodeMonitor(calibrated, **settings)
    copy = shutil.copy(path, tmp_path)
    AdaptationFile(copy, calibrated, monitor.adaptation)
    hold_bands(bands(monitor), expected['bands'])
    # A monitor that hears the same labels today is where that of 0.1 was.
    anew = EpisodeMonitor(calibrated, **settings)
    effects = {}
    for rollout in rollouts:
        anew.start(rollout.episode_id, 0.0, rollout.task)
        for t in range(len(rollout)):
            anew.step(rollout.step(t), 0.0)
        anew.end(rollout.episode_id)
        effects[rollout.episode_id] = anew.label(rollout.episode_id, rollout.success).name
    effects['a/1 again, unknown'] = anew.label('a/1', None).name
    assert effects == today(expected['lessons'])
    hold_bands(bands(anew), expected['bands'])


# -- results


@pytest.mark.parametrize('path', EXPECTED['results'])
def test_results_and_their_table_are_those_of_0_1(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = EXPECTED['results'][path]
    if path == 'sweeps/unfinished':
        path = str(unfinished_sweep(tmp_path))
    else:
        results = read_results(Path(path))
        assert len(results) == len(expected['rows'])
        for result, row in zip(results, expected['rows'], strict=True):
            values = dict(zip(today(expected['value_names']), row.pop('values'), strict=True))
            assert {name: getattr(result, name) for name in today(row)} == today(row)
            assert set(result.values) == {*values, 'fit_seconds'}
            for name, value in values.items():
                close(result.values[name], value)
    before, now = cells_of(expected['table']), cells_of(said(capsys, 'table', path))
    assert before.keys() == now.keys()
    for place, cells in before.items():
        # The interval over splits is gone, and columns that need other numbers have come.
        assert cells.keys() - now[place].keys() <= {'95 %'}
        assert {name: now[place][name] for name in cells if name != '95 %'} == {
            name: cell for name, cell in cells.items() if name != '95 %'
        }


def cells_of(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the cells of Markdown tables, by title of the table and method, without bold."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    title, names = '', None
    for line in text.splitlines():
        if line.startswith('### '):
            title, names = line, None
        elif line.startswith('|') and not line.startswith('|---'):
            cells = [cell.strip().replace('**', '') for cell in line.strip('|').split('|')]
            if names is None:
                names = cells
            else:
                found[title, cells[1]] = dict(zip(names[2:], cells[2:], strict=True))
    assert found
    return found


def unfinished_sweep(folder: Path) -> Path:
    """Return the sweep as it was after one of its two units."""
    copy = shutil.copytree(FILES / 'sweeps/finished', folder / 'unfinished')
    (copy / 'safe_mlp-split0-2a30bdddcc9ac0fc.parquet').unlink()
    return copy


@pytest.mark.parametrize('path', EXPECTED['continued_sweeps'])
def test_a_sweep_is_continued(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if path == 'sweeps/unfinished':
        copy = unfinished_sweep(tmp_path)
    else:
        copy = shutil.copytree(path, tmp_path / 'finished')
    found = json.loads(
        said(
            capsys, 'sweep', 'sets/plain', '--grid', 'sweeps/grid.yaml', '--out', str(copy),
            '--splits', '1', '--precision', 'float32', '--alpha', '0.3', '--json',
        )
    )  # fmt: skip
    assert found.pop('out') == str(copy)
    assert found == EXPECTED['continued_sweeps'][path]
    assert {p.name for p in copy.iterdir()} == {p.name for p in Path('sweeps/finished').iterdir()}
