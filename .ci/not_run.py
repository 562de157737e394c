# SPDX-License-Identifier: Apache-2.0
"""Prints one line for each reason why tests were not run, from the JUnit files of pytest."""

import ast
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree


def reason_of(skipped: ElementTree.Element) -> tuple[str, str]:
    """Return what a ``skipped`` element stands for ('test' or 'module'), and why it was skipped."""
    message = skipped.get('message', '')
    if message != 'collection skipped':
        return 'test', message
    # A whole module: pytest writes the place and the reason as a Python tuple into the text.
    try:
        message = str(ast.literal_eval(skipped.text or '')[-1])
    except (IndexError, SyntaxError, TypeError, ValueError):
        message = skipped.text or ''
    return 'module', message.removeprefix('Skipped: ')


def not_run(files: Sequence[Path]) -> list[str]:
    """Return one line for each kind of thing and reason, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    modules = set()
    for file in files:
        for case in ElementTree.parse(file).getroot().iter('testcase'):
            for skipped in case.iter('skipped'):
                if skipped.get('type') == 'pytest.xfail':
                    continue
                kind, reason = reason_of(skipped)
                name = (case.get('classname'), case.get('name'))
                # Each run of pytest collects all modules.
                if kind == 'test' or name not in modules:
                    counts[kind, reason] += 1
                if kind == 'module':
                    modules.add(name)
    return [
        f'not run: {count} {kind}{"s" if count > 1 else ""}: '
        + (' '.join(reason.split()) or 'no reason is given')
        for (kind, reason), count in counts.most_common()
    ]


def main() -> None:
    """Print the lines for the JUnit files that the command line names."""
    files = [Path(name) for name in sys.argv[1:]]
    if not files:
        sys.exit('usage: not_run.py JUNIT_XML ...')
    for file in files:
        try:
            ElementTree.parse(file)
        except (OSError, ElementTree.ParseError) as error:
            sys.exit(f'not_run.py: {file}: expected a JUnit file of pytest, found: {error}')
    lines = not_run(files)
    python, distribution = sys.version_info[:2], os.environ.get('SAFE_ROS_DISTRO', 'this one')
    print(
        *(lines or ['no test was skipped']),
        f'not run: tests with a Python other than {python[0]}.{python[1]} or a ROS 2 other than '
        f'{distribution}: .github/workflows/ci.yml runs them',
        sep='\n',
    )


if __name__ == '__main__':
    main()
