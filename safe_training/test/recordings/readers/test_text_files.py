# SPDX-License-Identifier: Apache-2.0
"""What editors, spreadsheets and other systems do to text is read, or it is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from openvla_dumps import write_episode

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import Label, read_labels, write_labels
from safe_training.recordings.readers.open_pi_zero import _read_meta
from safe_training.recordings.sources import load_rollouts
from safe_training.recordings.untrusted.csv_file import number_column, read_rows
from safe_training.recordings.untrusted.text_file import read_text

TABLE = 'episode_id,outcome,failure_step\npick/0,success,\npick/1,failure,2\n'
LABELS = {'pick/0': Label(True), 'pick/1': Label(False, 2)}


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / 'file.csv'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


READ = {
    'bom': '\ufeff' + TABLE,
    'windows-line-ends': TABLE.replace('\n', '\r\n'),
    'old-mac-line-ends': TABLE.replace('\n', '\r'),
    'line-ends-twice': TABLE.replace('\n', '\r\r\n'),
    'empty-lines': TABLE.replace('\n', '\n\n'),
    'blank-columns': TABLE.replace('\n', ',,,\n'),
    'blank-columns-of-the-header-only': TABLE.replace('step\n', 'step,,\n'),
    'blank-rows': TABLE + ',,\n , ,\n',
    'blanks-around-names': TABLE.replace('episode_id,outcome', ' episode_id , outcome'),
    'all-quoted': '\n'.join(
        ','.join(f'"{cell}"' for cell in line.split(',')) for line in TABLE.splitlines()
    ),
    'no-line-end': TABLE.rstrip('\n'),
    'end-of-text-of-dos': TABLE + '\x1a',
}


@pytest.mark.parametrize('name', READ)
def test_a_csv_as_programs_write_it_is_read(tmp_path, name):
    assert read_labels(written(tmp_path, READ[name])) == LABELS


def test_labels_that_a_spreadsheet_saved_stay_when_one_is_added(tmp_path):
    file = written(tmp_path, '\ufeff' + TABLE.replace('\n', ',,\r\n'))
    write_labels(file, {'pick/2': Label(None)})
    assert read_labels(file) == LABELS | {'pick/2': Label(None)}


NAMED = {
    'semicolons': (TABLE.replace(',', ';'), 'found semicolons in the line'),
    'tabs': (TABLE.replace(',', '\t'), 'found tabs in the line'),
    'sep-line': ('sep=,\n' + TABLE, "found the line 'sep=,'; remove this line"),
    'sep-semicolon': ('sep=;\n' + TABLE, "found the line 'sep=;'; remove this line"),
    'utf-16': (TABLE.encode('utf-16'), 'in UTF-8, found text in UTF-16'),
    'utf-16-without-bom': (TABLE.encode('utf-16-le'), 'found bytes that are zero'),
    'utf-32': (TABLE.encode('utf-32'), 'in UTF-8, found text in UTF-32'),
    'windows-1252': (TABLE.encode() + b'caf\xe9,success,\n', 'byte 0xe9 in line 4, as in Windows'),
    'open-quote': (TABLE + '"pick/2,success,\n', 'line 4: .*text that is not csv'),
    'capital': (TABLE.replace('success', 'Success'), "line 2: .*found 'Success'"),
    'decimal-step': (TABLE.replace('failure,2', 'failure,2.0'), "line 3: .*found '2.0'"),
    'blank-row-between': (TABLE.replace('\npick/1', '\n,,\npick/1'), 'line 3: .*no episode_id'),
    'line-after-empty-lines': (TABLE.replace('\n', '\n\n') + 'x,bad,\n', "line 7: .*found 'bad'"),
    'empty': ('', 'found an empty file'),
    'blank': (',,\n,,\n', 'found an empty file'),
}


@pytest.mark.parametrize('name', NAMED)
def test_another_text_is_named(tmp_path, name):
    content, message = NAMED[name]
    with pytest.raises(DumpError, match=message):
        read_labels(written(tmp_path, content))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with pytest.raises(DumpError, match='at most 10 bytes, found 12 bytes'):
        read_text(written(tmp_path, '123456789012'), 10, 'a csv file')


# -- numbers


def column(folder: Path, cell: str) -> np.ndarray:
    file = written(folder, f'a,b\n{cell},1\n')
    return number_column(file, *read_rows(file), 'a')


@pytest.mark.parametrize('cell', ['0.5', ' 0.5 ', '+.5', '5e-1', '5E-01', '"0.5"'])
def test_numbers_of_programs_are_read(tmp_path, cell):
    assert column(tmp_path, cell) == [0.5]


@pytest.mark.parametrize(
    ('cell', 'message'),
    [
        ('"0,5"', 'a number with a decimal comma; save the file with points'),
        ('0,5', 'found 3 values; if the numbers have decimal commas'),
        ('', 'found an empty cell'),
        ('1_0', "found '1_0'"),
        ('٣', 'found '),
        ('#DIV/0!', "found '#DIV/0!'"),
        ('0x10', "found '0x10'"),
        ('TRUE', "found 'TRUE'"),
        ('1 000', "found '1 000'"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, cell, message):
    with pytest.raises(DumpError, match=message) as caught:
        column(tmp_path, cell)
    assert 'file.csv, line 2' in str(caught.value)


# -- the csv of an OpenVLA episode


def rewrite(stem: Path, change) -> None:
    file = stem.with_suffix('.csv')
    rows = [line.split(',') for line in file.read_text().splitlines()]
    columns = change([list(cells) for cells in zip(*rows, strict=True)])
    file.write_text('\n'.join(','.join(row) for row in zip(*columns, strict=True)) + '\n')


def without(*names: str):
    return lambda columns: [cells for cells in columns if cells[0] not in names]


def renamed(change):
    return lambda columns: [[change(cells[0]), *cells[1:]] for cells in columns]


def test_a_bom_before_a_token_column_loses_no_token(tmp_path):
    stem = write_episode(tmp_path)
    rewrite(stem, lambda columns: sorted(columns, key=lambda c: c[0] != 'action/token_0_prob'))
    expected = load_rollouts(tmp_path)[0].token_probability
    file = stem.with_suffix('.csv')
    file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
    found = load_rollouts(tmp_path)[0]
    assert found.token_probability.shape == found.token_entropy.shape == (4, 7)
    np.testing.assert_array_equal(found.token_probability, expected)


def test_blanks_after_the_commas_lose_no_token(tmp_path):
    stem = write_episode(tmp_path)
    file = stem.with_suffix('.csv')
    file.write_text(file.read_text().replace(',', ', '))
    assert load_rollouts(tmp_path)[0].token_probability.shape == (4, 7)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            without('action/token_3_prob', 'action/token_3_entropy'),
            'token_0_prob to action/token_6_prob, found no column action/token_3_prob',
        ),
        (without('action/token_2_prob'), 'found no column action/token_2_prob'),
        (without('action/token_6_entropy'), 'found no column action/token_6_entropy'),
        (
            without('action/token_0_prob', 'action/token_0_entropy'),
            'found no column action/token_0_prob',
        ),
        (
            renamed(lambda name: name.replace('token_4', 'Token_4')),
            "name action/token_4_prob, found 'action/Token_4_prob'",
        ),
        (
            renamed(lambda name: name.replace('_prob', '_probability')),
            "found 'action/token_0_probability'",
        ),
        (renamed(lambda name: name.replace('token_1_', 'token 1 ')), "found 'action/token 1 prob'"),
        (renamed(lambda name: name.replace('token_5', 'token_05')), "found 'action/token_05_prob'"),
    ],
)
def test_token_columns_with_a_gap_are_refused(tmp_path, change, message):
    rewrite(write_episode(tmp_path), change)
    with pytest.raises(DumpError, match=message):
        load_rollouts(tmp_path)


@pytest.mark.parametrize('kept', ['prob', 'entropy'])
def test_one_quantity_without_the_other_is_read(tmp_path, kept):
    stem = write_episode(tmp_path)
    other = {'prob': 'entropy', 'entropy': 'prob'}[kept]
    rewrite(stem, without(*(f'action/token_{n}_{other}' for n in range(7))))
    rollout = load_rollouts(tmp_path)[0]
    values = {'prob': rollout.token_probability, 'entropy': rollout.token_entropy}
    assert values[kept].shape == (4, 7)
    assert values[other] is None


# -- json


def test_a_json_with_a_bom_is_read(tmp_path):
    file = tmp_path / 'ep_3_succ_1_meta.json'
    meta = {'task': 'stack', 'episode_id': 3, 'success': True}
    file.write_bytes(b'\xef\xbb\xbf' + json.dumps(meta).replace(' ', '\r\n').encode())
    assert _read_meta(file) == meta


def test_a_json_in_utf_16_is_named(tmp_path):
    file = tmp_path / 'ep_3_succ_1_meta.json'
    file.write_bytes(json.dumps({'task': 'stack'}).encode('utf-16'))
    with pytest.raises(DumpError, match='in UTF-8, found text in UTF-16'):
        _read_meta(file)
