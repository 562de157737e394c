# SPDX-License-Identifier: Apache-2.0
"""Makes the pictures of a report page in ``docs/images``: its tables, and its list of rollouts.

``python test/browser/report_pictures.py report.html docs/images`` needs Chromium. The page comes
from ``python -m safe_training report``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from chromium import Chromium, find_chromium
from robot_pictures import make_small

WIDTH = 1120
CHOOSE = """
const verdict = document.querySelector('#filter-verdict');
const part = document.querySelector('#filter-part');
verdict.value = 'detection'; part.value = 'unseen';
for (const filter of [part, verdict]) filter.dispatchEvent(new Event('input', {bubbles: true}));
for (const filter of [part, verdict]) filter.dispatchEvent(new Event('change', {bubbles: true}));
"""


def photograph(page: Path, executable: str, folder: Path) -> None:
    """Write ``report.png``, the top of the page, and ``report_rollouts.png``, one rollout."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(executable, Path(profile))
        try:
            browser.look(WIDTH, 900)
            browser.open(page)
            top = "Math.round(document.querySelector('#rollouts').getBoundingClientRect().top)"
            browser.look(WIDTH, min(1100, int(browser.evaluate(top))))
            browser.screenshot(folder / 'report.png')
            browser.look(WIDTH, 800)
            browser.evaluate(CHOOSE)
            browser.evaluate("document.querySelector('#rollouts').scrollIntoView()")
            browser.wait("document.querySelector('#chart svg')")
            browser.screenshot(folder / 'report_rollouts.png')
        finally:
            browser.close()
    for name in ('report', 'report_rollouts'):
        make_small(folder / f'{name}.png')


def main(page: Path, folder: Path) -> int:
    """Write the pictures and return the exit status."""
    executable = find_chromium()
    if executable is None:
        print('report_pictures: expected Chromium, found none', file=sys.stderr)
        return 1
    photograph(page, executable, folder)
    return 0


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
