# SPDX-License-Identifier: Apache-2.0
"""What stands in the report page, read without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import HORIZON, judged, write_report

from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.page import data
from safe_training.reporting.page.videos import page_videos


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text('utf-8'), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


class Table(HTMLParser):
    """Reads the rows of the table of a page with this caption, and every tag of the page."""

    def __init__(self, page: Path, caption: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self._caption, self._in_caption = caption, False
        self._in_cell = self._wanted = False
        self.feed(page.read_text('utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_caption = tag == 'caption'
        if tag == 'tr' and self._wanted:
            self.rows.append([])
        if tag in ('td', 'th') and self._wanted:
            self.rows[-1].append('')
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == 'table':
            self._wanted = False
        self._in_cell &= tag not in ('td', 'th')

    def handle_data(self, data: str) -> None:
        if self._in_caption:
            self._wanted = data == self._caption
        elif self._in_cell:
            self.rows[-1][-1] += data


def test_the_table_per_task_counts_what_became_of_its_rollouts(tmp_path):
    rising = [0.1, 0.4, 0.6, 0.9]  # above 0.5 from step 2 of 4
    entries = [
        judged('a', rising, failed=True, task='lift', part='seen'),
        judged('b', [0.1, 0.4, 0.45, 0.5], failed=True, task='lift', part='seen'),
        judged('c', rising[:3], task='lift', part='seen'),
        judged('d', [0.1, 0.2, 0.3], task='lift', part='seen'),
        judged('e', [0.1, 0.2], task='lift', part='unseen'),
        judged('f', rising, failed=True, task='a push', part='unseen'),
    ]
    table = Table(write_report(tmp_path / 'page.html', entries), 'Per task')
    early = ['found early', 'clock early', 'steps saved', 'over clock']
    rates = ['failures', 'successes', 'AUC', 'false alarms', 'detected', 'T_det']
    header = ['task', 'part', *early, *rates]
    lift = ['50.0 (1 of 2)', '50.0', '1.0', '-0.5']
    assert table.rows == [
        header,
        # By the earliest stop of the task, step 2, three of its rollouts look the same.
        ['lift', 'seen', *lift, '2', '2', '75.0', '50.0 (1 of 2)', '50.0 (1 of 2)', '75.0'],
        # Without a success, no failure of the task can be found early.
        ['a push', 'unseen', '-', '-', '2.0', '0.0', '1', '0', '-', '-', '100.0 (1 of 1)', '50.0'],
        ['lift', 'unseen', '-', '-', '-', '-', '0', '1', '-', '0.0 (0 of 1)', '-', '-'],
    ]


def test_the_page_begins_with_what_is_found_early(tmp_path):
    rising = [0.1, 0.4, 0.6, 0.9]
    entries = [
        judged('a', rising, failed=True, task='lift', part='unseen'),
        judged('b', [0.1, 0.2, 0.3], task='lift', part='unseen'),
        judged('c', rising, failed=True, task='a push', part='unseen'),
    ]
    text = write_report(tmp_path / 'page.html', entries).read_text('utf-8')
    first = text.index('Part unseen: 100.0 % of 1 failures are found before a median success')
    assert first < text.index('<table')
    assert 'A clock with the same false-alarm rate (0.0 %) finds 0.0 %' in text
    assert '1 failures of tasks without a success are left out' in text


@pytest.mark.parametrize(
    'name',
    [
        '</script><img src=x onerror=alert(1)>',
        '</th></table></details><script>alert(1)</script>',
        '{{script}} {{data}}',
        '" onmouseover="alert(1)',
        '&lt;b&gt;',
    ],
)
def test_a_hostile_task_stays_a_name(tmp_path, name):
    harmless = Table(write_report(tmp_path / 'a.html', [judged('e', [0.1])]), 'Per task')
    hostile = Table(write_report(tmp_path / 'b.html', [judged('e', [0.1], task=name)]), 'Per task')
    assert hostile.tags == harmless.tags
    assert [row[0] for row in hostile.rows] == ['task', name]


def test_many_tasks_are_folded_and_few_are_not(tmp_path):
    for count, folded in ((3, False), (40, True)):
        entries = [judged(f'e{k}', [0.1], task=f'task {k}') for k in range(count)]
        text = write_report(tmp_path / 'page.html', entries).read_text('utf-8')
        assert ('<details class="tasks" open>' in text) != folded
        assert f'Per task ({count} rows)' in text


def test_each_rollout_names_its_own_band_and_each_band_is_written_once(tmp_path):
    entries = [
        judged(f'e{k}', [0.1, 0.5], task=('low', 'high')[k % 2], edge=(0.3, 0.7)[k % 2])
        for k in range(40)
    ]
    data = data_of(write_report(tmp_path / 'page.html', entries))
    assert data['bands'] == [[0.3, 0.3], [0.7, 0.7]]
    assert [r['band'] for r in data['rollouts']] == [0, 1] * 20
    assert {(r['task'], r['verdict']) for r in data['rollouts']} == {
        ('low', 'false alarm'),
        ('high', 'quiet'),
    }


def test_the_tables_count_the_alarms_of_each_rollouts_own_band(tmp_path):
    # Under the folder's one band (0.5) both would be false alarms.
    entries = [
        judged(edge_of, [0.6], task=edge_of, edge=edge)
        for edge_of, edge in (('low', 0.3), ('high', 0.7))
    ]
    text = write_report(tmp_path / 'page.html', entries).read_text('utf-8')
    assert '1 of 2' in text and '2 of 2' not in text


@pytest.mark.parametrize('longest', [2, HORIZON])
def test_the_axis_of_the_small_curves_holds_every_band(tmp_path, longest):
    edges = [np.full(HORIZON, np.inf), np.linspace(3.0, 1.0, HORIZON)]
    entries = [judged(str(k), [0.5] * longest, edge=edge) for k, edge in enumerate(edges)]
    data = data_of(write_report(tmp_path / 'page.html', entries))
    assert data['high'] == 3.0 and data['low'] == 0.0
    assert data['bands'][0] == [None] * longest


def many(count: int) -> list[ScoredRollout]:
    """Return quiet successes with a miss, a false alarm and a detection among them."""
    entries = [judged(f'quiet {number}', [0.1, 0.2]) for number in range(count - 3)]
    entries.insert(2, judged('detection', [0.1, 0.9], failed=True))
    entries.insert(5, judged('false alarm', [0.1, 0.9]))
    entries.append(judged('miss', [0.1, 0.2], failed=True))
    return entries


@pytest.mark.parametrize(
    ('most_rollouts', 'most_scores', 'listed'),
    [
        (99, 99, None),
        (4, 99, ['quiet 0', 'detection', 'false alarm', 'miss']),
        (2, 99, ['false alarm', 'miss']),
        (99, 5, ['false alarm', 'miss']),
        (99, 1, ['miss']),
    ],
)
def test_a_page_of_many_rollouts_lists_those_that_matter_most(
    tmp_path, monkeypatch, most_rollouts, most_scores, listed
):
    monkeypatch.setattr(data, 'MOST_ROLLOUTS', most_rollouts)
    monkeypatch.setattr(data, 'MOST_SCORES', most_scores)
    entries = many(12)
    page = write_report(tmp_path / 'page.html', entries)
    found = [entry['id'] for entry in data_of(page)['rollouts']]
    text = page.read_text('utf-8')
    assert 'on 12 rollouts' in text  # tables and summary are about all
    if listed is None:
        assert found == [entry.episode_id for entry in entries]
        assert 'are listed' not in text
        return
    assert found == listed
    assert f'Only {len(listed)} of 12 rollouts are listed' in text
    assert f'The other {12 - len(listed)} are left out of this list' in text


def test_a_video_of_two_rollouts_is_left_out_if_one_of_them_is_not_listed(tmp_path):
    (tmp_path / 'videos').mkdir()
    (tmp_path / 'videos' / 'same.mp4').write_bytes(b'x')
    entries = many(4)
    for entry in entries:
        entry.required_rollout.video = 'same.mp4'
    listed = entries[:1]
    assert page_videos(entries, tmp_path / 'videos', tmp_path / 'page.html', 9, listed) == {}
    alone = page_videos(listed, tmp_path / 'videos', tmp_path / 'page.html', 9, listed)
    assert list(alone) == [listed[0].episode_id]
