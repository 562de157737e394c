# SPDX-License-Identifier: Apache-2.0
"""Rollout sets on disk: what is written is read, and damaged sets are refused."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy
from hypothesis import given, settings
from rollout_factory import make_full_rollout, make_rollout

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.layout import RolloutSetError
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

SPEC = FeatureSpec('hidden_states', 4, ('token',), (('token', 'last'),))


def write(path, rollouts, feature=SPEC, **options):
    with RolloutSetWriter(path, feature=feature, **options) as writer:
        for rollout in rollouts:
            writer.add(rollout)
    return path


def assert_equal(found, expected):
    for name in Rollout.__dataclass_fields__:
        one, other = getattr(found, name), getattr(expected, name)
        if name == 'signals':
            assert set(one) == set(other)
            for key in other:
                np.testing.assert_array_equal(one[key], other[key])
        elif name == 'feature_name':
            assert one == str(SPEC)
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
            assert one.shape == other.shape
        else:
            assert type(one) is type(other)
            assert one == other


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / 'set', [make_rollout(i, steps=i + 1, success=i > 0) for i in range(4)])


# -- what is written is read


def test_every_field_survives(tmp_path):
    sparse = make_rollout(2, policy='x', action_space='robot')
    rollouts = [make_full_rollout(0), make_full_rollout(1, steps=1), sparse]
    found = RolloutSet.open(write(tmp_path / 'set', rollouts, policy='other', source='a dump'))
    assert (found.feature, found.policy, found.source) == (SPEC, 'other', 'a dump')
    assert found.path == tmp_path / 'set'
    assert found.action_space == 'robot'
    for one, other in zip(found, rollouts, strict=True):
        assert_equal(one, other)


def test_a_set_of_an_older_version_does_not_state_the_action_space(small):
    file = small / 'rollouts.parquet'
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.drop_columns(['action_space']), file)
    found = RolloutSet.open(small)
    assert found.action_space == ''
    assert [rollout.action_space for rollout in found] == [''] * 4


@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_features_keep_their_dtype(tmp_path, dtype):
    rollout = make_rollout(dtype=dtype, steps=7)
    found = RolloutSet.open(write(tmp_path / 'set', [rollout]))[0]
    assert found.features.dtype == dtype
    assert found.features.tobytes() == rollout.features.tobytes()


def test_raw_features_and_no_features(tmp_path):
    raw = FeatureSpec('pre_velocity', 4, ('denoise', 'horizon'))
    features = np.random.default_rng(0).normal(size=(3, 10, 5, 4)).astype(np.float32)
    found = RolloutSet.open(write(tmp_path / 'raw', [Rollout(features, task='x')], feature=raw))
    np.testing.assert_array_equal(found[0].features, features)
    assert found.feature == raw
    none = FeatureSpec('none', 0)
    empty = Rollout(np.zeros((3, 0), np.float32), task='x', signals={'s': np.ones(3, np.float32)})
    found = RolloutSet.open(write(tmp_path / 'none', [empty], feature=none))
    assert found[0].features.shape == (3, 0)
    np.testing.assert_array_equal(found[0].signals['s'], [1, 1, 1])


def test_arrays_that_are_not_contiguous(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(3, 8)
    found = RolloutSet.open(write(tmp_path / 'set', [Rollout(whole[:, ::2], task='x')]))
    np.testing.assert_array_equal(found[0].features, whole[:, ::2])


def test_columns_and_selection(small):
    rollouts = RolloutSet.open(small)
    assert len(rollouts) == 4
    assert rollouts.tasks == ['task 0', 'task 1', 'task 0', 'task 1']
    assert rollouts.success == [False, True, True, True]
    assert rollouts.task_ids == [0, 0, 0, 0]
    assert rollouts.lengths.tolist() == [1, 2, 3, 4]
    assert rollouts.episode_ids[1] == 'task 1/1'
    chosen = rollouts.select([3, 0])
    assert chosen.lengths.tolist() == [4, 1]
    assert [len(rollout) for rollout in chosen] == [4, 1]
    assert (chosen.feature, chosen.path) == (rollouts.feature, rollouts.path)
    assert rollouts[1:3].lengths.tolist() == [2, 3]
    assert len(rollouts[-1]) == 4
    assert len(rollouts.select([])) == 0
    for bad in (4, -5):
        with pytest.raises(IndexError):
            rollouts[bad]
        with pytest.raises(IndexError):
            rollouts.select([bad])


@pytest.mark.parametrize('steps', [3, 10_000])
def test_arrays_are_read_only(tmp_path, steps):
    features = RolloutSet.open(write(tmp_path / 'set', [make_rollout(steps=steps)]))[0].features
    with pytest.raises(ValueError, match='read-only'):
        features[0, 0] = 1


def test_opening_reads_no_array(small):
    for file in (small / 'arrays').iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    rollouts = RolloutSet.open(small)
    assert rollouts.select([1, 2]).lengths.tolist() == [2, 3]
    with pytest.raises(RolloutSetError, match=r'000000\.safetensors'):
        rollouts[0]


def test_the_files_are_safetensors_and_parquet_of_plain_types(tmp_path):
    rollout = make_full_rollout()
    path = write(tmp_path / 'set', [rollout])
    arrays = safetensors.numpy.load_file(path / 'arrays' / '000000.safetensors')
    np.testing.assert_array_equal(arrays['features'], rollout.features)
    np.testing.assert_array_equal(arrays['signals.chunk_mse'], rollout.signals['chunk_mse'])
    schema = pyarrow.parquet.read_schema(path / 'rollouts.parquet')
    assert {str(kind) for kind in schema.types} == {'string', 'int64', 'bool'}
    assert sorted(os.listdir(path)) == ['arrays', 'rollout_set.json', 'rollouts.parquet']


def test_pyarrow_is_imported_only_to_read_or_write(small):
    code = (
        'import sys\n'
        'from vla_feature_bridge.rollout_set.reader import RolloutSet\n'
        "assert 'pyarrow' not in sys.modules\n"
        f'assert len(RolloutSet.open({str(small)!r})) == 4\n'
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    subprocess.run([sys.executable, '-c', code], check=True, env=environment)


# -- writing


def listing(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob('*'))


def test_nothing_is_there_until_it_is_complete(tmp_path):
    with RolloutSetWriter(tmp_path / 'set', feature=SPEC) as writer:
        writer.add(make_rollout())
        assert not (tmp_path / 'set').exists()
    assert listing(tmp_path)[0] == 'set'
    assert [entry.name for entry in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_set_leaves_nothing(tmp_path, error):
    def fail():
        with RolloutSetWriter(tmp_path / 'new' / 'sets' / 'a', feature=SPEC) as writer:
            writer.add(make_rollout())
            raise error

    with pytest.raises(error):
        fail()
    assert listing(tmp_path) == []


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
@pytest.mark.parametrize('call', ['fsync', 'rename'])
def test_finished_work_survives_an_error_at_the_very_end(tmp_path, monkeypatch, error, call):
    place = tmp_path / 'new' / 'set'
    rollouts = [make_rollout(i) for i in range(3)]

    def failing(*arguments):
        raise error

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(type(error)):
        write(place, rollouts, work='w')
    assert [entry.name for entry in place.parent.iterdir()] == ['.set.partial']
    monkeypatch.undo()
    with RolloutSetWriter(place, feature=SPEC, work='w') as writer:
        assert writer.continued == 3
    assert [entry.name for entry in place.parent.iterdir()] == ['set']
    assert listing(place) == listing(write(tmp_path / 'whole', rollouts))
    assert len(RolloutSet.open(place)) == 3


def test_an_error_at_the_very_end_leaves_nothing_of_work_without_a_name(tmp_path, monkeypatch):
    def failing(*arguments):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', failing)
    with pytest.raises(OSError, match='No space'):
        write(tmp_path / 'new' / 'set', [make_rollout()])
    assert listing(tmp_path) == []


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(RolloutSetError, match='set: expected at least one rollout to write'):
        write(tmp_path / 'set', [])
    assert listing(tmp_path) == []


def with_nan(array, step):
    changed = np.array(array)
    changed[step] = np.nan
    return changed


@pytest.mark.parametrize(
    ('rollout', 'message'),
    [
        (make_rollout(1, dim=5), r"'task 1/1': expected .*\(steps, 4\), found shape \(3, 5\)"),
        (Rollout(np.zeros((3, 2, 4), np.float32), task='raw'), r'found shape \(3, 2, 4\)'),
        (Rollout(np.zeros((3, 4), np.int32), task='x'), 'dtype float64, float32, .* found int32'),
        (make_rollout(0), "a different episode_id for each rollout, found .*'task 0/0' twice"),
        (
            make_rollout(1, feature_name='hidden_states[token=mean]'),
            r"found 'hidden_states\[token=mean\]'; use .* the same pooling for all rollouts",
        ),
        (
            Rollout(with_nan(np.zeros((3, 4), np.float32), 2), task='x'),
            "'x/0': expected finite features, found NaN or infinity at step 2",
        ),
        (
            Rollout(np.full((2, 4), np.inf).astype(ml_dtypes.bfloat16), task='x'),
            'expected finite features, found NaN or infinity at step 0',
        ),
        (
            make_rollout(1, actions=with_nan(np.zeros((3, 1, 2, 7)), 1)),
            'expected finite actions, found NaN or infinity at step 1',
        ),
        (
            make_rollout(1, action_space='normalized'),
            r"'task 1/1': expected the action space '' as in .* found 'normalized'; write one ",
        ),
        (
            make_rollout(1, stamps=np.zeros(3, 'M8[ns]')),
            "array 'stamps': expected one of the dtypes .*, found datetime64",
        ),
    ],
)
def test_rollouts_that_do_not_belong(tmp_path, rollout, message):
    with pytest.raises(RolloutSetError, match=message):
        write(tmp_path / 'set', [make_rollout(0), rollout])
    assert listing(tmp_path) == []


def test_overwriting(tmp_path):
    path = write(tmp_path / 'set', [make_rollout(i) for i in range(3)])
    before = listing(tmp_path)
    with pytest.raises(RolloutSetError, match=r'expected a path that does not exist.*--overwrite'):
        write(path, [make_rollout()])
    with pytest.raises(RolloutSetError, match='expected at least one rollout'):
        write(path, [], overwrite=True)
    assert listing(tmp_path) == before
    assert len(RolloutSet.open(path)) == 3
    write(path, [make_rollout()], overwrite=True)
    assert len(RolloutSet.open(path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ['set']


def test_nothing_but_a_set_is_ever_overwritten(tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('x')
    (tmp_path / 'file').write_text('x')
    for name in ('home', 'file'):
        with pytest.raises(RolloutSetError, match='expected a rollout set to overwrite'):
            write(tmp_path / name, [make_rollout()], overwrite=True)
    assert listing(tmp_path) == ['file', 'home', 'home/thesis.tex']


# -- broken folders


def change(file: Path, edit):
    file.write_bytes(edit(bytearray(file.read_bytes())))


def edit_manifest(path, **changes):
    file = path / 'rollout_set.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_index(path, name, values):
    file = path / 'rollouts.parquet'
    table = pyarrow.parquet.read_table(file)
    at = table.column_names.index(name)
    pyarrow.parquet.write_table(table.set_column(at, name, pyarrow.array(values)), file)


def flip(data, position):
    data[position] ^= 1
    return bytes(data)


ARRAY = 'arrays/000001.safetensors'
BREAKAGES = {
    'no-folder': (lambda p: p.rename(p.with_name('gone')), 'rollout_set.json: expected the manif'),
    'no-manifest': (lambda p: (p / 'rollout_set.json').unlink(), 'rollout_set.json: expected the'),
    'no-json': (lambda p: (p / 'rollout_set.json').write_text('{'), 'json: expected JSON'),
    'deep-json': (
        lambda p: (p / 'rollout_set.json').write_text('[' * 200_000),
        'json: expected JSON',
    ),
    'no-text': (lambda p: (p / 'rollout_set.json').write_bytes(b'\xff'), 'json: expected JSON'),
    'another-format': (
        lambda p: edit_manifest(p, format='x'),
        "'format' .*'safe_rollout_set', found 'x'",
    ),
    'a-list': (
        lambda p: (p / 'rollout_set.json').write_text('[]'),
        "the entry 'format' .*found 'list'",
    ),
    'another-version': (lambda p: edit_manifest(p, version=2), 'version 1 of the format, found 2'),
    'no-feature': (
        lambda p: edit_manifest(p, feature={}),
        'json: expected a feature specification',
    ),
    'no-policy': (
        lambda p: edit_manifest(p, policy=None),
        "the entry 'policy' of type str, found None",
    ),
    'another-count': (lambda p: edit_manifest(p, rollouts=5), 'parquet: expected 5 rollouts'),
    'no-index': (lambda p: (p / 'rollouts.parquet').unlink(), 'rollouts.parquet: expected the ind'),
    'index-cut': (
        lambda p: change(p / 'rollouts.parquet', lambda data: data[:-100]),
        'rollouts.parquet: expected a parquet file',
    ),
    'empty': (
        lambda p: pyarrow.parquet.write_table(
            pyarrow.parquet.read_table(p / 'rollouts.parquet').slice(0, 0), p / 'rollouts.parquet'
        ),
        'rollouts.parquet: expected at least one rollout, found none',
    ),
    'column-missing': (
        lambda p: pyarrow.parquet.write_table(
            pyarrow.parquet.read_table(p / 'rollouts.parquet').drop_columns(['task']),
            p / 'rollouts.parquet',
        ),
        "expected a column 'task'",
    ),
    'column-of-another-type': (
        lambda p: edit_index(p, 'length', ['1', '2', '3', '4']),
        "column 'length': expected values of type int, found values of type str",
    ),
    'file-elsewhere': (
        lambda p: edit_index(p, 'arrays', ['../../x.safetensors'] * 4),
        "column 'arrays': expected names of array files",
    ),
    'another-length': (
        lambda p: edit_index(p, 'length', [1, 3, 3, 4]),
        r'000001.safetensors: expected 3 steps, as rollouts.parquet says, found 2 steps',
    ),
    'no-arrays': (lambda p: (p / 'arrays').rename(p / 'x'), 'arrays: expected the folder'),
    'array-file-missing': (lambda p: (p / ARRAY).unlink(), '000001.safetensors: .* no such file'),
    'array-file-cut': (
        lambda p: change(p / ARRAY, lambda data: data[:-4]),
        r'000001.safetensors: expected a file of \d+ bytes, found',
    ),
    'array-file-grown': (lambda p: change(p / ARRAY, lambda data: data + b'\0'), 'found'),
    'array-file-empty': (lambda p: (p / ARRAY).write_bytes(b''), 'found 0 bytes'),
    'header-flipped': (
        lambda p: change(p / ARRAY, lambda data: flip(data, 20)),
        '000001.safetensors: expected a header with the checksum .*, as rollouts.parquet says',
    ),
    'header-length-flipped': (
        lambda p: change(p / ARRAY, lambda data: flip(data, 5)),
        'expected a safetensors header of at most .*found a header length of',
    ),
    'file-of-another-set': (
        lambda p: change(p / ARRAY, lambda data: (p / 'arrays/000002.safetensors').read_bytes()),
        '000001.safetensors: expected',
    ),
}


@pytest.mark.parametrize('name', BREAKAGES)
def test_a_broken_folder_is_refused_by_name(small, name):
    damage, message = BREAKAGES[name]
    damage(small)
    with pytest.raises(RolloutSetError, match=message):
        list(RolloutSet.open(small))


def forge(path, described, data):
    """Replace one file of arrays, with a checksum that fits, so that only the header is checked."""
    header = json.dumps(described).encode() if isinstance(described, dict) else described
    content = len(header).to_bytes(8, 'little') + header + data
    (path / ARRAY).write_bytes(content)
    table = pyarrow.parquet.read_table(path / 'rollouts.parquet').to_pydict()
    sizes, sums = table['arrays_bytes'], table['arrays_header_crc32']
    sizes[1], sums[1] = len(content), zlib.crc32(header)
    edit_index(path, 'arrays_bytes', sizes)
    edit_index(path, 'arrays_header_crc32', sums)


GOOD = {'dtype': 'F32', 'shape': [2, 4], 'data_offsets': [0, 32]}
FORGERIES = {
    'overlap': (
        {'features': GOOD, 'actions': GOOD},
        bytes(32),
        'expected bytes 32 to 64 .*found bytes 0 to 32',
    ),
    'hole': (
        {'features': GOOD | {'data_offsets': [4, 36]}},
        bytes(36),
        'expected bytes 0 to 32 .*found bytes 4 to 36',
    ),
    'rest': ({'features': GOOD}, bytes(40), 'found 8 bytes that belong to no array'),
    'beyond': (
        {'features': GOOD},
        bytes(16),
        'an end at byte 16 or before, found an end at byte 32',
    ),
    'backwards': ({'features': GOOD | {'data_offsets': [32, 0]}}, bytes(32), 'found bytes 32 to 0'),
    'shape-lies': ({'features': GOOD | {'shape': [2**40, 4]}}, bytes(32), r'\(1099511627776, 4\)'),
    'shape-negative': ({'features': GOOD | {'shape': [-2, -4]}}, bytes(32), r'found .*\(-2, -4\)'),
    'shape-absurd': (
        {'features': GOOD | {'shape': [0, 2**70], 'data_offsets': [0, 0]}},
        b'',
        "array 'features': expected a shape that NumPy allows",
    ),
    'dtype-unknown': (
        {'features': GOOD | {'dtype': 'O'}},
        bytes(32),
        "expected one of the dtypes .*found dtype 'O'",
    ),
    'dtype-not-text': ({'features': GOOD | {'dtype': []}}, bytes(32), r"found dtype '\[\]'"),
    'integers': (
        {'features': GOOD | {'dtype': 'I32'}},
        bytes(32),
        'dtype float64, float32, float16 or bfloat16, found int32',
    ),
    'another-width': (
        {'features': GOOD | {'shape': [2, 3], 'data_offsets': [0, 24]}},
        bytes(24),
        r'found shape \(2, 3\)',
    ),
    'no-features': (
        {'actions': GOOD},
        bytes(32),
        "expected an array 'features', found no such array",
    ),
    'unknown-array': (
        {'features': GOOD, 'logits': GOOD | {'data_offsets': [32, 64]}},
        bytes(64),
        r"found the unknown arrays \['logits'\]",
    ),
    'actions-of-two-axes': (
        {'features': GOOD, 'actions': GOOD | {'data_offsets': [32, 64]}},
        bytes(64),
        'expected actions of shape',
    ),
    'not-json': (b'{', b'', 'expected a safetensors header'),
    'a-list': (b'[]', b'', 'expected a safetensors header'),
    'deep': (b'[' * 100_000, b'', 'expected a safetensors header'),
    'no-offsets': ({'features': {'dtype': 'F32', 'shape': [2, 4]}}, b'', 'expected a safetensors'),
    'three-offsets': (
        {'features': GOOD | {'data_offsets': [0, 32, 32]}},
        bytes(32),
        'expected a safetensors header',
    ),
}


@pytest.mark.parametrize('name', FORGERIES)
def test_a_forged_header_is_refused(small, name):
    described, data, message = FORGERIES[name]
    forge(small, described, data)
    rollouts = RolloutSet.open(small)
    assert len(rollouts[0]) == 1
    with pytest.raises(RolloutSetError, match=f'000001.safetensors: .*{message}'):
        rollouts[1]


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 600), value=st.integers(1, 255))
def test_a_flipped_byte_in_the_header_is_found(tmp_path_factory, position, value):
    path = tmp_path_factory.mktemp('flip') / 'set'
    write(path, [make_rollout(0, action_space='robot'), make_full_rollout(1)])
    data = bytearray((path / ARRAY).read_bytes())
    header_end = 8 + int.from_bytes(data[:8], 'little')
    data[position % header_end] ^= value
    (path / ARRAY).write_bytes(data)
    with pytest.raises(RolloutSetError, match=r'000001\.safetensors'):
        list(RolloutSet.open(path))
