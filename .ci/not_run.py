# SPDX-License-Identifier: Apache-2.0
"""Prints one line for each reason why tests were not run, from the JUnit file of pytest."""

import ast
import os
import sys
from collections import Counter
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


def not_run(results: Path) -> list[str]:
    """Return one line for each kind of thing and reason, the most frequent first."""
    elements = ElementTree.parse(results).getroot().iter('skipped')
    counts = Counter(
        reason_of(element) for element in elements if element.get('type') != 'pytest.xfail'
    )
    return [
        f'not run: {count} {kind}{"s" if count > 1 else ""}: '
        + (' '.join(reason.split()) or 'no reason is given')
        for (kind, reason), count in counts.most_common()
    ]


def main() -> None:
    """Print the lines for the JUnit file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit('usage: not_run.py JUNIT_XML')
    try:
        lines = not_run(Path(sys.argv[1]))
    except (OSError, ElementTree.ParseError) as error:
        sys.exit(f'not_run.py: {sys.argv[1]}: expected a JUnit file of pytest, found: {error}')
    python, distribution = sys.version_info[:2], os.environ.get('SAFE_ROS_DISTRO', 'this one')
    print(
        *(lines or ['no test was skipped']),
        f'not run: tests with a Python other than {python[0]}.{python[1]} or a ROS 2 other than '
        f'{distribution}: .github/workflows/ci.yml runs them',
        sep='\n',
    )


if __name__ == '__main__':
    main()
