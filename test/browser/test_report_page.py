# SPDX-License-Identifier: Apache-2.0
"""The report page in a real Chromium: self-contained, safe with any name, usable by keyboard."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium
from report_pages import judged, write_report
from rollout_factory import make_rollout

from safe_training.cli.main import main
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

HOSTILE = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)>'
WIDTH = 6


def rollouts() -> list[Rollout]:
    """Return rollouts of three tasks, one with a hostile name; failures drift."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(60):
        failed, steps = index % 4 == 0, 12 if index % 4 == 0 else int(generator.integers(5, 10))
        features = generator.normal(size=(steps, WIDTH)).astype(np.float32)
        features[:, 0] += failed * np.linspace(1, 5, steps)
        made.append(
            make_rollout(
                index,
                features=features,
                task=('lift', 'open & close', HOSTILE)[index % 3],
                success=not failed,
                episode_id=f'episode {index} {HOSTILE if index == 5 else ""}',
                feature_name=str(FeatureSpec('state', WIDTH)),
                failure_step=6 if failed else None,
                video='lift.mp4' if index == 0 else '',
            )
        )
    return made


def write_video(path: Path, frames: int) -> None:
    """Write a small video whose frames differ."""
    cv2 = pytest.importorskip('cv2')
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 255 * i // frames, dtype=np.uint8))
    writer.release()


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a set, a detector, a video and the report about them."""
    folder = tmp_path_factory.mktemp('report')
    with RolloutSetWriter(folder / 'set', FeatureSpec('state', WIDTH)) as writer:
        for rollout in rollouts():
            writer.add(rollout)
    fit = ['fit', str(folder / 'set'), '--detector', 'safe_mlp', '--out', str(folder / 'detector')]
    assert main([*fit, '--param', 'epochs=30', '--param', 'hidden=8', '--alpha', '0.2']) == 0
    (folder / 'videos').mkdir()
    write_video(folder / 'videos' / 'lift.mp4', 12)
    report = ['report', str(folder / 'set'), str(folder / 'detector')]
    report += ['--videos', str(folder / 'videos'), '--out', str(folder / 'report.html')]
    assert main(report) == 0
    return folder


@pytest.fixture
def browser(browser: Chromium, made: Path) -> Chromium:
    """Return the browser with the report opened."""
    browser.open(made / 'report.html')
    return browser


def test_the_page_asks_for_nothing_and_reports_no_error(browser: Chromium, made: Path):
    addresses = [a for a in browser.requests() if not a.startswith(('data:', 'blob:'))]
    assert addresses == [(made / 'report.html').as_uri()]
    assert browser.complaints() == []


def test_names_are_shown_and_never_run(browser: Chromium):
    assert browser.evaluate('document.title') != 'broken'
    assert browser.evaluate('document.querySelectorAll("img[onerror]").length') == 0
    tasks = browser.evaluate(
        '[...document.querySelectorAll("#filter-task option")].map(o => o.textContent)'
    )
    assert HOSTILE in tasks
    rows = browser.evaluate(
        '[...document.querySelectorAll(".tasks th[scope=row]")].map(name => name.textContent)'
    )
    assert HOSTILE in rows


def test_filters_leave_what_they_say(browser: Chromium):
    assert browser.evaluate('document.querySelector("#count").textContent').startswith('60 of 60')
    browser.evaluate(
        'const f = document.querySelector("#filter-outcome");'
        'f.value = "failure"; f.dispatchEvent(new Event("input", {bubbles: true}))'
    )
    browser.wait('document.querySelector("#count").textContent.startsWith("15 of 60")')


def test_arrow_keys_choose_a_rollout_and_the_slider_reads_its_steps(browser: Chromium):
    name = 'document.querySelector("#name").textContent'
    browser.evaluate('document.querySelector("#list").focus()')
    before = browser.evaluate(name)
    browser.press('ArrowDown', 40)
    browser.wait(f'{name} !== {json.dumps(before)}')
    browser.evaluate('document.querySelector("#step").focus()')
    reading = browser.evaluate('document.querySelector("#reading").textContent')
    browser.press('ArrowRight', 39)
    browser.wait(f'document.querySelector("#reading").textContent !== {json.dumps(reading)}')
    assert 'step 1 of' in browser.evaluate('document.querySelector("#reading").textContent')


def test_the_keys_of_the_list_reach_its_ends_and_pages(browser: Chromium):
    chosen = 'document.querySelector(".row[aria-selected=true]").getAttribute("aria-posinset")'
    browser.evaluate('document.querySelector("#list").focus()')
    for key, code, place in (
        ('End', 35, 60), ('ArrowDown', 40, 60), ('PageUp', 33, 50), ('ArrowUp', 38, 49),
        ('Home', 36, 1), ('ArrowUp', 38, 1), ('PageDown', 34, 11),
    ):  # fmt: skip
        browser.press(key, code)
        browser.wait(f'{chosen} === "{place}"')
        assert browser.evaluate(
            '(() => { const box = (e) => e.getBoundingClientRect();'
            ' const row = box(document.querySelector(".row[aria-selected=true]"));'
            ' const list = box(document.querySelector("#list"));'
            ' return row.top >= list.top - 1 && row.bottom <= list.bottom + 1; })()'
        ), f'after {key} the chosen rollout is out of sight'


def test_a_video_stands_in_the_page_itself(browser: Chromium, made: Path):
    browser.evaluate(
        'const f = document.querySelector("#filter-video");'
        'f.value = "with"; f.dispatchEvent(new Event("input", {bubbles: true}))'
    )
    browser.wait('document.querySelector("#count").textContent.startsWith("1 of 60")')
    encoded = base64.b64encode((made / 'videos' / 'lift.mp4').read_bytes()).decode()
    assert encoded[:60] in (made / 'report.html').read_text(encoding='utf-8')


def test_each_rollout_is_drawn_under_its_own_band(browser: Chromium, tmp_path: Path):
    scores = [0.1, 0.6, 0.2, 1.0]
    entries = [
        judged('strict', scores, task='a', edge=0.3),
        judged('lax', scores, task='b', edge=[np.inf, np.inf, 0.8, 0.8]),
    ]
    browser.open(write_report(tmp_path / 'page.html', entries))
    browser.evaluate('document.querySelector("#list").focus()')
    curve = (
        '[document.querySelector("#reading").textContent,'
        ' document.querySelector(".band-line").getBBox().width]'
    )
    reading, width = browser.evaluate(curve)
    assert 'band 0.3' in reading
    browser.press('ArrowDown', 40)
    browser.wait('document.querySelector("#name").textContent === "lax"')
    reading, shorter = browser.evaluate(curve)
    assert 'band none' in reading
    assert shorter == pytest.approx(width / 3, rel=0.01), 'the band is finite at the end only'
    browser.wait('document.querySelectorAll("canvas[data-drawn]").length === 2')
    assert browser.complaints() == []
