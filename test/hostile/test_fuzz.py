# SPDX-License-Identifier: Apache-2.0
"""Good files with random damage either read as rollouts or are refused by our own errors."""

import shutil
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hostile_cases import make_good
from hypothesis import HealthCheck, given, settings

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import read_labels
from safe_training.recordings.sources import open_source
from safe_training.recordings.untrusted.cdr import (
    BagMessageError,
    check_definition,
    event_from_cdr,
    full_definition,
    step_from_cdr,
)
from vla_feature_bridge.rollout_set.layout import RolloutSetError

# The same damage in every run, so that what fails here fails everywhere.
bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

damage = st.lists(
    st.tuples(
        st.sampled_from(['flip', 'cut', 'insert', 'repeat', 'ones', 'zero']),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes) -> bytes:
    out = bytearray(data)
    for kind, place, length, extra in changes:
        at = int(place * len(out))
        if kind == 'flip' and out:
            out[at] ^= 1 << (length % 8)
        elif kind == 'cut':
            del out[at : at + length]
        elif kind == 'insert':
            out[at:at] = extra
        elif kind == 'repeat':
            out[at:at] = out[at : at + length]
        else:
            value = b'\xff' if kind == 'ones' else b'\0'
            out[at : at + 8] = value * len(out[at : at + 8])
    return bytes(out)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    return make_good(tmp_path_factory.mktemp('good'))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


def read(path: Path) -> None:
    try:
        for rollout in open_source(path, skip_bad=True).rollouts():
            assert len(rollout) >= 1
            assert rollout.features.nbytes < 1 << 26
    except (DumpError, RolloutSetError):
        pass


@bounded
@given(changes=damage)
def test_mcap(good, place, changes):
    file = place / 'run.mcap'
    file.write_bytes(damaged(good.mcap.read_bytes(), changes))
    read(file)


@bounded
@given(changes=damage)
def test_sqlite(good, place, changes):
    file = place / 'run.db3'
    file.write_bytes(damaged(good.db3.read_bytes(), changes))
    read(file)


@bounded
@given(changes=damage)
def test_metadata(good, place, changes):
    folder = place / 'run.bag'
    if not folder.exists():
        shutil.copytree(good.bag, folder)
    text = (good.bag / 'metadata.yaml').read_bytes()
    (folder / 'metadata.yaml').write_bytes(damaged(text, changes))
    read(folder)


@bounded
@given(
    changes=damage,
    name=st.sampled_from(['rollout_set.json', 'rollouts.parquet', 'arrays/000000.safetensors']),
)
def test_rollout_set(good, place, changes, name):
    folder = place / 'set'
    if not folder.exists():
        shutil.copytree(good.set, folder)
    data = (good.set / name).read_bytes()
    # A new file each time: the last one may still be mapped.
    (folder / name).unlink()
    (folder / name).write_bytes(damaged(data, changes))
    read(folder)
    (folder / name).unlink()
    (folder / name).write_bytes(data)


@settings(bounded, max_examples=400)
@given(changes=damage)
def test_messages(good, changes):
    for message, unpack in _messages(good):
        with suppress(BagMessageError):
            unpack(damaged(message, changes))


def _messages(good):
    from safe_training.recordings.untrusted.bag import open_bag
    from safe_training.recordings.untrusted.cdr import EVENT, STEP

    if not _kept:
        for message in open_bag(good.mcap).messages((STEP, EVENT)):
            unpack = step_from_cdr if message.topic.type == STEP else event_from_cdr
            _kept[message.topic.type] = (bytes(message.data), unpack)
    return _kept.values()


_kept: dict = {}


@settings(bounded, max_examples=40)
@given(
    changes=damage,
    encoding=st.sampled_from(['ros2msg', 'ros2idl']),
    name=st.sampled_from(['safe_msgs/msg/EpisodeEvent', 'safe_msgs/msg/PolicyStep']),
)
def test_definitions(changes, encoding, name):
    text = damaged(full_definition(name).encode(), changes).decode('utf-8', 'replace')
    with suppress(BagMessageError):
        check_definition(name, encoding, text)


@settings(bounded, max_examples=200)
@given(changes=damage)
def test_labels(place, changes):
    file = place / 'run.labels.csv'
    text = b'episode_id,outcome,failure_step\n"a, b",failure,3\nc,success,\n'
    file.write_bytes(damaged(text, changes))
    try:
        read_labels(file)
    except DumpError as error:
        assert 'run.labels.csv' in str(error)
