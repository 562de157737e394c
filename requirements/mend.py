# SPDX-License-Identifier: Apache-2.0
"""Repairs a virtual environment for ./dev: removes incomplete packages, corrects paths of wheels.

It runs with the Python of the environment and needs only the standard library, because other
packages may be broken. It deletes files, so it refuses folders that are not a virtual environment
of ./dev.
"""

import csv
import re
import shutil
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_paths()['purelib'])
SHARE = Path(sys.prefix) / 'share'


def is_whole(dist_info: Path) -> bool:
    """Return True if every file in the RECORD of a distribution exists with its full size.

    pip writes RECORD last, so a distribution without one was interrupted while it was being
    unpacked. A file that is longer than recorded was edited by a user (for example company
    certificates) and is kept. Files below ``share`` may have any size: :func:`repair_paths` edits
    them.
    """
    record = dist_info / 'RECORD'
    if not (record.is_file() and (dist_info / 'METADATA').is_file()):
        return False
    with record.open(newline='', encoding='utf-8') as lines:
        for name, _, size in csv.reader(lines):
            path = SITE / name
            if name.endswith('.pyc'):
                continue
            if not path.exists():
                return False
            if size and '/share/' not in name and path.stat().st_size < int(size):
                return False
    return True


def forget_broken() -> list[str]:
    """Remove the metadata of every incomplete distribution.

    pip then installs the distribution again.

    Returns the names of the metadata folders that were removed.
    """
    for leftover in SITE.glob('~*'):  # pip renames packages before it removes them
        shutil.rmtree(leftover, ignore_errors=True)
    broken = [info for info in sorted(SITE.glob('*.dist-info')) if not is_whole(info)]
    for info in broken:
        shutil.rmtree(info)
    return [info.name for info in broken]


def repair_paths() -> int:
    """Replace the include folders of the build machine by those folders of this machine.

    This changes the files below ``share``.

    Without this change, CMake refuses the imported targets of every message package. Returns the
    number of files changed.
    """
    python = re.compile(rb'/opt/python/cp\d+-cp\d+/include/python3\.\d+')
    numpy = re.compile(
        rb'/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/_core/include'
    )
    python_include = sysconfig.get_paths()['include'].encode()
    numpy_include = (SITE / 'numpy' / '_core' / 'include').as_posix().encode()
    changed = 0
    for path in SHARE.rglob('*'):
        if path.is_symlink() or not path.is_file():
            continue
        before = path.read_bytes()
        if b'/opt/python/' not in before:
            continue
        after = python.sub(lambda _: python_include, numpy.sub(lambda _: numpy_include, before))
        if after != before:
            path.write_bytes(after)
            changed += 1
    return changed


if __name__ == '__main__':
    if sys.prefix == sys.base_prefix or not (Path(sys.prefix) / '.made-by-dev').is_file():
        sys.exit(f'mend.py: {sys.prefix} was not made by ./dev; nothing was touched')
    if sys.argv[1:] == ['forget-broken']:
        print('\n'.join(forget_broken()))
    elif sys.argv[1:] == ['repair-paths']:
        print(repair_paths())
    else:
        sys.exit('usage: mend.py forget-broken | repair-paths')
