# SPDX-License-Identifier: Apache-2.0
"""The verb ``figures`` writes each figure as a picture and as a vector file."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared_files import DATA

from safe_training.cli.main import main

SET = DATA / 'miniature_disturbed.npz'


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('figures') / 'detector'
    fit = ['fit', str(SET), '--detector', 'safe_lstm', '--out', str(folder)]
    assert main([*fit, '--param', 'epochs=5', '--param', 'hidden=16']) == 0
    return folder


@pytest.mark.slow
def test_each_figure_is_written_as_a_picture_and_as_vectors(detector, tmp_path):
    out = tmp_path / 'out'
    call = ['figures', str(SET), str(detector), '--out', str(out)]
    assert main([*call, '--projector', 'pca']) == 0
    names = {path.stem for path in out.iterdir()}
    assert {'conformal', 'features_pca'} <= names
    assert any(name.startswith('reliability') for name in names)
    for name in names:
        assert (out / f'{name}.png').read_bytes().startswith(b'\x89PNG')
        assert any((out / f'{name}.{kind}').exists() for kind in ('pdf', 'svg')), name
    assert not [path for path in out.iterdir() if path.name.startswith('.')]


def test_a_missing_detector_folder_is_named(tmp_path, capsys):
    missing = tmp_path / 'nothing'
    assert main(['figures', str(SET), str(missing), '--out', str(tmp_path / 'o')]) == 1
    assert str(missing) in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()
