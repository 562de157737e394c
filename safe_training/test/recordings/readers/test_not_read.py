# SPDX-License-Identifier: Apache-2.0
"""What a reader does not take from a dump is listed by info and convert."""

import numpy as np
import pytest
import test_open_pi_zero
from openvla_dumps import write_episode
from test_openpi import Recorder

from safe_training.recordings.convert import convert
from safe_training.recordings.describe import info


def notes(path, tmp_path, **options):
    """Return the notes about what is not read; info and convert must agree."""
    converted = convert(path, tmp_path / 'set', overwrite=True, **options)['notes']
    if not options:
        assert info(path)['notes'] == converted
    return [note for note in converted if note.startswith('not read')]


def test_keys_and_columns_of_openvla(tmp_path):
    dump = tmp_path / 'd'
    stem = write_episode(dump, attention=np.zeros(3), seed=7)
    file = stem.with_suffix('.csv')
    lines = file.read_text().splitlines()
    lines = [f'{line},{n or "action/gripper_force"}' for n, line in enumerate(lines)]
    file.write_text('\n'.join(lines) + '\n')
    columns = f'not read from {file.name}: action/gripper_force'
    assert notes(dump, tmp_path) == [f'not read from {stem.name}.pkl: attention, seed', columns]
    assert notes(dump, tmp_path, feature='none') == [columns]


def test_a_plain_dump_has_no_such_note(tmp_path):
    write_episode(tmp_path / 'd')
    write_episode(tmp_path / 'd', episode=1, samples=True)
    assert notes(tmp_path / 'd', tmp_path) == []


@pytest.mark.parametrize(
    ('policy', 'options', 'expected'),
    [
        ('pi0', {}, ''),
        ('pi0', {'feature': 'none'}, 'pre_velocity'),
        ('pi0_fast', {'feature': 'encoded'}, 'pre_logits'),
        ('pi0_fast', {'feature': 'none'}, 'encoded, pre_logits'),
    ],
)
def test_features_of_openpi_that_were_not_chosen(tmp_path, policy, options, expected):
    dump = Recorder(tmp_path / 'd', policy)
    dump.episode()
    found = notes(tmp_path / 'd', tmp_path, **options)
    assert [note.rpartition(': ')[2] for note in found] == ([expected] if expected else [])


def test_keys_of_open_pi_zero(tmp_path):
    test_open_pi_zero.write_episode(tmp_path / 'd')
    assert notes(tmp_path / 'd', tmp_path) == []
