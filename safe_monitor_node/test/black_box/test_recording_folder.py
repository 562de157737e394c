# SPDX-License-Identifier: Apache-2.0
"""The folder of recordings: names, bounds, the lock, and what a killed process left behind."""

import re
import shutil

import pytest

from safe_monitor_node.black_box.folder import (
    REFUSE,
    Bounds,
    RecordingFolder,
    RecordingFolderError,
    recording_name,
)
from vla_feature_bridge.atomic import path_aside

NAME = r'20\d{6}T\d{6}\.\d{3}Z_[A-Za-z0-9_-]{1,40}_[0-9a-f]{8}\.mcap'


def opened(path, files=3, size=1000, when_full='delete_oldest'):
    folder = RecordingFolder(path, Bounds(files, size, when_full))
    folder.open()
    return folder


def store(folder, when, size=100, episode='e'):
    return folder.store(recording_name(episode, when), size, lambda s: s.write(bytes(size)))


@pytest.mark.parametrize(
    ('episode', 'expected'),
    [
        ('pick up/7', 'pick_up_7'),
        ('../../x', 'x'),
        ('', 'episode'),
        ('...', 'episode'),
        ('a\0b', 'a_b'),
        ('x' * 300, 'x' * 40),
        ('Tür 7', 'T_r_7'),
        ('\u202e\u2400', 'episode'),
    ],
)
def test_a_name_has_the_time_the_plain_episode_and_a_random_part(episode, expected):
    name = recording_name(episode, 1_700_000_000.123)
    assert re.fullmatch(NAME, name)
    assert name.startswith(f'20231114T221320.123Z_{expected}_')
    assert name != recording_name(episode, 1_700_000_000.123)


def test_the_oldest_go_first_and_only_our_own_files(tmp_path):
    folder = opened(tmp_path)
    (tmp_path / 'mine.mcap').write_text('x' * 5000)
    paths = [store(folder, 1_700_000_000 + n) for n in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    assert folder.deleted == 2
    assert folder.recordings == paths[2:]
    assert (tmp_path / 'mine.mcap').exists()


def test_the_bytes_are_bounded(tmp_path):
    folder = opened(tmp_path, files=100)
    paths = [store(folder, 1_700_000_000 + n, size=400) for n in range(4)]
    assert [path.exists() for path in paths] == [False, False, True, True]
    with pytest.raises(RecordingFolderError, match='increase max_folder_mb'):
        store(folder, 1_700_000_010, size=1001)
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_a_full_folder_can_refuse(tmp_path):
    folder = opened(tmp_path, files=1, when_full=REFUSE)
    first = store(folder, 1_700_000_000)
    with pytest.raises(RecordingFolderError, match='expected at most 1 recordings'):
        store(folder, 1_700_000_001)
    assert first.exists()


def test_labelled_recordings_are_never_deleted(tmp_path):
    folder = opened(tmp_path, files=2)
    paths = [store(folder, 1_700_000_000 + n) for n in range(2)]
    for path in paths:
        path.with_name(f'{path.name}.labels.csv').write_text('')
    with pytest.raises(RecordingFolderError, match='with label files'):
        store(folder, 1_700_000_002)
    assert all(path.exists() for path in paths)


def test_unfinished_files_are_found_and_go_first(tmp_path):
    name = recording_name('e' * 50, 1_700_000_000)
    partial = path_aside(tmp_path / name)
    partial.write_bytes(bytes(500))
    folder = opened(tmp_path)
    assert folder.unfinished == [partial]
    assert folder.size == 500
    first = store(folder, 1_700_000_001, size=400)
    assert partial.exists()
    store(folder, 1_700_000_002, size=400)
    assert not partial.exists()
    assert first.exists()
    assert folder.deleted == 0, 'it was no recording'


def test_an_error_while_writing_leaves_nothing(tmp_path):
    folder = opened(tmp_path)

    def write(stream):
        stream.write(b'half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(RecordingFolderError, match='found No space left on device'):
        folder.store(recording_name('e', 1_700_000_000), 4, write)
    assert [path.name for path in tmp_path.iterdir()] == ['.black_box.lock']


def test_two_black_boxes_cannot_use_one_folder(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(RecordingFolderError, match='a folder of its own'):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(RecordingFolderError, match='expected a folder that can be written'):
        opened(tmp_path / 'file')


def test_a_deleted_folder_is_empty_and_is_made_again(tmp_path):
    path = tmp_path / 'recordings'
    folder = opened(path)
    store(folder, 1_700_000_000)
    shutil.rmtree(path)
    folder.look()
    assert (folder.recordings, folder.size, folder.problem) == ([], 0, '')
    assert store(folder, 1_700_000_001).exists()


def test_a_folder_that_cannot_be_listed_is_said_and_keeps_its_limits(tmp_path):
    path = tmp_path / 'recordings'
    folder = opened(path, files=1)
    first = store(folder, 1_700_000_000)
    path.rename(tmp_path / 'moved')
    path.write_text('a file')  # root can list every folder, so that permissions prove nothing
    folder.look()
    assert 'expected a folder whose files can be listed' in folder.problem
    assert 'found Not a directory; check the disk' in folder.problem
    assert folder.recordings == [first], 'what the look before has found'
    with pytest.raises(RecordingFolderError, match='can be listed'):
        store(folder, 1_700_000_001)
    path.unlink()
    (tmp_path / 'moved').rename(path)
    store(folder, 1_700_000_002)
    assert folder.problem == ''
    assert not first.exists()
