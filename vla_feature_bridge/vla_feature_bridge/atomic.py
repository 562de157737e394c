# SPDX-License-Identifier: Apache-2.0
"""Files and folders on disk that are written completely or not at all.

New content is first written to a hidden file in the folder of the destination. The hidden file is
flushed to disk (``fsync``) and then renamed. The old content does not change before the rename,
even if an interruption stops the writing. After an error, incomplete files are removed. After the
rename, no function of this module raises an error. The last action flushes the folder that holds
the new name, if the file system allows a flush. All packages of the suite use this module.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

#: Limits the length of the hidden name: a file system allows 255 bytes, and a character can have 4
#: bytes.
_MAX_STEM = 40
_MAX_SUFFIX = 16

#: Errors of file systems that have no fsync, for files or for folders.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
#: Errors of file systems and permissions that do not allow fsync of a folder.
_NO_FOLDER_SYNC = (*_NO_SYNC, errno.EBADF, errno.EACCES, errno.EPERM)


def replace_file(path: Path, data: bytes | str) -> None:
    """Write a file completely or not at all.

    Missing parent folders are made. An existing file keeps its permission bits. A symbolic link is
    kept, and the file that it points to is replaced.

    Parameters
    ----------
    path : Path
    data : bytes or str
        Text is written as UTF-8.

    Raises
    ------
    OSError
        The file cannot be written; an existing one is unchanged.
    """
    replace_files({path: data})


def replace_files(files: Mapping[Path, bytes | str]) -> None:
    """Write several files. If one file cannot be written, no file is changed.

    All files are first written under hidden names and then renamed in the given order. Only an
    interruption between two renames (for example a power failure) can leave a mixture of new and
    old files.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    with ExitStack() as stack:
        # The stack renames all files when it closes, in the reverse order of entering.
        for path, data in reversed(list(files.items())):
            aside = stack.enter_context(replaced_file(path))
            with names_file(path):
                aside.write_bytes(data.encode() if isinstance(data, str) else data)
                if aside.is_file():
                    # A full disk may only be detected here; it must be detected before the first
                    # rename.
                    _sync_file(aside)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; the file gets its name when the block ends without error.

    Use this function for a writer that opens the file itself. The yielded path has the suffix of
    ``path``, because some writers choose their format by the suffix. In all other respects, it
    works like :func:`replace_file`.

    Raises
    ------
    OSError
        The file cannot be written, or the block did not write a file. An existing file is
        unchanged.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f'{path}: expected the name of a file, found a folder')
    if target.exists() and not target.is_file():
        # A device or a pipe, such as /dev/stdout, cannot be replaced; write to it directly.
        yield path
        return
    made = make_folders(target.parent)
    aside = path_aside(target)
    try:
        with names_file(path):
            yield aside
            _sync_file(aside)
        if target.exists():
            aside.chmod(stat.S_IMODE(target.stat().st_mode))
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        remove_empty(made)
        raise
    _sync_renamed(target)


@contextmanager
def replaced_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it gets its name when the block ends without error.

    Missing parent folders are made.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Replace an existing folder. It keeps its permission bits. A symbolic link is kept, and the
        folder that it points to is replaced.

    Raises
    ------
    FileExistsError
        The path exists, and ``overwrite`` is false or the path is not a folder.
    OSError
        The folder cannot be written; an existing one is unchanged.
    """
    target = _folder_target(path, overwrite)
    made = make_folders(target.parent)
    aside = path_aside(target)
    try:
        aside.mkdir()
        with names_file(path):
            yield aside
        move_folder(aside, path, overwrite=overwrite)
    except BaseException:
        _remove(aside)
        remove_empty(made)
        raise


def move_folder(folder: Path, path: Path, *, overwrite: bool = False) -> None:
    """Flush a folder and its content to disk, then rename it.

    Parameters
    ----------
    folder : Path
        On the same file system as ``path``.
    path, overwrite
        As in :func:`replaced_folder`.

    Raises
    ------
    OSError
        As in :func:`replaced_folder`; ``folder`` and an existing ``path`` are unchanged.
    """
    target = _folder_target(path, overwrite)
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync_file(Path(parent, name))
        _sync_folder(Path(parent))
    if not (overwrite and target.exists()):
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise _exists(path) from error  # Another process was faster.
        _sync_renamed(target)
        return
    folder.chmod(stat.S_IMODE(target.stat().st_mode))
    old = path_aside(target)
    os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        os.rename(old, target)
        raise
    _sync_renamed(target)
    _remove(old)


def check_writable(path: Path) -> None:
    """Check, before long work begins, that a file or folder can be written at a path.

    The later write can still fail, for example because the disk becomes full.

    Raises
    ------
    OSError
        The file system is read-only, or the permissions do not allow writing.
    """
    target = Path(os.path.realpath(path))
    folder = next(parent for parent in target.parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code), str(path))


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Add the name of the file to an error of the operating system that has no file name.

    For example, the error of a full disk has no file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Let only one process work in a folder while the block runs.

    Only processes that use this function are blocked. If the file system has no locks, no process
    is blocked.

    Parameters
    ----------
    folder : Path
        An existing folder.
    wait : bool
        Wait until the other process has finished, for short work.

    Raises
    ------
    BlockingIOError
        Another process works in the folder, and ``wait`` is false.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EWOULDBLOCK, 'another process writes into this folder', str(folder)
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; return the created folders, innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that :func:`make_folders` made; stop at the first folder that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def path_aside(target: Path) -> Path:
    """Return an unused hidden path in the folder of ``target``, with the same suffix.

    A very long suffix is cut, because no writer chooses its format from such a suffix.
    """
    suffix = target.suffix[:_MAX_SUFFIX]
    name = f'.{target.stem[:_MAX_STEM]}.{secrets.token_hex(4)}.partial{suffix}'
    return target.with_name(name)


def _folder_target(path: Path, overwrite: bool) -> Path:
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise FileExistsError(
            f'{path}: expected a folder to overwrite, found a file; choose another path'
        )
    return target


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(
        f'{path}: expected a path that does not exist, found a file or folder; '
        'choose another path, or overwrite the existing file or folder'
    )


def _remove(folder: Path) -> None:
    """Remove a folder, also a read-only folder. If the removal is not allowed, raise nothing."""
    with suppress(OSError):
        folder.chmod(stat.S_IRWXU)
    for parent, names, _ in os.walk(folder):
        for name in names:
            if not os.path.islink(child := Path(parent, name)):
                with suppress(OSError):
                    child.chmod(stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


def _sync_file(path: Path) -> None:
    """Flush the content of a file to disk."""
    try:
        _sync(path, os.O_RDONLY, _NO_SYNC)
    except PermissionError:  # A umask may deny reading to the owner.
        _sync(path, os.O_WRONLY, _NO_SYNC)


def _sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk, if the file system allows it."""
    _sync(folder, os.O_RDONLY, _NO_FOLDER_SYNC)


def _sync_renamed(target: Path) -> None:
    """Flush a new name to disk. Nothing is raised: the rename itself has succeeded."""
    with suppress(OSError):
        _sync_folder(target.parent)


def _sync(path: Path, flags: int, tolerated: tuple[int, ...]) -> None:
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in tolerated:
            raise
