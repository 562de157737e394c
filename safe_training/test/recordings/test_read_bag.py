# SPDX-License-Identifier: Apache-2.0
"""Recordings are read as they were recorded; outcomes; recordings that are refused."""

import contextlib
import shlex
import shutil
import sqlite3
import subprocess
import sys
import zlib

import lz4.frame
import numpy as np
import pytest
from backports import zstd
from recorded_bags import (
    END,
    LABEL,
    SPEC,
    START,
    assert_identical,
    bag_rollout,
    default_events,
    read,
    record,
    recorded,
    refused,
)
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from safe_training.recordings.errors import DumpError
from safe_training.recordings.label_files import labels_file
from safe_training.recordings.sources import open_source
from safe_training.recordings.untrusted import cdr as bag_messages
from safe_training.recordings.untrusted.cdr import STEP, BagMessageError, Event


def assert_recorded(path, **options):
    found = read(path, **options)
    assert len(found) == 6
    for number, rollout in enumerate(found):
        expected = recorded(bag_rollout(number), number % 2, number // 2)
        assert_identical(rollout, expected)


@pytest.mark.parametrize('storage', list(StoragePlugin), ids=lambda s: s.name)
@pytest.mark.parametrize('definitions', [True, False])
def test_recording_with_other_topics(tmp_path, storage, definitions):
    rollouts = [bag_rollout(n) for n in range(6)]
    assert_recorded(record(tmp_path / 'run', rollouts, storage, definitions=definitions))
    source = open_source(tmp_path / 'run')
    assert source.kind == 'rosbag2'
    assert source.why == 'contains metadata.yaml of rosbag2'
    assert source.feature == SPEC


@pytest.mark.parametrize(
    ('storage', 'mode'),
    [
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
    ],
)
def test_compressed_recording(tmp_path, storage, mode):
    rollouts = [bag_rollout(n) for n in range(6)]
    assert_recorded(record(tmp_path / 'run', rollouts, storage, mode))


def rebuilt(data, pack):
    """Write an mcap file anew without an index, its chunks packed by ``pack`` or (None) not."""
    out, at = data[:8], 8
    while data[at] != 0x0F:
        length = int.from_bytes(data[at + 1 : at + 9], 'little')
        body = data[at + 9 : at + 9 + length]
        if data[at] == 0x06:
            content = body[40:]
            if pack is None:
                out += content
            else:
                name, packed = pack(content)
                new = body[:24] + zlib.crc32(content).to_bytes(4, 'little')
                new += len(name).to_bytes(4, 'little') + name.encode()
                new += len(packed).to_bytes(8, 'little') + packed
                out += b'\x06' + len(new).to_bytes(8, 'little') + new
        elif data[at] != 0x07:
            out += data[at : at + 9 + length]
        at += 9 + length
    return out + b'\x02' + (20).to_bytes(8, 'little') + bytes(20) + data[:8]


@pytest.mark.parametrize(
    'pack',
    [
        None,
        lambda content: ('', content),
        lambda content: ('lz4', lz4.frame.compress(content)),
        lambda content: ('zstd', zstd.compress(content)),
    ],
    ids=['no chunks', 'plain', 'lz4', 'zstd'],
)
def test_mcap_without_an_index(tmp_path, pack):
    folder = record(tmp_path / 'run', [bag_rollout(n) for n in range(6)])
    file = folder / 'run.mcap'
    file.write_bytes(rebuilt(file.read_bytes(), pack))
    assert_recorded(folder)
    assert_recorded(file)


def test_namespaced_topics(tmp_path):
    rollouts = [bag_rollout(n) for n in range(6)]
    topics = ('/robot1/vla/policy_step', '/robot1/vla/episode')
    assert_recorded(record(tmp_path / 'run', rollouts, topics=topics))


@pytest.mark.parametrize('name', ['run.mcap', 'run.db3'])
def test_storage_file_alone(tmp_path, name):
    storage = StoragePlugin.MCAP if name.endswith('mcap') else StoragePlugin.SQLITE3
    rollouts = [bag_rollout(n) for n in range(6)]
    folder = record(tmp_path / 'run', rollouts, storage)
    shutil.move(folder / name, tmp_path / name)
    assert_recorded(tmp_path / name)
    with pytest.raises(DumpError, match=f'{name}: expected this file, .* found no file'):
        open_source(folder)
    shutil.move(tmp_path / name, tmp_path / 'without suffix')
    assert_recorded(tmp_path / 'without suffix')


def test_episode_across_the_files_of_a_split_recording(tmp_path):
    rollouts = [bag_rollout(n) for n in range(6)]
    for part in (0, 1):
        record(
            tmp_path / f'run_{part}',
            rollouts,
            events=default_events if part else lambda r: [],
            keep=lambda r, t, part=part: (t < 3) == (part == 0),
        )
    whole = tmp_path / 'run'
    whole.mkdir()
    texts = []
    for part in (0, 1):
        shutil.move(tmp_path / f'run_{part}' / f'run_{part}.mcap', whole)
        texts.append((tmp_path / f'run_{part}' / 'metadata.yaml').read_text())
    joined = texts[1].replace('  - run_1.mcap', '  - run_0.mcap\n  - run_1.mcap')
    assert joined != texts[1]
    (whole / 'metadata.yaml').write_text(joined)
    assert_recorded(whole)


def test_interleaved_episodes(tmp_path):
    together = [bag_rollout(n, stamps=10**18 + np.arange(5) * 10 + n) for n in range(4)]
    steps = [(int(r.stamps[t]), r.step(t)) for t in range(5) for r in together]
    record(tmp_path / 'run', together, keep=lambda r, t: False, extra_steps=steps)
    for one, other in zip(read(tmp_path / 'run'), together, strict=True):
        assert one.features.tobytes() == other.features.tobytes()
        assert one.episode_id == other.episode_id


def test_older_sqlite_tables(tmp_path):
    folder = record(tmp_path / 'run', [bag_rollout(n) for n in range(6)], StoragePlugin.SQLITE3)
    with sqlite3.connect(folder / 'run.db3') as database:
        database.executescript(
            'DROP TABLE schema; DROP TABLE metadata; DROP TABLE message_definitions;'
            'ALTER TABLE topics DROP COLUMN type_description_hash;'
            'ALTER TABLE topics DROP COLUMN offered_qos_profiles;'
        )
    database.close()
    assert_recorded(folder)


def events_of(*said):
    def events(rollout):
        made = default_events(rollout)[:1]
        for number, (kind, success) in enumerate(said):
            made.append((int(rollout.stamps[-1]) + 10 + number, Event('e', kind, success)))
        return made

    return events


@pytest.mark.parametrize(
    ('said', 'expected'),
    [
        ([], None),
        ([(END, None)], None),
        ([(END, True)], True),
        ([(END, True), (LABEL, False)], False),
        ([(LABEL, False), (END, None)], False),
        ([(LABEL, False), (LABEL, True)], True),
        ([(END, True), (LABEL, None)], None),
        ([(START, True)], None),
    ],
)
def test_the_latest_outcome_counts(tmp_path, said, expected):
    rollout = bag_rollout(0, episode_id='e')
    source = open_source(record(tmp_path / 'run', [rollout], events=events_of(*said)))
    assert [r.success for r in source.rollouts()] == [expected]
    assert source.unlabelled == (['e'] if expected is None else [])


def test_csv_beside_the_recording_counts_more(tmp_path):
    record(tmp_path / 'run', [bag_rollout(n) for n in range(3)])
    labels_file(tmp_path / 'run').write_text(
        '\ufeffepisode_id,outcome,failure_step,who\n'
        'lauf/ü0,failure,4,me\nlauf/ü2,success,,me\nlauf/ü1,unknown,,me\n'
    )
    assert [(r.success, r.failure_step) for r in read(tmp_path / 'run')] == [
        (False, 4),
        (None, None),
        (True, None),
    ]


def test_events_of_episodes_that_were_not_recorded_are_normal(tmp_path):
    def events(rollout):
        return [(1, Event('an earlier one', END, True)), *default_events(rollout)]

    found = read(record(tmp_path / 'run', [bag_rollout(0)], events=events))
    assert [r.episode_id for r in found] == ['lauf/ü0']


def test_without_events_the_instruction_is_the_task(tmp_path):
    (found,) = read(record(tmp_path / 'run', [bag_rollout(0)], events=lambda r: []))
    assert (found.task, found.success) == ('put the “mug” away', None)


def test_late_beginning_and_lost_steps(tmp_path):
    rollouts = [bag_rollout(n) for n in range(3)]
    record(tmp_path / 'late', rollouts, keep=lambda r, t: r is not rollouts[1] or t > 0)
    refused(tmp_path / 'late', 'all steps from 0 to 4, found 4 steps without step 0')
    source = open_source(tmp_path / 'late', skip_bad=True)
    assert [r.episode_id for r in source.rollouts()] == ['lauf/ü0', 'lauf/ü2']
    assert len(source.skipped) == 1
    assert len(source) == 3


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (
            {'features': np.full(16, np.nan, np.float32)},
            'features without NaN and infinity, found NaN .* step 3',
        ),
        ({'features': np.zeros(16, np.float16)}, 'one float dtype .* found float16 at step 3'),
        ({'features': np.zeros(16, np.int32)}, 'one float dtype'),
        (
            {'features': np.zeros(17, np.float32)},
            'width: 16\\) at all steps, .* width: 17\\) at step 3',
        ),
        ({'feature_name': 'other'}, "found the feature 'other'"),
        ({'action_space': ''}, "action space 'robot' at all steps, found '' at step 3"),
        ({'actions': None}, 'one dtype and one shape'),
        ({'actions': np.full((2, 3, 7), np.inf)}, 'actions without NaN and infinity'),
        ({'exec_horizon': 3}, 'one value of exec_horizon at all steps, found 2, 3'),
        ({'step': 1}, 'step 1 twice'),
        ({'episode_id': ''}, 'expected an episode_id'),
    ],
)
def test_one_bad_step(tmp_path, change, match):
    good = [bag_rollout(n) for n in range(2)]
    bad = good[1].step(3)
    for name, value in change.items():
        setattr(bad, name, value)
    record(
        tmp_path / 'run',
        good,
        keep=lambda r, t: r is good[0] or t != 3,
        extra_steps=[(int(good[1].stamps[-1]), bad)],
    )
    refused(tmp_path / 'run', match)
    found = read(tmp_path / 'run', skip_bad=True)
    assert [r.episode_id for r in found] == ['lauf/ü0']


def test_episodes_with_another_action_space(tmp_path):
    rollouts = [bag_rollout(0), bag_rollout(1, action_space='normalized'), bag_rollout(2)]
    record(tmp_path / 'run', rollouts)
    refused(
        tmp_path / 'run', "the action space 'robot', as in episode 'lauf/ü0', found 'normalized'"
    )
    found = read(tmp_path / 'run', skip_bad=True)
    assert [r.episode_id for r in found] == ['lauf/ü0', 'lauf/ü2']
    assert [r.action_space for r in found] == ['robot', 'robot']


def test_a_step_that_ends_before_the_action_space_is_refused_if_its_definition_has_it():
    """Without a definition, the same bytes are a step of version 0.1."""
    step = bag_rollout(0).step(1)
    data = bytes(bag_messages.step_to_cdr(step))
    old = data[: -len('robot') - 5]
    assert bag_messages.step_from_cdr(data, '').action_space == 'robot'
    for padding in range(4):
        found = bag_messages.step_from_cdr(old + bytes(padding), '')
        assert (found.action_space, found.inference_time) == ('', step.inference_time)
    with pytest.raises(BagMessageError, match='a message of type safe_msgs/msg/PolicyStep'):
        bag_messages.step_from_cdr(old)
    for cut in range(1, len('robot') + 2):
        with pytest.raises(BagMessageError, match='a message of type safe_msgs/msg/PolicyStep'):
            bag_messages.step_from_cdr(data[:-cut], '')
    for cut in range(1, 5):
        with pytest.raises(BagMessageError, match='a message of type safe_msgs/msg/PolicyStep'):
            bag_messages.step_from_cdr(old[:-cut], '')


def test_a_log_of_a_killed_recorder_and_the_advice(tmp_path):
    folder = record(tmp_path / 'run', [bag_rollout(0)], StoragePlugin.SQLITE3)
    file = folder / 'run.db3'
    kill = (
        'import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1])\n'
        'database.execute("PRAGMA journal_mode=WAL")\n'
        'database.execute("CREATE TABLE x(y)"); database.commit(); os._exit(0)'
    )
    subprocess.run([sys.executable, '-c', kill, str(file)], check=True)
    with pytest.raises(DumpError, match=r'run\.db3-wal: .* log file of \d+ bytes') as caught:
        read(folder)
    command = shlex.split(str(caught.value).partition(' with: ')[2])
    assert command[:2] == ['sqlite3', str(file)]
    with contextlib.closing(sqlite3.connect(command[1])) as database:
        database.execute(command[2])
    assert [r.episode_id for r in read(folder)] == ['lauf/ü0']


def test_a_feature_that_was_not_recorded(tmp_path):
    record(tmp_path / 'run', [bag_rollout(0)])
    message = r"feature 'logits', found only the features 'hidden_states\[token=last\]'; give one"
    refused(tmp_path / 'run', message, feature='logits')
    for name in ('hidden_states[token=last]', 'hidden_states'):
        assert len(read(tmp_path / 'run', feature=name)) == 1


def test_steps_so_unlike_that_a_table_of_them_would_be_huge(tmp_path):
    rollout = bag_rollout(0, length=40)
    odd = rollout.step(39)
    odd.token_entropy = np.zeros(200_000, np.float32)
    record(tmp_path / 'run', [rollout], keep=lambda r, t: t < 39, extra_steps=[(10**18, odd)])
    refused(tmp_path / 'run', 'similar numbers of tokens')


def test_another_version_of_the_messages(tmp_path, monkeypatch):
    text = bag_messages.full_definition(STEP)
    monkeypatch.setattr(
        bag_messages,
        'full_definition',
        lambda name: text.replace('uint32 step ', 'uint64 step ') if name == STEP else '',
    )
    record(tmp_path / 'run', [bag_rollout(0)])
    refused(tmp_path / 'run', 'found a different definition of safe_msgs/msg/PolicyStep')


def test_definition_is_compared_and_never_made_into_code(tmp_path, monkeypatch):
    marker = tmp_path / 'executed'
    evil = f'uint8 x\nuint8 y = __import__("pathlib").Path({str(marker)!r}).touch()\n'
    monkeypatch.setattr(bag_messages, 'full_definition', lambda name: evil)
    record(tmp_path / 'run', [bag_rollout(0)])
    refused(tmp_path / 'run', 'definition of safe_msgs/msg/')
    assert not marker.exists()


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('', 'an empty file'),
        (
            'episode_id\nlauf/ü0\n',
            'expected a first line with the columns .* found the columns episode_id',
        ),
        ('episode_id,outcome\nlauf/ü0\n', 'line 2: expected 2 values, .* found fewer'),
        ('episode_id,outcome\nlauf/ü0,good\n', "line 2.*found 'good'"),
        (
            'episode_id,outcome\nlauf/ü0,success\nlauf/ü0,failure\n',
            'line 3: expected one line for .* found a second line',
        ),
        ('episode_id,outcome\nanother,success\n', "found 'another'"),
        (
            'episode_id,outcome,failure_step\nlauf/ü0,failure,5\n',
            'failure_step from 0 to 4, .* found 5',
        ),
        ('episode_id,outcome,failure_step\nlauf/ü0,failure,-1\n', "found '-1'"),
        (
            'episode_id,outcome,failure_step\nlauf/ü0,success,1\n',
            "no failure_step, because the outcome is 'success', found failure_step 1",
        ),
        (
            'episode_id,outcome\n"lauf/ü0,success\n',
            'expected a csv file of labels, found text that is not csv',
        ),
    ],
)
def test_bad_csv(tmp_path, text, match):
    record(tmp_path / 'run', [bag_rollout(0)])
    labels_file(tmp_path / 'run').write_text(text)
    with pytest.raises(DumpError, match=match) as caught:
        read(tmp_path / 'run')
    assert 'run.labels.csv' in str(caught.value)
