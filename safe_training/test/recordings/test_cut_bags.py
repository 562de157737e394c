# SPDX-License-Identifier: Apache-2.0
"""Recordings that were compressed, cut off, split, moved or repaired in any way."""

import re
import shutil
import sqlite3

import pytest
from backports import zstd
from recorded_bags import bag_rollout, read, record
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from safe_training.recordings.convert import convert
from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import open_source

STORAGES = pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
COUNT = 6


def rollouts():
    return [bag_rollout(number, length=40) for number in range(COUNT)]


def recorded(tmp_path, storage, compression=None, name='run'):
    folder = record(tmp_path / name, rollouts(), storage, compression)
    (file,) = (f for f in folder.iterdir() if f.name != 'metadata.yaml')
    return folder, file


def by_name(path, **options):
    source = open_source(path, **options)
    return {rollout.episode_id: rollout for rollout in source.rollouts()}, source


def expected():
    return {rollout.episode_id: rollout for rollout in rollouts()}


@STORAGES
@pytest.mark.parametrize('mode', [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_a_compressed_file_without_its_metadata(tmp_path, storage, mode):
    _, file = recorded(tmp_path, storage, mode)
    alone = tmp_path / file.name
    shutil.move(file, alone)
    found, _ = by_name(alone)
    assert list(found) == list(expected())


@STORAGES
def test_metadata_that_says_another_compression(tmp_path, storage):
    """A person unpacked the files or the messages, and kept the old metadata."""
    folder, _ = recorded(tmp_path, storage)
    for mode in ('MESSAGE', 'FILE'):
        text = (folder / 'metadata.yaml').read_text()
        text = re.sub(r'compression_format: .*', 'compression_format: zstd', text)
        text = re.sub(r'compression_mode: .*', f'compression_mode: {mode}', text)
        (folder / 'metadata.yaml').write_text(text)
        assert len(read(folder)) == COUNT


@STORAGES
@pytest.mark.parametrize('ending', ['.zstd', '.zst'])
def test_a_file_that_a_person_packed_or_unpacked(tmp_path, storage, ending):
    folder, file = recorded(tmp_path, storage)
    packed = file.with_name(file.name + ending)
    packed.write_bytes(zstd.compress(file.read_bytes()))
    file.unlink()
    assert len(read(folder)) == COUNT
    assert len(read(packed)) == COUNT
    folder, file = recorded(tmp_path, storage, CompressionMode.FILE, 'other')
    with zstd.open(file) as stream:
        file.with_suffix('').write_bytes(stream.read())
    file.unlink()
    assert len(read(folder)) == COUNT


@STORAGES
@pytest.mark.parametrize('alone', [False, True])
@pytest.mark.parametrize('part', [0.5, 0.9, 0.99])
def test_a_cut_recording_is_read_as_far_as_it_is_whole(tmp_path, storage, alone, part):
    folder, file = recorded(tmp_path, storage)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    path = file if alone else folder
    with pytest.raises(DumpError, match=r'--skip-bad') as caught:
        open_source(path)
    assert 'reindex' not in str(caught.value)
    try:
        found, source = by_name(path, skip_bad=True)
    except DumpError as error:
        assert 'no readable episode' in str(error)
        assert str(caught.value) in str(error)
        return
    whole = expected()
    assert 0 < len(found) <= COUNT
    for name, rollout in found.items():
        assert len(rollout) == len(whole[name])
        assert rollout.features.tobytes() == whole[name].features.tobytes()
        assert rollout.success == whole[name].success
    assert str(caught.value) in source.skipped
    done = convert(path, tmp_path / 'set', skip_bad=True)
    assert (done['rollouts'], done['skipped']) == (len(found), source.skipped)


def long_recording(tmp_path, storage, compression=None):
    """A recording of 3 episodes, each larger than a block of zstd and than pages of sqlite3."""
    made = [bag_rollout(number, length=300) for number in range(3)]
    folder = record(tmp_path / 'run', made, storage, compression)
    (file,) = (f for f in folder.iterdir() if f.name != 'metadata.yaml')
    return file, {rollout.episode_id: rollout for rollout in made}


@pytest.mark.parametrize('compression', [None, CompressionMode.FILE])
@STORAGES
def test_whole_episodes_before_the_cut_are_read(tmp_path, storage, compression):
    """No part of a step that the cut damaged is read, not even as zeros."""
    file, whole = long_recording(tmp_path, storage, compression)
    data = file.read_bytes()
    counts = []
    for part in (0.5, 0.8, 0.97):
        file.write_bytes(data[: int(len(data) * part)])
        found, source = by_name(file, skip_bad=True)
        assert str(file) in source.skipped[0]
        counts.append(len(found))
        for name, rollout in found.items():
            assert rollout.features.tobytes() == whole[name].features.tobytes()
            assert rollout.actions.tobytes() == whole[name].actions.tobytes()
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[2] >= 2


def test_frames_of_zstd_behind_each_other_are_one_file(tmp_path):
    _, file = recorded(tmp_path, StoragePlugin.SQLITE3)
    data = file.read_bytes()
    packed = tmp_path / 'run.db3.zstd'
    packed.write_bytes(zstd.compress(data[:5000]) + zstd.compress(data[5000:]))
    assert len(read(packed)) == COUNT
    packed.write_bytes(packed.read_bytes() + b'no frame')
    with pytest.raises(DumpError, match='complete zstd data'):
        read(packed)


def chunked(tmp_path):
    """A recording of several chunks, as a long recording has."""
    folder, file = recorded(tmp_path, StoragePlugin.MCAP)
    parts = []
    for number in range(3):
        part = record(
            tmp_path / f'part_{number}', rollouts()[2 * number : 2 * number + 2], definitions=True
        )
        parts.append(next(part.glob('*.mcap')))
    text = (folder / 'metadata.yaml').read_text()
    names = '\n'.join(f'  - run_{number}.mcap' for number in range(3))
    (folder / 'metadata.yaml').write_text(text.replace('  - run.mcap', names))
    file.unlink()
    for number, part in enumerate(parts):
        shutil.move(part, folder / f'run_{number}.mcap')
    return folder


def test_a_split_recording_with_a_cut_file(tmp_path):
    folder = chunked(tmp_path)
    assert len(read(folder)) == COUNT
    file = folder / 'run_1.mcap'
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DumpError, match=r'run_1\.mcap: .*mcap recover'):
        read(folder)
    found, source = by_name(folder, skip_bad=True)
    names = list(expected())
    assert list(found) == [*names[:2], *names[4:]]
    assert len(source.skipped) == 1
    assert 'run_1.mcap' in source.skipped[0]


def test_a_split_recording_without_one_file(tmp_path):
    folder = chunked(tmp_path)
    (folder / 'run_2.mcap').unlink()
    with pytest.raises(DumpError, match=r'run_2\.mcap: expected this file'):
        read(folder)
    found, source = by_name(folder, skip_bad=True)
    assert list(found) == list(expected())[:4]
    assert 'run_2.mcap' in source.skipped[0]


@pytest.mark.parametrize('content', [None, b'', bytes(500), b'rosbag2_bagfile_information: ['])
def test_a_folder_whose_metadata_were_never_written(tmp_path, content):
    folder = chunked(tmp_path)
    (folder / 'run_2.mcap').rename(folder / 'run_10.mcap')
    (folder / 'metadata.yaml').unlink()
    if content is not None:
        (folder / 'metadata.yaml').write_bytes(content)
    with pytest.raises(DumpError, match=r'metadata\.yaml: '):
        read(folder)
    found, source = by_name(folder, skip_bad=True)
    assert list(found) == list(expected())
    assert 'metadata.yaml' in source.skipped[0]


def test_an_episode_in_which_the_recording_is_cut_is_left_out(tmp_path):
    """All steps that are there are without a gap, but the end of the episode is lost."""
    folder = record(
        tmp_path / 'run',
        rollouts()[:2],
        events=lambda rollout: [],
        storage=StoragePlugin.SQLITE3,
    )
    file = next(folder.glob('*.db3'))
    with sqlite3.connect(file) as database:
        (last,) = database.execute('SELECT max(id) FROM messages').fetchone()
        database.execute('DELETE FROM messages WHERE id > ?', (last - 10,))
    with pytest.raises(DumpError, match='messages of type'):
        read(folder)
    found, source = by_name(folder, skip_bad=True)
    assert list(found) == list(expected())[:1]
    assert any('cut or incomplete during the episode' in text for text in source.skipped)


def test_a_compressed_file_that_is_cut(tmp_path):
    folder, file = recorded(tmp_path, StoragePlugin.SQLITE3, CompressionMode.FILE)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DumpError, match='complete zstd data'):
        read(folder)
    try:
        found, source = by_name(folder, skip_bad=True)
    except DumpError as error:
        assert 'no readable episode' in str(error)
        return
    assert set(found) < set(expected())
    assert source.skipped


def test_the_journal_of_a_killed_recorder(tmp_path):
    folder, file = recorded(tmp_path, StoragePlugin.SQLITE3)
    journal = file.with_name(f'{file.name}-journal')
    journal.write_bytes(bytes(512))
    assert len(read(folder)) == COUNT
    journal.write_bytes(bytes.fromhex('d9d505f920a163d7') + bytes(504))
    with pytest.raises(DumpError, match=r'a journal of 512 bytes.*SELECT count'):
        read(folder)


def test_steps_of_another_feature_are_listed(tmp_path):
    folder, _ = recorded(tmp_path, StoragePlugin.MCAP)
    other = bag_rollout(9, feature_name='other[token=last]')
    mixed = record(tmp_path / 'mixed', [*rollouts()[:1], other])
    source = open_source(mixed, feature='hidden_states')
    assert any("not read: 'other[token=last]'" in note for note in source.notes)
    assert open_source(folder).notes == [n for n in open_source(folder).notes if 'outcome' in n]
    (rollout,) = source.rollouts()
    assert rollout.episode_id == rollouts()[0].episode_id
