# SPDX-License-Identifier: Apache-2.0
"""What stands in the report page, read without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import HORIZON, judged, write_report


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text('utf-8'), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


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
    entries = [judged('a', [0.6], edge=0.3), judged('b', [0.6], edge=0.7)]
    text = write_report(tmp_path / 'page.html', entries).read_text('utf-8')
    assert '1 of 2' in text and '2 of 2' not in text


@pytest.mark.parametrize('longest', [2, HORIZON])
def test_the_axis_of_the_small_curves_holds_every_band(tmp_path, longest):
    edges = [np.full(HORIZON, np.inf), np.linspace(3.0, 1.0, HORIZON)]
    entries = [judged(str(k), [0.5] * longest, edge=edge) for k, edge in enumerate(edges)]
    data = data_of(write_report(tmp_path / 'page.html', entries))
    assert data['high'] == 3.0 and data['low'] == 0.0
    assert data['bands'][0] == [None] * longest
