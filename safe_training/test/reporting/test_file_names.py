# SPDX-License-Identifier: Apache-2.0
"""Outputs never overwrite each other, and a video belongs to one rollout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rollout_factory import make_rollout

from safe_training.cli.main import main
from safe_training.reporting.file_names import file_names, is_marked
from safe_training.reporting.video.frames import find_videos
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

LONG = 'pick up the small red cup that stands to the left of the blue plate ' * 3


@pytest.mark.parametrize(
    'ids',
    [
        [f'{LONG}/{n}' for n in range(24)],
        ['open drawer/0', 'open_drawer/0', 'open/drawer/0', 'open drawer_0'],
        ['Stack/1', 'stack/1', 'STACK/1'],
        ['caf\u00e9', 'cafe\u0301'],
        ['', '.', '..', '/', '???'],
        ['a/b', 'a_b', f'a_b-{"0" * 8}'],
        ['\u5c06' * 200 + str(n) for n in range(5)],
        ['con', 'nul.x', 'COM1', '_con'],
        ['a\nb', 'a\tb', 'a\x00b', 'a b'],
    ],
)
def test_names_are_different_on_every_file_system(ids, tmp_path):
    names = file_names(ids)
    assert list(names) == ids
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        assert len(name.encode()) <= 160
        (tmp_path / f'{name}.mp4').write_text('')
    assert len(list(tmp_path.iterdir())) == len(ids)


def test_an_id_with_the_marked_name_of_another_id_gets_its_own_name():
    marked = file_names(['a/b', 'a_b'])['a/b']
    names = file_names(['a/b', 'a_b', marked])
    assert len(set(names.values())) == 3


def test_plain_names_stay_and_marks_are_known():
    names = file_names(['pick/0', 'pick/1', LONG])
    assert (names['pick/0'], names['pick/1']) == ('pick_0', 'pick_1')
    assert [is_marked(name, text) for text, name in names.items()] == [False, False, True]


# -- videos


def rollout(index: int, name: str, video: str = ''):
    return make_rollout(index, episode_id=name, video=video)


def videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder.resolve()


def test_each_rollout_finds_the_video_of_its_path(tmp_path):
    root = videos(tmp_path, 'a/1.mp4', 'b/1.mp4')
    found, unclear = find_videos([rollout(0, 'x', 'a/1.mp4'), rollout(1, 'y', 'b/1.mp4')], root)
    assert (found, unclear) == ({'x': root / 'a/1.mp4', 'y': root / 'b/1.mp4'}, {})


def test_one_file_name_in_two_folders_is_not_taken_for_both(tmp_path):
    root = videos(tmp_path, '1.mp4')
    found, unclear = find_videos([rollout(0, 'x', 'a/1.mp4'), rollout(1, 'y', 'b/1.mp4')], root)
    assert found == {} and set(unclear) == {'x', 'y'}
    assert "a video that matches 'x' and 'y'" in str(unclear['x'])


def test_the_rollout_with_the_path_itself_has_the_video(tmp_path):
    root = videos(tmp_path, '1.mp4')
    found, unclear = find_videos([rollout(0, 'x', 'a/1.mp4'), rollout(1, 'y', '1.mp4')], root)
    assert (found, unclear) == ({'y': root / '1.mp4'}, {})


def test_ids_that_are_alike_do_not_share_a_video(tmp_path):
    root = videos(tmp_path, 'open_drawer.mp4')
    found, unclear = find_videos([rollout(0, 'open/drawer'), rollout(1, 'open_drawer')], root)
    assert (found, unclear) == ({'open_drawer': root / 'open_drawer.mp4'}, {})


def test_a_link_to_a_video_is_the_same_video(tmp_path):
    root = videos(tmp_path, '1.mp4')
    (root / '2.mp4').symlink_to('1.mp4')
    _, unclear = find_videos([rollout(0, 'x', '1.mp4'), rollout(1, 'y', '2.mp4')], root)
    assert set(unclear) == {'x', 'y'}


# -- the verb


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a set whose ids are alike, a detector of it, and all its videos."""
    cv2 = pytest.importorskip('cv2', reason='OpenCV (requirements/vision.txt) is not installed')
    folder = tmp_path_factory.mktemp('alike')
    (folder / 'videos').mkdir()
    generator = np.random.default_rng(0)
    with RolloutSetWriter(folder / 'set', FeatureSpec('state', 4)) as writer:
        for number in range(36):
            task = (LONG, 'open drawer', 'open_drawer')[number % 3]
            writer.add(
                make_rollout(
                    number,
                    features=generator.normal(size=(6, 4)).astype(np.float32),
                    task=task,
                    success=number % 4 != 0,
                    episode_id='5' if number == 0 else f'{task}/{number // 3}',
                    feature_name=str(FeatureSpec('state', 4)),
                    video=f'{number}.mp4',
                )
            )
            file = str(folder / 'videos' / f'{number}.mp4')
            video = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
            for _ in range(6):
                video.write(np.full((48, 64, 3), 90, dtype=np.uint8))
            video.release()
    fit = ['fit', str(folder / 'set'), '--detector', 'mahalanobis', '--alpha', '0.5', '--out']
    assert main([*fit, str(folder / 'detector')]) == 0
    return folder


def overlay(made: Path, out: Path, *more: str) -> int:
    arguments = ['overlay', str(made / 'set'), str(made / 'detector')]
    return main([*arguments, '--videos', str(made / 'videos'), '--out', str(out), *more])


def test_each_rollout_has_a_file(made, tmp_path, capsys):
    assert overlay(made, tmp_path / 'all', '--json') == 0
    files = {entry['file'] for entry in json.loads(capsys.readouterr().out)['files']}
    assert len(files) == len(list((tmp_path / 'all').iterdir())) == 36
    assert overlay(made, tmp_path / 'one', '--episode', 'open_drawer/3') == 0
    assert '1 file names end in a mark' in capsys.readouterr().out
    (one,) = (tmp_path / 'one').iterdir()
    assert str(tmp_path / 'all' / one.name) in files


def test_an_overlay_does_not_replace_the_video_of_another_rollout(made, capsys):
    before = {file: file.read_bytes() for file in (made / 'videos').iterdir()}
    assert overlay(made, made / 'videos', '--episode', '5') == 1
    assert '5.mp4: expected an output file that differs' in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before
