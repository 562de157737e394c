# SPDX-License-Identifier: Apache-2.0
"""``./dev``: its verbs, and what it shows during a long installation or build."""

import re
import subprocess
from pathlib import Path

DEV = Path(__file__).parents[2] / 'dev'
LOG = """\
Collecting torch==2.13.0
  Downloading https://a.place/cpu/torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl (175.1 MB)
  Using cached large-1.0-py3-none-any.whl (1.2 GB)
  Downloading small-1.0-py3-none-any.whl (9.9 MB)
Installing collected packages: torch, large, small
Starting >>> safe_msgs
a line of the compiler
Finished <<< safe_msgs [35.9s]
"""


def dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEV, *arguments], capture_output=True, text=True, timeout=60)


def logged(log: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the function ``logged`` of ``dev``, whose output is no terminal."""
    text = DEV.read_text()
    functions = text[text.index('LARGE_FILE=') : text.index('# Python of the environment, for')]
    script = f'set -euo pipefail\n{functions}\nlogged {log} {command}'
    return subprocess.run(['bash', '-c', script], capture_output=True, text=True, timeout=60)


def test_every_verb_in_the_help_is_known():
    verbs = re.findall(r'^  ([a-z-]+) +(?:\[|[A-Z]{3}|[a-z])', dev('--help').stdout, re.MULTILINE)
    assert {'setup', 'format', 'lint', 'test', 'run'} <= set(verbs)
    main = DEV.read_text().split('\nmain() {')[1]
    for verb in verbs:
        assert re.search(rf'^    (.*\| )?{verb}( \|.*)?\)', main, re.MULTILINE), verb
    refused = dev('formatt')
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        2,
        "dev: expected a verb, found 'formatt'.",
    )


def test_format_takes_no_arguments():
    refused = dev('format', 'one.py')
    assert refused.returncode == 2
    assert 'format: expected no arguments, found: one.py' in refused.stderr


def test_long_work_shows_how_far_it_is(tmp_path):
    (tmp_path / 'output').write_text(LOG)
    done = logged(tmp_path / 'log', f'cat {tmp_path / "output"}')
    assert done.returncode == 0
    assert (tmp_path / 'log').read_text() == LOG
    assert done.stderr.splitlines() == [
        '  Downloading torch-2.13.0+cpu (175.1 MB)',
        '  Using cached large-1.0 (1.2 GB)',
        '  Installing packages: 3',
        '  Starting >>> safe_msgs (takes the longest)',
        '  Finished <<< safe_msgs [35.9s]',
    ]


def test_long_work_that_fails_is_a_failure(tmp_path):
    done = logged(tmp_path / 'log', "bash -c 'echo Installing; exit 3'")
    assert done.returncode != 0
