# SPDX-License-Identifier: Apache-2.0
"""What pages promise: links lead somewhere, the map is whole, pins agree, results have commands."""

import re
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(TOP).as_posix()
    for pattern in ('*.md', '*/README.md', '.github/**/*.md', 'docs/index.md')
    for path in TOP.glob(pattern)
)
DOCS = [path.relative_to(TOP).as_posix() for path in TOP.glob('docs/**/*.md')]


def targets(page: str) -> list[str]:
    """Return the files that a page links to, relative to the top of the checkout."""
    text = (TOP / page).read_text(encoding='utf-8')
    found = re.findall(r'\]\(([^)#\s]+)[^)]*\)', text)
    return [
        (TOP / page).parent.joinpath(target).resolve().relative_to(TOP.resolve()).as_posix()
        for target in found
        if not target.startswith('http')
    ]


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for target in targets(page):
        assert (TOP / target).exists(), f'{page} links to {target}, which does not exist'


def test_every_page_is_on_the_map():
    missing = set(DOCS) - {'docs/index.md'} - set(targets('docs/index.md'))
    assert not missing, f'docs/index.md needs one line for each of {sorted(missing)}'


# A mean with a spread or an interval, a share, a time.
RESULT = re.compile(r'\| *\d[\d.]*(?: ± \d| \([\d.]+ to \d| (?:%|ms|µs)(?:,| \(\d| \|))')
COMMAND = re.compile(r'python -m safe_training \w|\./dev (?:bench|test|demo) ')


@pytest.mark.parametrize('page', sorted({*PAGES, *DOCS}))
def test_the_section_of_a_table_of_results_names_the_command_that_prints_it(page):
    text = (TOP / page).read_text(encoding='utf-8')
    for section in re.split(r'^(?=## )', text, flags=re.MULTILINE):
        rows = re.findall(r'^\|.*$', section, re.MULTILINE)
        found = [row for row in rows if RESULT.search(row)]
        assert not found or COMMAND.search(section), f'{page}: no command prints {found[0]}'


def test_pre_commit_runs_the_ruff_of_the_lint():
    (pinned,) = re.findall(r'^ruff==(\S+)$', (TOP / 'requirements/dev.txt').read_text(), re.M)
    hooks = yaml.safe_load((TOP / '.pre-commit-config.yaml').read_text())['repos']
    (rev,) = [hook['rev'] for hook in hooks if hook['repo'].endswith('/ruff-pre-commit')]
    assert rev == f'v{pinned}', '.pre-commit-config.yaml and requirements/dev.txt differ'


def test_the_extras_of_setup_are_the_extras_of_the_requirements():
    setup = (TOP / 'safe_training/setup.py').read_text()
    pins = dict(
        re.findall(r'^([\w-]+)==([\d.]+)', (TOP / 'requirements/extras.txt').read_text(), re.M)
    )
    for name in ('ray', 'umap-learn'):
        assert name in pins and f"'{name}>=" in setup
