# SPDX-License-Identifier: Apache-2.0
"""Overlaid videos can be read back, turn red at the alarm, and bad videos are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rollout_factory import make_rollout

from safe_training.cli.main import main
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

cv2 = pytest.importorskip('cv2', reason='OpenCV (requirements/vision.txt) is not installed')
STEPS = 12


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a set of rollouts, a detector of them, and the video of the first."""
    folder = tmp_path_factory.mktemp('overlay')
    generator = np.random.default_rng(0)
    with RolloutSetWriter(folder / 'set', FeatureSpec('state', 4)) as writer:
        for index in range(80):
            failed = index % 4 == 0
            features = generator.normal(size=(STEPS, 4)).astype(np.float32)
            features[STEPS // 2 :, 0] += 12.0 * failed
            writer.add(
                make_rollout(
                    index,
                    features=features,
                    task=f'task{index % 3}',
                    success=not failed,
                    episode_id=f'e{index}',
                    feature_name=str(FeatureSpec('state', 4)),
                    video='first.mp4' if index == 0 else '',
                )
            )
    fit = ['fit', str(folder / 'set'), '--detector', 'mahalanobis', '--out']
    assert (
        main([*fit, str(folder / 'detector'), '--param', 'accumulate=none', '--alpha', '0.2']) == 0
    )
    (folder / 'videos').mkdir()
    return folder


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (96, 64))
    for _ in range(frames):
        writer.write(np.full((64, 96, 3), 90, dtype=np.uint8))
    writer.release()


def overlay(made: Path, out: Path) -> int:
    arguments = ['overlay', str(made / 'set'), str(made / 'detector')]
    arguments += ['--videos', str(made / 'videos'), '--out', str(out), '--episode', 'e0']
    return main([*arguments, '--json'])


def read(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (got := capture.read())[0]:
        frames.append(got[1])
    capture.release()
    return frames


def test_every_frame_comes_back_and_the_border_turns_red_at_the_alarm(made, tmp_path):
    write_video(made / 'videos' / 'first.mp4', STEPS)
    assert overlay(made, tmp_path / 'out') == 0
    (written,) = (tmp_path / 'out').glob('*.mp4')
    frames = read(written)
    assert len(frames) == STEPS
    assert frames[0].shape[0] > 64 and frames[0].shape[1] >= 96
    corner = [frame[2, 2].astype(int) for frame in frames]
    red = [int(c[2]) - int(c[0]) > 60 for c in corner]
    assert not any(red[: STEPS // 2 - 1]), 'red before anything happened'
    assert red[-1], 'the alarm is not shown'
    assert red == sorted(red), 'an alarm once shown stays'
    assert np.abs(frames[-1].astype(int) - frames[0].astype(int)).mean() > 1, 'the curve grows'


@pytest.mark.parametrize('content', [b'', b'no video at all'])
def test_an_unreadable_video_is_named_and_leaves_nothing(made, tmp_path, capsys, content):
    (made / 'videos' / 'first.mp4').write_bytes(content)
    assert overlay(made, tmp_path / 'out') == 1
    assert 'first.mp4' in capsys.readouterr().err
    assert not list((tmp_path / 'out').glob('*'))
