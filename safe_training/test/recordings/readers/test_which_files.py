# SPDX-License-Identifier: Apache-2.0
"""Which files are episodes: companions, links, copies and files of other formats."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from openvla_dumps import write_episode
from rollout_factory import make_rollout

from safe_training.cli import main as cli
from safe_training.recordings.describe import info
from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.copies import find_copies
from safe_training.recordings.readers.listing import walk
from safe_training.recordings.sources import load_rollouts, open_source
from safe_training.recordings.write_bag import write_bag
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.reader import RolloutSet

APPLE_DOUBLE = b'\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ' + bytes(40)


def write_dump(folder: Path, task: int = 0) -> Path:
    for episode in range(3):
        write_episode(folder, task=task, episode=episode, success=episode != 1)
    return folder


def ids(path: Path) -> list[str]:
    return [rollout.episode_id for rollout in load_rollouts(path)]


PLAIN = ['task0--ep0', 'task0--ep1', 'task0--ep2']


# -- companion and hidden files


def test_files_that_a_mac_writes_are_no_episodes(tmp_path):
    dump = write_dump(tmp_path / 'd')
    for file in list(dump.iterdir()):
        (dump / f'._{file.name}').write_bytes(APPLE_DOUBLE)
    (dump / '.DS_Store').write_bytes(b'\0\0\0\1Bud1')
    assert ids(dump) == PLAIN
    assert open_source(dump).notes == []


@pytest.mark.parametrize(
    'folder',
    ['__MACOSX', '$RECYCLE.BIN', '@eaDir', '#recycle', '.Trash-1000', '.ipynb_checkpoints'],
)
def test_folders_of_the_system_hold_no_episodes(tmp_path, folder):
    dump = write_dump(tmp_path / 'd')
    shutil.copytree(dump, dump / folder)
    assert ids(dump) == PLAIN


def test_the_unfinished_file_of_a_copy_program_is_no_episode(tmp_path):
    dump = write_dump(tmp_path / 'd')
    (dump / '.task0--ep1--succ0.pkl.Xa81Qz').write_bytes(b'half')
    assert ids(dump) == PLAIN


def test_a_hidden_recording_does_not_turn_a_dump_into_a_recording(tmp_path):
    dump = write_dump(tmp_path / 'd')
    (dump / '._monday_0.mcap').write_bytes(APPLE_DOUBLE)
    assert open_source(dump).kind == 'openvla'


def test_hidden_files_of_simpler_env_are_no_records(tmp_path):
    folder = tmp_path / 'd' / 'widowx_stack_cube'
    folder.mkdir(parents=True)
    (folder / '._ep_1_succ_1_meta.json').write_bytes(APPLE_DOUBLE)
    with pytest.raises(DumpError, match='one of these formats'):
        open_source(tmp_path / 'd')


def test_the_companion_of_a_file_is_named(tmp_path):
    file = tmp_path / '._rollouts.npz'
    file.write_bytes(APPLE_DOUBLE)
    with pytest.raises(DumpError, match=r'a file of macOS with data about rollouts\.npz'):
        open_source(file)


# -- links


def test_a_linked_folder_is_read(tmp_path):
    dump = write_dump(tmp_path / 'd' / 'a').parent
    (dump / 'b').symlink_to(write_dump(tmp_path / 'elsewhere', task=2))
    assert len(ids(dump)) == 6
    assert open_source(dump).notes == ['the episodes are in 2 folders, as in a WidowX dump']


def test_a_link_to_a_folder_of_the_same_dump_is_said_and_not_read_again(tmp_path):
    dump = write_dump(tmp_path / 'd' / 'b').parent
    (dump / 'a').symlink_to('b')
    assert ids(dump) == [f'b/{name}' for name in PLAIN]
    assert f'{dump / "a"}: this link is not followed' in open_source(dump).notes[0]


@pytest.mark.parametrize('target', ['.', '..', '../..'])
def test_a_link_that_leads_back_ends(tmp_path, target):
    dump = write_dump(tmp_path / 'd' / 'a').parent
    (dump / 'a' / 'loop').symlink_to(target)
    assert len(ids(dump)) == 3
    assert any('loop: this link is not followed' in note for note in open_source(dump).notes)


def test_two_links_to_one_folder_are_read_once(tmp_path):
    dump = tmp_path / 'd'
    dump.mkdir()
    elsewhere = write_dump(tmp_path / 'elsewhere')
    for name in ('one', 'two'):
        (dump / name).symlink_to(elsewhere)
    assert ids(dump) == [f'one/{name}' for name in PLAIN]
    assert 'two: this link is not followed' in open_source(dump).notes[0]


def test_a_link_to_a_missing_folder_is_said(tmp_path):
    dump = write_dump(tmp_path / 'd')
    (dump / 'tuesday').symlink_to(tmp_path / 'unplugged')
    assert 'tuesday: not read, because it is a link to a missing' in open_source(dump).notes[0]


def test_a_pipe_does_not_stop_the_reader(tmp_path):
    dump = write_dump(tmp_path / 'd')
    os.mkfifo(dump / 'task0--ep9--succ1.pkl')
    assert ids(dump) == PLAIN
    assert 'task0--ep9--succ1.pkl: not read' in open_source(dump).notes[0]


def test_the_order_of_folders_and_the_depth(tmp_path):
    for name in ('b/x', 'a/y/z', 'left'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'file').touch()
    found = [folder.relative_to(tmp_path).as_posix() for folder, _ in walk(tmp_path, ('left',))]
    assert found == ['.', 'a', 'a/y', 'a/y/z', 'b', 'b/x']
    assert len(list(walk(tmp_path, ('left',), depth=1))) == 3


# -- copies


def test_a_dump_that_is_there_twice_is_refused(tmp_path):
    dump = write_dump(tmp_path / 'd' / 'rollouts').parent
    shutil.copytree(dump / 'rollouts', dump / 'rollouts (1)')
    with pytest.raises(DumpError, match=r'the same content twice, also in .*rollouts/task0--ep0'):
        load_rollouts(dump)
    assert not [r for r in load_rollouts(dump, skip_bad=True) if '(1)' in r.episode_id]
    found = info(dump)
    assert (found['episodes'], len(found['bad'])) == (3, 3)


@pytest.mark.parametrize('jobs', ['1', '2'])
def test_convert_keeps_one_of_two_copies(tmp_path, jobs):
    dump = write_dump(tmp_path / 'd' / 'a').parent
    shutil.copytree(dump / 'a', dump / 'b')
    place = str(tmp_path / 'set')
    assert cli.main(['convert', str(dump), place, '--jobs', jobs]) == 1
    assert not Path(place).exists()
    assert cli.main(['convert', str(dump), place, '--jobs', jobs, '--skip-bad']) == 0
    assert RolloutSet.open(place).episode_ids == [f'a/{name}' for name in PLAIN]


def test_a_copy_whose_csv_was_saved_again_is_a_copy(tmp_path):
    dump = write_dump(tmp_path / 'd' / 'a').parent
    shutil.copytree(dump / 'a', dump / 'b')
    for file in (dump / 'b').glob('*.csv'):
        file.write_bytes(file.read_bytes().replace(b'\n', b'\r\n'))
    with pytest.raises(DumpError, match='the same content twice'):
        load_rollouts(dump)


def test_a_copy_by_a_link_to_a_file_is_a_copy(tmp_path):
    dump = write_dump(tmp_path / 'd' / 'a').parent
    (dump / 'b').mkdir()
    for file in (dump / 'a').glob('task0--ep2--*'):
        (dump / 'b' / file.name).symlink_to(file)
    with pytest.raises(DumpError, match='the same content twice'):
        load_rollouts(dump)


def test_a_copy_among_the_unseen_tasks_is_refused(tmp_path):
    seen = write_dump(tmp_path / 'seen')
    unseen = write_dump(tmp_path / 'unseen', task=1)
    for file in seen.glob('task0--ep2--*'):
        shutil.copy(file, unseen)
    with pytest.raises(DumpError, match='the same content twice'):
        load_rollouts(seen, unseen_root=unseen)


def test_files_that_differ_in_one_byte_are_no_copies(tmp_path):
    content = bytes(1 << 20)
    episodes = {}
    for number, at in enumerate((None, None, 5, 300_000, (1 << 20) - 1)):
        changed = bytearray(content)
        if at is not None:
            changed[at] = 1
        episodes[number] = [tmp_path / f'{number}.pkl']
        episodes[number][0].write_bytes(changed)
    episodes[5] = [tmp_path / 'missing.pkl']
    assert find_copies(episodes) == {1: 0}


# -- foreign files


def test_files_without_the_name_of_an_episode_are_said(tmp_path):
    dump = write_dump(tmp_path / 'd')
    shutil.copy(dump / 'task0--ep0--succ1.csv', dump / 'task0--ep0--succ1 (1).csv')
    (dump / 'more').mkdir()
    shutil.copy(dump / 'task0--ep0--succ1.pkl', dump / 'more' / 'Task0_ep0.PKL')
    (note,) = open_source(dump).notes
    assert 'are not read: ' in note
    assert 'task0--ep0--succ1 (1).csv' in note and 'more/Task0_ep0.PKL' in note


def test_a_second_format_in_a_folder_is_said(tmp_path):
    dump = write_dump(tmp_path / 'd')
    task = dump / 'widowx_stack_cube'
    task.mkdir()
    (task / 'ep_1_succ_1_meta.json').write_text('{"task": "x", "episode_id": 1, "success": true}')
    (task / 'ep_1_succ_1.pkl').write_bytes(b'')
    source = open_source(dump)
    assert source.kind == 'open_pi_zero'
    assert any('(openvla); only the format open_pi_zero is read' in note for note in source.notes)


# -- copies in one file


def archive(path: Path, numbers: list[int]) -> Path:
    arrays = [np.random.default_rng(n).normal(size=(3, 4)).astype(np.float32) for n in numbers]
    np.savez(
        path,
        offsets=np.arange(0, 3 * len(numbers) + 1, 3),
        success=np.array([n % 2 == 0 for n in numbers]),
        task=np.array(['stack'] * len(numbers)),
        episode_index=np.arange(len(numbers)),
        features=np.concatenate(arrays),
    )
    return path


def test_an_archive_with_an_episode_twice_is_refused(tmp_path):
    file = archive(tmp_path / 'a.npz', [0, 1, 2, 0])
    with pytest.raises(DumpError, match=r'found the features and actions of episode .* again'):
        load_rollouts(file)
    assert len(load_rollouts(file, skip_bad=True)) == 3
    assert len(info(file)['bad']) == 1
    for name in ('set', 'x.bag'):
        assert cli.main(['convert', str(file), str(tmp_path / name)]) == 1
        assert not (tmp_path / name).exists()
        assert cli.main(['convert', str(file), str(tmp_path / name), '--skip-bad']) == 0
        assert len(load_rollouts(tmp_path / name)) == 3


def test_a_recording_with_an_episode_under_two_names_is_refused(tmp_path):
    spec = FeatureSpec('f', 4)
    rollouts = [
        make_rollout(n % 2, episode_id=f'e{n}', feature_name='f', success=True) for n in range(3)
    ]
    write_bag(tmp_path / 'x.mcap', rollouts, spec)
    with pytest.raises(DumpError, match=r"'e2': .* the features and actions of episode 'e0' again"):
        load_rollouts(tmp_path / 'x.mcap')
    assert len(load_rollouts(tmp_path / 'x.mcap', skip_bad=True)) == 2


def test_episodes_with_constant_features_are_no_copies(tmp_path):
    rollouts = [
        make_rollout(n, features=np.zeros((3, 4), np.float32), episode_id=f'e{n}', feature_name='f')
        for n in range(3)
    ]
    write_bag(tmp_path / 'x.mcap', rollouts, FeatureSpec('f', 4))
    assert len(load_rollouts(tmp_path / 'x.mcap')) == 3
