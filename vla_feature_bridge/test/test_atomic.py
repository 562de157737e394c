# SPDX-License-Identifier: Apache-2.0
"""Files and folders are written completely or not at all."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from vla_feature_bridge.atomic import (
    check_writable,
    locked,
    move_folder,
    names_file,
    replace_file,
    replace_files,
    replaced_file,
    replaced_folder,
)


class Stop(BaseException):
    """An interruption: a BaseException that is not an Exception."""


def test_a_file_is_written_with_its_folders(tmp_path):
    replace_file(tmp_path / 'new' / 'deep' / 'a.txt', 'é')
    assert (tmp_path / 'new' / 'deep' / 'a.txt').read_bytes() == 'é'.encode()
    replace_file(tmp_path / 'new' / 'deep' / 'a.txt', b'\x00')
    assert (tmp_path / 'new' / 'deep' / 'a.txt').read_bytes() == b'\x00'
    assert os.listdir(tmp_path / 'new' / 'deep') == ['a.txt']


@pytest.mark.parametrize('error', [RuntimeError, Stop])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(error), replaced_file(path) as aside:
        aside.write_text('half')
        assert path.read_text() == 'old'
        raise error
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


def test_an_error_leaves_no_new_folders(tmp_path):
    with pytest.raises(Stop), replaced_file(tmp_path / 'new' / 'a.txt') as aside:
        aside.write_text('half')
        raise Stop
    with pytest.raises(Stop), replaced_folder(tmp_path / 'new' / 'folder') as aside:
        (aside / 'file').write_text('half')
        raise Stop
    assert os.listdir(tmp_path) == []


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    with pytest.raises(FileNotFoundError), replaced_file(tmp_path / 'a.txt'):
        pass
    assert (tmp_path / 'a.txt').read_text() == 'old'


def test_the_path_aside_keeps_the_suffix(tmp_path):
    with replaced_file(tmp_path / 'a.tar.gz') as aside:
        assert aside.suffix == '.gz'
        assert aside.parent == tmp_path
        aside.write_text('')


def test_long_names_can_be_written(tmp_path):
    name = 'ä' * 125 + '.json'
    replace_file(tmp_path / name, 'x')
    assert os.listdir(tmp_path) == [name]


def test_permission_bits_stay(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    path.chmod(0o640)
    replace_file(path, 'new')
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    folder = tmp_path / 'folder'
    folder.mkdir(mode=0o750)
    folder.chmod(0o750)
    with replaced_folder(folder, overwrite=True):
        pass
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_new_file_has_the_usual_permission_bits(tmp_path):
    (tmp_path / 'usual').write_text('')
    replace_file(tmp_path / 'new', '')
    assert (tmp_path / 'new').stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'real.txt').write_text('old')
    link = tmp_path / 'link.txt'
    link.symlink_to(Path('elsewhere') / 'real.txt')
    replace_file(link, 'new')
    assert link.is_symlink()
    assert (tmp_path / 'elsewhere' / 'real.txt').read_text() == 'new'
    assert sorted(os.listdir(tmp_path)) == ['elsewhere', 'link.txt']


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace_file(pipe, 'text')
        assert os.read(reader, 100) == b'text'
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(IsADirectoryError, match='folder'):
        replace_file(tmp_path / 'folder', 'x')


def test_several_files_are_written_or_none(tmp_path):
    (tmp_path / 'a').write_text('old')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(IsADirectoryError):
        replace_files({tmp_path / 'a': 'new', tmp_path / 'folder': 'new', tmp_path / 'c': 'new'})
    assert (tmp_path / 'a').read_text() == 'old'
    assert sorted(os.listdir(tmp_path)) == ['a', 'folder']
    replace_files({tmp_path / 'a': 'new', tmp_path / 'more' / 'b': b'new'})
    assert (tmp_path / 'a').read_text() == 'new'
    assert (tmp_path / 'more' / 'b').read_text() == 'new'


def test_several_files_are_renamed_in_order(tmp_path, monkeypatch):
    renamed = []
    replace = Path.replace

    def spy(self, target):
        renamed.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, 'replace', spy)
    replace_files({tmp_path / name: name for name in 'bac'})
    assert renamed == list('bac')


@pytest.mark.parametrize('error', [RuntimeError, Stop])
def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'old').write_text('')
    with pytest.raises(error), replaced_folder(folder, overwrite=True) as aside:
        (aside / 'new').write_text('')
        raise error
    assert os.listdir(tmp_path) == ['folder']
    assert os.listdir(folder) == ['old']


def test_a_folder_is_replaced_with_all_that_it_holds(tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'old').write_text('')
    with replaced_folder(folder, overwrite=True) as aside:
        (aside / 'deep').mkdir()
        (aside / 'deep' / 'new').write_text('x')
    assert (folder / 'deep' / 'new').read_text() == 'x'
    assert os.listdir(folder) == ['deep']
    assert os.listdir(tmp_path) == ['folder']


@pytest.mark.parametrize('kind', ['file', 'folder', 'link'])
def test_a_taken_name_is_refused_before_any_work(tmp_path, kind):
    path = tmp_path / 'taken'
    if kind == 'file':
        path.write_text('old')
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to('nowhere')
    with (
        pytest.raises(FileExistsError, match='expected a path that does not exist'),
        replaced_folder(path),
    ):
        raise AssertionError('the block must not run')
    assert os.listdir(tmp_path) == ['taken']


def test_a_name_taken_meanwhile_is_refused(tmp_path):
    with pytest.raises(FileExistsError), replaced_folder(tmp_path / 'folder') as aside:
        (aside / 'new').write_text('')
        (tmp_path / 'folder').write_text('theirs')
    assert (tmp_path / 'folder').read_text() == 'theirs'
    assert os.listdir(tmp_path) == ['folder']


def test_a_file_is_not_overwritten_by_a_folder(tmp_path):
    (tmp_path / 'file').write_text('old')
    with (
        pytest.raises(FileExistsError, match='expected a folder'),
        replaced_folder(tmp_path / 'file', overwrite=True),
    ):
        raise AssertionError('the block must not run')


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    with replaced_folder(tmp_path / 'link', overwrite=True) as aside:
        (aside / 'new').write_text('x')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'real' / 'new').read_text() == 'x'


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'old').write_text('')
    rename = os.rename

    def failing(source, target):
        if Path(target) == folder and os.listdir(source) == ['new']:
            raise OSError('disk')
        rename(source, target)

    monkeypatch.setattr(os, 'rename', failing)
    with (
        pytest.raises(OSError, match='disk'),
        replaced_folder(folder, overwrite=True) as aside,
    ):
        (aside / 'new').write_text('')
    assert os.listdir(folder) == ['old']
    assert os.listdir(tmp_path) == ['folder']


# --- after the rename, nothing raises


def failing_sync(monkeypatch, number, only=lambda status: True):
    """Let ``os.fsync`` fail for the files or folders that ``only`` selects."""
    sync = os.fsync

    def failing(descriptor):
        if only(os.fstat(descriptor)):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', failing)


def write_everything(folder):
    """Write a file, two files and a folder, and write all of them a second time."""
    for text in ('old', 'new'):
        replace_file(folder / 'a', text)
        replace_files({folder / 'b': text, folder / 'c': text})
        with replaced_folder(folder / 'd', overwrite=True) as aside:
            (aside / 'e').write_text(text)
    assert {(folder / name).read_text() for name in ('a', 'b', 'c', 'd/e')} == {'new'}
    assert sorted(os.listdir(folder)) == ['a', 'b', 'c', 'd']


@pytest.mark.parametrize('name', ['EINVAL', 'ENOTSUP', 'ENOSYS', 'EBADF', 'EACCES', 'EPERM'])
def test_a_file_system_without_fsync_of_folders_will_do(tmp_path, monkeypatch, name):
    failing_sync(monkeypatch, getattr(errno, name), lambda s: stat.S_ISDIR(s.st_mode))
    write_everything(tmp_path)


def test_an_error_after_the_rename_is_none(tmp_path, monkeypatch):
    parent = tmp_path.stat().st_ino
    failing_sync(monkeypatch, errno.EIO, lambda s: s.st_ino == parent)
    write_everything(tmp_path)


def test_an_error_of_the_content_is_raised_and_nothing_remains(tmp_path, monkeypatch):
    replace_file(tmp_path / 'a', 'old')
    failing_sync(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match='No space'):
        replace_file(tmp_path / 'a', 'new')
    with (
        pytest.raises(OSError, match='No space'),
        replaced_folder(tmp_path / 'd') as aside,
    ):
        (aside / 'e').write_text('new')
    assert (tmp_path / 'a').read_text() == 'old'
    assert os.listdir(tmp_path) == ['a']


def as_a_normal_user(work):
    """Run ``work`` in a process without the rights of root; return what it raised, as text."""
    read, write = os.pipe()
    if os.fork() == 0:
        found = ''
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            work()
        except BaseException as error:
            found = repr(error)
        os.write(write, found.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        found = stream.read()
    os.wait()
    return found


@pytest.fixture
def open_folder():
    """A folder in which every user may write, whatever the rights of its parents are."""
    with tempfile.TemporaryDirectory(dir='/tmp') as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_a_read_only_folder_is_replaced_without_remains(open_folder):
    def work():
        target = open_folder / 'detector'
        (target / 'deep').mkdir(parents=True)
        (target / 'deep' / 'weights').write_text('old')
        (target / 'deep').chmod(0o555)
        target.chmod(0o555)
        with replaced_folder(target, overwrite=True) as aside:
            (aside / 'weights').write_text('new')

    assert as_a_normal_user(work) == ''
    assert os.listdir(open_folder) == ['detector']
    assert os.listdir(open_folder / 'detector') == ['weights']


def test_a_folder_that_may_be_written_but_not_listed_will_do(open_folder):
    def work():
        box = open_folder / 'box'
        box.mkdir()
        box.chmod(0o300)
        replace_file(box / 'a', 'new')
        with replaced_folder(box / 'b') as aside:
            (aside / 'c').write_text('new')

    assert as_a_normal_user(work) == ''
    (open_folder / 'box').chmod(0o700)
    assert sorted(os.listdir(open_folder / 'box')) == ['a', 'b']


def test_a_file_that_its_owner_may_not_read_is_written(open_folder):
    def work():
        os.umask(0o444)
        replace_file(open_folder / 'a', 'new')

    assert as_a_normal_user(work) == ''
    (open_folder / 'a').chmod(0o600)
    assert (open_folder / 'a').read_text() == 'new'


def test_a_long_suffix_can_be_written(tmp_path):
    name = 'a.' + 'b' * 248
    replace_file(tmp_path / name, 'x')
    assert os.listdir(tmp_path) == [name]


# -- errors of the disk, and two writers


def test_an_error_without_a_file_gets_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match='No space') as caught, names_file(tmp_path / 'out'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert caught.value.filename == str(tmp_path / 'out')
    with pytest.raises(OSError, match='other') as caught, names_file(tmp_path / 'out'):
        raise OSError(errno.ENOSPC, 'No space left on device', 'other')
    assert caught.value.filename == 'other'
    with pytest.raises(OSError, match='text only') as caught, names_file(tmp_path / 'out'):
        raise FileExistsError('text only')
    assert caught.value.filename is None


def test_a_folder_that_may_not_be_written_is_found_before_the_work(open_folder):
    def work():
        check_writable(open_folder / 'new' / 'file')
        os.chmod(open_folder, 0o500)
        with pytest.raises(PermissionError, match='new/file'):
            check_writable(open_folder / 'new' / 'file')
        os.chmod(open_folder, 0o700)

    as_a_normal_user(work)


def test_a_read_only_file_system_is_named():
    with pytest.raises(OSError, match='proc') as caught:
        check_writable(Path('/proc/1/new'))
    assert caught.value.errno in (errno.EROFS, errno.EACCES)


def test_only_one_process_works_in_a_locked_folder(tmp_path):
    with locked(tmp_path):
        with pytest.raises(BlockingIOError, match='another process writes'), locked(tmp_path):
            pass
        with locked(tmp_path.parent):
            pass
    with locked(tmp_path):
        pass


def test_the_slower_of_two_folders_is_refused(tmp_path, monkeypatch):
    """The name was taken between the last check and the rename."""
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').write_text('mine')
    fsync = os.fsync

    def taken(descriptor):
        fsync(descriptor)
        (tmp_path / 'name').mkdir(exist_ok=True)
        (tmp_path / 'name' / 'file').write_text('theirs')

    monkeypatch.setattr(os, 'fsync', taken)
    with pytest.raises(FileExistsError, match='name: expected a path that does not exist'):
        move_folder(tmp_path / 'mine', tmp_path / 'name')
    monkeypatch.undo()
    assert (tmp_path / 'name' / 'file').read_text() == 'theirs'
    assert (tmp_path / 'mine' / 'file').read_text() == 'mine'
