# SPDX-License-Identifier: Apache-2.0
"""What lies beside a recording counts, whatever path leads to it and whoever wrote its metadata."""

from pathlib import Path

import pytest
from recorded_bags import SCALARS, SPEC, bag_rollout, read, record, write_set
from rosbags.rosbag2 import StoragePlugin
from ruamel.yaml import YAML

from safe_training.cli.main import main
from safe_training.recordings.convert import convert
from safe_training.recordings.errors import DumpError
from safe_training.recordings.label_files import label_files, labels_file, recording_of
from safe_training.recordings.sources import open_source
from safe_training.recordings.write_bag import write_bag

HEAD = 'episode_id,outcome,failure_step\n'
FAILED = HEAD + 'lauf/ü0,failure,2\n'


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return record(tmp_path / 'run', [bag_rollout(n) for n in range(3)])


def outcomes(path: Path) -> list[tuple[bool | None, int | None]]:
    return [(rollout.success, rollout.failure_step) for rollout in read(path)]


CORRECTED = [(False, 2), (False, None), (None, None)]
AS_RECORDED = [(True, None), (False, None), (None, None)]


def paths_of(recording: Path) -> list[Path]:
    """Return the paths by which a person may reach a recording."""
    near, far = recording.parent / 'link', recording.parent / 'other' / 'deep' / 'link.mcap'
    near.symlink_to(recording.name)
    far.parent.mkdir(parents=True)
    far.symlink_to(recording / 'run.mcap')
    whole = recording.parent / 'all'
    whole.symlink_to(recording.parent)
    return [recording, recording / 'run.mcap', near, near / 'run.mcap', far, whole / 'run']


def test_labels_count_by_every_path(recording):
    assert main(['label', str(recording), '--episode', 'lauf/ü0', '--outcome', 'failure',
                 '--failure-step', '2']) == 0  # fmt: skip
    assert [f.name for f in recording.parent.glob('*.csv')] == ['run.labels.csv']
    for path in paths_of(recording):
        assert outcomes(path) == CORRECTED, path


@pytest.mark.parametrize('number', range(6))
def test_labels_set_by_any_path_count_by_every_path(recording, number):
    paths = paths_of(recording)
    assert main(['label', str(paths[number]), '--episode', 'lauf/ü0', '--outcome', 'failure',
                 '--failure-step', '2']) == 0  # fmt: skip
    assert (recording.parent / 'run.labels.csv').is_file()
    for path in paths:
        assert outcomes(path) == CORRECTED, path


@pytest.mark.parametrize('name', ['run/run.mcap.labels.csv', 'link.labels.csv', 'run.labels.csv'])
def test_labels_of_an_earlier_version_count(recording, name):
    (recording.parent / 'link').symlink_to('run')
    (recording.parent / name).write_text(FAILED)
    assert outcomes(recording.parent / 'link') == CORRECTED
    if name != 'link.labels.csv':
        assert outcomes(recording) == outcomes(recording / 'run.mcap') == CORRECTED


def test_a_new_label_replaces_the_old_one_where_it_is(recording):
    inner = recording / 'run.mcap.labels.csv'
    inner.write_text(FAILED)
    for outcome, episode in (('success', 'lauf/ü0'), ('success', 'lauf/ü2')):
        assert main(['label', str(recording), '--episode', episode, '--outcome', outcome]) == 0
    assert 'lauf/ü0,success' in inner.read_text()
    assert 'lauf/ü2,success' in labels_file(recording).read_text()
    assert outcomes(recording) == [(True, None), (False, None), (True, None)]


def test_two_different_labels_of_one_episode_are_refused(recording):
    labels_file(recording).write_text(FAILED)
    (recording / 'run.mcap.labels.csv').write_text(HEAD + 'lauf/ü0,success,\n')
    with pytest.raises(DumpError, match='expected the outcome failure from step 2, as in'):
        open_source(recording)


def test_labels_of_two_files_of_a_recording_are_joined(recording):
    labels_file(recording).write_text(FAILED)
    (recording / 'run.mcap.labels.csv').write_text(FAILED + 'lauf/ü1,unknown,\n')
    assert outcomes(recording) == [(False, 2), (None, None), (None, None)]


def test_labels_of_a_folder_may_name_episodes_of_its_other_files(recording, tmp_path):
    labels_file(recording).write_text(FAILED + 'in/another/file,success,\n')
    with pytest.raises(DumpError, match="found 'in/another/file'"):
        open_source(recording)
    source = open_source(recording / 'run.mcap')
    assert [r.success for r in source.rollouts()] == [False, False, None]
    assert any('labels of 1 episodes that are not in run.mcap' in note for note in source.notes)


def test_labels_count_when_the_metadata_is_missing(recording):
    labels_file(recording).write_text(FAILED)
    (recording / 'metadata.yaml').unlink()
    assert outcomes(recording / 'run.mcap') == CORRECTED


def test_labels_of_a_renamed_recording_are_said(recording):
    labels_file(recording).write_text(FAILED)
    moved = recording.rename(recording.parent / 'monday')
    assert outcomes(moved) == AS_RECORDED
    notes = open_source(moved).notes
    assert any('rename the file to monday.labels.csv' in note for note in notes)


def test_labels_of_other_recordings_are_not_taken(recording):
    (recording.parent / 'tuesday.labels.csv').write_text(HEAD + 'x/1,success,\n')
    assert outcomes(recording) == AS_RECORDED
    assert not any('tuesday' in note for note in open_source(recording).notes)


def test_recordings_of_one_file_in_one_folder_have_labels_of_their_own(tmp_path):
    for name in ('a.mcap', 'b.mcap'):
        write_bag(tmp_path / name, [bag_rollout(0)], SPEC)
        assert recording_of(tmp_path / name) == tmp_path / name
    labels_file(tmp_path / 'a.mcap').write_text(FAILED)
    assert (outcomes(tmp_path / 'a.mcap'), outcomes(tmp_path / 'b.mcap')) == (
        [(False, 2)],
        [(True, None)],
    )


def test_overwrite_does_not_remove_labels_in_the_folder(tmp_path):
    write_bag(tmp_path / 'x.bag', [bag_rollout(0)], SPEC)
    inner = tmp_path / 'x.bag' / 'x.mcap.labels.csv'
    inner.write_text(FAILED)
    assert label_files(tmp_path / 'x.bag') == [inner]
    with pytest.raises(DumpError, match='the label file of an earlier recording'):
        write_bag(tmp_path / 'x.bag', [bag_rollout(0)], SPEC, overwrite=True)
    assert inner.read_text() == FAILED


# -- custom data


def kept(tmp_path: Path) -> tuple[Path, list]:
    """Return a recording that convert wrote, and its rollouts, of which one is unseen."""
    rollouts = [bag_rollout(n, unseen=n % 2 == 1) for n in range(4)]
    write_set(tmp_path / 'set', rollouts)
    convert(tmp_path / 'set', tmp_path / 'x.bag')
    return tmp_path / 'x.bag', rollouts


def without_custom_data(folder: Path) -> None:
    """Write the metadata as ``ros2 bag reindex`` does."""
    yaml, file = YAML(typ='safe'), folder / 'metadata.yaml'
    content = yaml.load(file.read_text())
    content['rosbag2_bagfile_information'] |= {'custom_data': None, 'ros_distro': ''}
    with file.open('w') as stream:
        yaml.dump(content, stream)


def assert_nothing_lost(path: Path, rollouts: list) -> None:
    found = read(path)
    assert [r.unseen for r in found] == [r.unseen for r in rollouts]
    for one, other in zip(found, rollouts, strict=True):
        for name in SCALARS:
            assert getattr(one, name) == getattr(other, name), name


def test_a_reindexed_recording_keeps_what_messages_cannot_contain(tmp_path):
    folder, rollouts = kept(tmp_path)
    without_custom_data(folder)
    assert_nothing_lost(folder, rollouts)
    assert_nothing_lost(folder / 'x.mcap', rollouts)
    (tmp_path / 'link').symlink_to(folder)
    assert_nothing_lost(tmp_path / 'link', rollouts)
    assert not any('custom_data' in note for note in open_source(folder).notes)


def test_a_reindexed_and_renamed_recording_keeps_it(tmp_path):
    folder, rollouts = kept(tmp_path)
    without_custom_data(folder)
    assert_nothing_lost(folder.rename(tmp_path / 'monday'), rollouts)


def test_the_metadata_of_the_folder_counts_more(tmp_path):
    folder, _ = kept(tmp_path)
    file = folder / 'metadata.yaml'
    changed = file.read_text().replace('"task_id": 7', '"task_id": 5')
    changed = changed.replace('\\"task_id\\": 7', '\\"task_id\\": 5')
    assert changed != file.read_text()
    file.write_text(changed)
    for path in (folder, folder / 'x.mcap'):
        assert {r.task_id for r in read(path)} == {5, 8}


@pytest.mark.parametrize('how', ['metadata.yaml', 'no metadata.yaml'])
def test_a_damaged_copy_inside_is_said(tmp_path, how):
    folder, _ = kept(tmp_path)
    without_custom_data(folder)
    file = folder / 'x.mcap'
    content = file.read_bytes()
    assert content.count(b'safe_rollout_set') == 1
    file.write_bytes(content.replace(b'safe_rollout_set', b'safe_rollout_old'))
    path = folder
    if how == 'no metadata.yaml':
        (folder / 'metadata.yaml').unlink()
        path = file
    (note,) = [note for note in open_source(path).notes if 'custom_data' in note]
    assert 'convert wrote 4 of these episodes' in note and 'unseen tasks count as seen' in note


def test_a_recording_of_a_robot_has_no_such_note(tmp_path):
    for storage in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        folder = record(tmp_path / storage.name, [bag_rollout(0)], storage=storage)
        assert not any('custom_data' in note for note in open_source(folder).notes)


# -- metadata as editors save it


@pytest.mark.parametrize('coding', ['utf-8-sig', 'utf-8'])
def test_metadata_with_a_bom_or_other_line_ends_is_read(recording, coding):
    file = recording / 'metadata.yaml'
    file.write_bytes(file.read_text().replace('\n', '\r\n').encode(coding))
    assert outcomes(recording) == AS_RECORDED


@pytest.mark.parametrize('coding', ['utf-16', 'utf-32'])
def test_metadata_in_another_encoding_is_named(recording, coding):
    file = recording / 'metadata.yaml'
    file.write_bytes(file.read_text().encode(coding))
    with pytest.raises(DumpError, match=f'in UTF-8, found text in {coding.upper()}'):
        open_source(recording)
    assert outcomes(recording / 'run.mcap') == AS_RECORDED
