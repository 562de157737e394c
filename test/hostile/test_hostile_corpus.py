# SPDX-License-Identifier: Apache-2.0
"""Every hostile file is refused by its name: nothing executed, half-written or unbounded."""

import os
import pickle
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hostile_cases import CANARY, CANARY_MODULE, make_good
from hostile_corpus import CASES
from hostile_pickles import PICKLES

from safe_training.cli.main import main

#: What reading may take beside the files themselves; see bag_storage and unpickle for their bounds.
MOST_BYTES = 160 << 20
MOST_SECONDS = 20.0

_watching = False
_seen: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    if _watching and (
        event in ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen')
        or (event == 'import' and arguments[0] == CANARY_MODULE)
    ):
        _seen.append(f'{event} {arguments}')


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp('canary module')
    (folder / f'{CANARY_MODULE}.py').write_text(f'open({str(CANARY)!r}, "w")\n')
    sys.path.insert(0, str(folder))
    sys.addaudithook(_watch)  # for the rest of the process: there is no way to remove one
    CANARY.unlink(missing_ok=True)
    yield make_good(tmp_path_factory.mktemp('good'))
    sys.path.remove(str(folder))
    CANARY.unlink(missing_ok=True)


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {f: f.read_bytes() if f.is_file() else None for f in sorted(folder.rglob('*'))}


def test_there_are_enough():
    assert len(CASES) >= 40


@pytest.mark.parametrize('name', CASES)
def test_refused(name, good, tmp_path, capsys):
    global _watching
    source = tmp_path / 'source'
    source.mkdir()
    bad = CASES[name](source, good)
    before = contents(source)
    out = tmp_path / 'out'
    out.mkdir()
    arguments = [bad.verb, str(bad.path), '--json']
    if bad.verb == 'convert':
        arguments.insert(2, str(out / 'set'))
    _seen.clear()
    started = time.monotonic()
    tracemalloc.start()
    _watching = True
    try:
        status = main(arguments)
    finally:
        _watching = False
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    said = capsys.readouterr()

    assert status == 1, said
    assert bad.names in said.err, said.err
    assert 'Traceback' not in said.err
    assert len(said.err) < 4000
    assert all(c.isprintable() or c == '\n' for c in said.err), repr(said.err)
    assert said.out == ''
    assert not CANARY.exists(), 'something was executed'
    assert _seen == []
    assert list(out.iterdir()) == []
    assert contents(source) == before
    assert peak < MOST_BYTES + 2 * sum(len(data or b'') for data in before.values())
    assert time.monotonic() - started < MOST_SECONDS


@pytest.mark.parametrize('verb', ['convert', 'info', 'label', 'fit', 'evaluate'])
def test_every_verb_refuses(verb, good, tmp_path, capsys):
    bad = CASES['changed-mcap-cut-in-half'](tmp_path, good)
    more = {
        'convert': [str(tmp_path / 'set')],
        'info': [],
        'label': ['--list'],
        'fit': ['--detector', 'clock', '--out', str(tmp_path / 'detector')],
        'evaluate': ['--detector', 'clock'],
    }
    assert main([verb, str(bad.path), *more[verb]]) == 1
    assert 'run.mcap: expected the end of an mcap file' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['run.mcap']


@pytest.mark.parametrize('name', ['system_0', 'system_2', 'eval', 'import_module', 'instance'])
def test_the_corpus_would_have_worked(name, good):
    """Guards the tests above: with pickle itself, the same bytes do touch the canary."""
    sys.modules.pop(CANARY_MODULE, None)
    pickle.loads(PICKLES[name]())
    assert CANARY.exists()
    CANARY.unlink()


def test_the_good_files_are_good(good, tmp_path, capsys):
    """Guards the tests above: it is the damage that is refused."""
    for number, path in enumerate((good.dump, good.set, good.mcap, good.bag, good.db3)):
        assert main(['convert', str(path), str(tmp_path / str(number))]) == 0, path
    assert main(['info', str(good.detector)]) == 0
