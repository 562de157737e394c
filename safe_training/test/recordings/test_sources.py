# SPDX-License-Identifier: Apache-2.0
"""The registry of readers, and what this room may import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from shared_files import DATA

import safe_training.recordings
from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import ReadOptions, wanted_feature
from safe_training.recordings.sources import READERS

DUMP = DATA / 'openvla_dump'
ROOM = Path(safe_training.recordings.__file__).parent


def test_every_reader_has_a_name_and_says_what_it_looks_for():
    assert len({reader.kind for reader in READERS}) == len(READERS)
    assert all(reader.kind and reader.looks_for for reader in READERS)


def test_readers_of_one_feature_pool_it_alike():
    """A rollout set or a recording may hold the feature of any dump, and does not say of which."""
    found = {}
    for reader in READERS:
        for feature, pooling in reader.default_pooling.items():
            assert found.setdefault(feature, pooling) == pooling, (reader.kind, feature)
    assert found == {
        'hidden_states': (('token', 'last'),),
        'pre_velocity': (('horizon', 'mean'), ('denoise', 'mean')),
        'pre_logits': (('token', 'mean'),),
        'encoded': (('token', 'mean'),),
        'sampled_action_embeds': (('horizon', 'first'), ('denoise', 'first')),
    }


def test_a_feature_that_no_reader_knows_needs_a_pooling():
    with pytest.raises(DumpError, match=r'^x: expected a pooling .* for example --pooling a=mean'):
        wanted_feature(Path('x'), 'own', ('a',), ReadOptions())
    options = ReadOptions(pooling=(('a', 'last'),))
    assert str(wanted_feature(Path('x'), 'own', ('a',), options)) == 'own[a=last]'


def test_this_room_imports_the_bridge_only():
    for source in ROOM.rglob('*.py'):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in getattr(node, 'names', [])]
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for name in names:
                if name.startswith('safe_'):
                    assert name.startswith('safe_training.recordings'), f'{source}: {name}'


READ = """
import importlib, json, sys
from pathlib import Path

for source in Path({room!r}).rglob('*.py'):
    parts = source.relative_to({root!r}).with_suffix('').parts
    importlib.import_module('.'.join(part for part in parts if part != '__init__'))

from safe_training.recordings.describe import info
from safe_training.recordings.sources import load_rollouts
info({dump!r})
load_rollouts({dump!r})
print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""


def test_reading_a_dump_loads_nothing_heavy():
    code = READ.format(room=str(ROOM), root=str(ROOM.parents[1]), dump=str(DUMP))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {'torch', 'sklearn', 'scipy', 'matplotlib', 'pyarrow'}


def test_an_unknown_option_of_reading_is_refused_with_those_there_are(tmp_path):
    from safe_training.recordings.sources import load_rollouts

    with pytest.raises(TypeError, match=r"load_rollouts: .* pooling, .* found 'poling'"):
        load_rollouts(tmp_path, poling=())


def test_a_detector_folder_in_the_place_of_rollouts_is_named():
    from safe_monitor_node.storage.shipped import located
    from safe_training.recordings.sources import load_rollouts

    with pytest.raises(DumpError, match=r'found a detector folder .* the order of the arg'):
        load_rollouts(located('signal_probe'))
