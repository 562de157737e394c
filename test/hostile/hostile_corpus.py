# SPDX-License-Identifier: Apache-2.0
"""Files that were made to harm whoever reads them; generated, so that none lies in the repository.

``PYTHONPATH=test/support python test/hostile/hostile_corpus.py FOLDER`` writes them all, to be
tried on other readers too. Each case is a function of a folder of its own and of good files to
damage; it returns what to read and which file must be named in the refusal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hostile_sets  # noqa: F401  (adds its cases)
from hostile_cases import CASES, Bad, Good, case, make_good
from hostile_pickles import npz
from hostile_recordings import changed_db3


@case
def empty_folder(folder: Path, good: Good) -> Bad:
    (folder / 'nothing').mkdir()
    return Bad(folder / 'nothing', 'nothing')


@case
def pipe(folder: Path, good: Good) -> Bad:
    os.mkfifo(folder / 'run.mcap')
    return Bad(folder / 'run.mcap', 'run.mcap')


@case
def picture_renamed_to_db3(folder: Path, good: Good) -> Bad:
    return changed_db3(folder, good, lambda data: b'\x89PNG\r\n\x1a\n' + bytes(500))


@case
def dump_renamed_to_npz(folder: Path, good: Good) -> Bad:
    return npz(folder, good, sorted(good.dump.glob('*.pkl'))[0].read_bytes())


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: hostile_corpus.py FOLDER')
    target = Path(sys.argv[1])
    examples = make_good(target / 'good')
    for title, make in CASES.items():
        (target / title).mkdir()
        print(title, make(target / title, examples).path)
