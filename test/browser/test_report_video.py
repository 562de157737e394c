# SPDX-License-Identifier: Apache-2.0
"""In a real Chromium, moving a rollout's step moves its video, and moving the video its step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium
from report_pages import judged, write_report

from safe_training.reporting.page.videos import page_videos

STEPS, RATE = 12, 10
ALARM = 6  # first step of a score rising from 0 to 1 that is above 0.5
# Each video in seconds at which its steps begin: three actions a step at 10 frames a second, and
# observations that came when they came.
STARTS = {
    'chunks': [0.3 * k for k in range(STEPS)],
    'stamps': [0.0, 0.2, 0.3, 0.8, 0.9, 1.0, 1.5, 1.6, 1.9, 2.1, 2.6, 2.7],
}
SECONDS = {'chunks': 3.6, 'stamps': 3.0}

SHADE = """(() => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d');
  context.drawImage(document.querySelector('#video'), 0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data[0];
})()"""


def write_video(path: Path, starts: list[float], seconds: float) -> None:
    """Write a video whose shade tells the step, in a codec that every browser plays."""
    cv2 = pytest.importorskip('cv2')
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'vp09'), RATE, (64, 48))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no VP9')
    for frame in range(round(seconds * RATE)):
        step = np.searchsorted(starts, frame / RATE + 1e-6, side='right') - 1
        writer.write(np.full((48, 64, 3), shade_of(int(step)), dtype=np.uint8))
    writer.release()


def shade_of(step: int) -> int:
    return 20 + 18 * step


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two pages about rollouts with videos: held, and read beside it."""
    folder = tmp_path_factory.mktemp('videos')
    rising = np.linspace(0, 1, STEPS).tolist()
    entries = [
        judged('chunks', rising, failed=True, exec_horizon=3),
        judged('stamps', rising, failed=True, stamps=STARTS['stamps']),
        judged('sparse', rising),
        judged('without', rising[:5]),
    ]
    for name, starts in STARTS.items():
        write_video(folder / f'{name}.mp4', starts, SECONDS[name])
    write_video(folder / 'sparse.mp4', [0.1 * k for k in range(STEPS // 2)], 0.1 * STEPS / 2)
    for name, held in (('held', 1 << 20), ('beside', 0)):
        page = folder / f'{name}.html'
        write_report(page, entries, page_videos(entries, folder, page, held))
    return folder


class Page:
    """The page as a person uses it: by mouse, by keys and by the controls of the video."""

    def __init__(self, browser: Chromium, path: Path, rollout: str) -> None:
        self.browser, self.rollout = browser, rollout
        browser.open(path)
        browser.evaluate('document.querySelector("#list").focus()')
        for _ in range([*STARTS, 'sparse'].index(rollout)):
            browser.press('ArrowDown', 40)
        browser.wait(f'document.querySelector("#name").textContent === "{rollout}"')
        browser.wait('video.readyState >= 2 && !video.seeking')

    def step_of(self, time: float) -> int:
        """Return which step the video shows at a time."""
        return int(np.searchsorted(STARTS[self.rollout], time + 1e-4, side='right')) - 1

    def video_reaches(self, step: int) -> None:
        """Wait for the video to show a step, and for the rest of the page to stay at it."""
        starts = [*STARTS[self.rollout], SECONDS[self.rollout]]
        self.browser.wait(
            f'!video.seeking && video.currentTime >= {starts[step] - 1e-4}'
            f' && video.currentTime < {starts[step + 1]}'
        )
        self.curve_reaches(step)

    def curve_reaches(self, step: int) -> None:
        """Wait for slider, words and cursor to be at a step."""
        self.browser.wait(f'document.querySelector("#step").value === "{step}"')
        reading = self.browser.evaluate('document.querySelector("#reading").textContent')
        assert reading.startswith(f'step {step} of {STEPS}:')
        assert self.browser.evaluate('video.classList.contains("alarm")') == (step >= ALARM)
        dot, line = self.browser.evaluate(
            '[".cursor-dot", ".past"].map((name) => {'
            ' const box = document.querySelector(name).getBoundingClientRect();'
            ' return box.left + box.width / 2; })'
        )
        assert dot == pytest.approx(self.place(step)[0], abs=1.0)
        assert line == pytest.approx(dot, abs=1.0)

    def place(self, step: float) -> tuple[float, float]:
        """Return where on the screen a step of the curve is: between the axis and the end."""
        first, last, y = self.browser.evaluate(
            '(() => { const box = document.querySelector(".score").getBoundingClientRect();'
            ' return [box.left, box.right, box.top + box.height / 2]; })()'
        )
        return first + (last - first) * step / (STEPS - 1), y

    def play(self) -> None:
        assert self.browser.evaluate('video.play().then(() => true)')


@pytest.fixture(params=['held', 'beside'])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize('rollout', STARTS)
def test_the_slider_moves_the_video(browser, made, where, rollout):
    page = Page(browser, made / f'{where}.html', rollout)
    browser.evaluate('document.querySelector("#step").focus()')
    for step in range(1, STEPS):
        browser.press('ArrowRight', 39)
        page.video_reaches(step)
    browser.press('Home', 36)
    page.video_reaches(0)
    browser.press('End', 35)
    page.video_reaches(STEPS - 1)
    browser.press('ArrowLeft', 37)
    page.video_reaches(STEPS - 2)
    assert browser.complaints() == []


@pytest.mark.parametrize('rollout', STARTS)
def test_the_picture_is_that_of_the_step(browser, made, rollout):
    page = Page(browser, made / 'held.html', rollout)
    browser.evaluate('document.querySelector("#step").focus()')
    for step in range(1, STEPS):
        browser.press('ArrowRight', 39)
        page.video_reaches(step)
        assert browser.evaluate(SHADE) == pytest.approx(shade_of(step), abs=8)


@pytest.mark.parametrize('rollout', STARTS)
def test_a_click_on_the_curve_moves_the_video(browser, made, rollout):
    page = Page(browser, made / 'held.html', rollout)
    for place, step in ((7.3, 7), (1.7, 2), (11, 11), (0.2, 0)):
        browser.click(*page.place(place))
        page.video_reaches(step)


def test_steps_without_a_frame_of_their_own_can_be_chosen(browser, made):
    page = Page(browser, made / 'held.html', 'sparse')
    browser.evaluate('document.querySelector("#step").focus()')
    for step in range(1, STEPS):
        browser.press('ArrowRight', 39)
        browser.wait('!video.seeking')
        page.curve_reaches(step)
    assert browser.evaluate('video.currentTime') == pytest.approx(0.6, abs=0.05)


def test_dragging_over_the_curve_leaves_the_video_where_it_ended(browser, made):
    page = Page(browser, made / 'held.html', 'stamps')
    browser.drag([page.place(step) for step in (1, 4, 9, 6)])
    page.video_reaches(6)


@pytest.mark.parametrize('rollout', STARTS)
def test_seeking_the_video_moves_the_curve(browser, made, where, rollout):
    page = Page(browser, made / f'{where}.html', rollout)
    for time in (1.0, 0.25, SECONDS[rollout] - 0.05, 0.0):
        browser.evaluate(f'video.currentTime = {time}')
        page.curve_reaches(page.step_of(time))


def test_a_seek_that_overtakes_one_of_the_page_is_followed(browser, made):
    page = Page(browser, made / 'held.html', 'chunks')
    browser.evaluate(
        'const slider = document.querySelector("#step"); slider.value = 9;'
        'slider.dispatchEvent(new Event("input")); video.currentTime = 1.0'
    )
    page.curve_reaches(page.step_of(1.0))
    browser.wait('!video.seeking')
    assert browser.evaluate('video.currentTime') == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize('rollout', STARTS)
def test_playing_moves_the_curve_with_the_video(browser, made, rollout):
    page = Page(browser, made / 'held.html', rollout)
    browser.evaluate(
        'window.seen = []; video.addEventListener("timeupdate", () => setTimeout(() =>'
        ' seen.push([video.currentTime, Number(document.querySelector("#step").value)])))'
    )
    page.play()
    browser.wait('video.ended')
    page.curve_reaches(STEPS - 1)
    seen = browser.evaluate('seen')
    assert len({step for _, step in seen}) > STEPS // 2
    for time, step in seen:
        # The time is read after the step, and the picture may have gone on by then.
        assert page.step_of(time - 0.1) <= step <= page.step_of(time)


def test_a_step_chosen_while_the_video_plays_is_played_from(browser, made):
    page = Page(browser, made / 'held.html', 'chunks')
    page.play()
    browser.click(*page.place(8))
    browser.wait('!video.seeking && video.currentTime > 2.5')
    browser.evaluate('video.pause()')
    page.curve_reaches(page.step_of(browser.evaluate('video.currentTime')))


def test_another_rollout_starts_at_its_own_first_step(browser, made):
    page = Page(browser, made / 'held.html', 'chunks')
    browser.click(*page.place(8))
    page.video_reaches(8)
    browser.evaluate('document.querySelector("#list").focus()')
    browser.press('ArrowDown', 40)
    browser.wait('video.readyState >= 2 && !video.seeking')
    page.rollout = 'stamps'
    page.video_reaches(0)
    browser.press('End', 35)
    browser.wait('document.querySelector("#video-box").hidden')
    assert browser.evaluate('document.querySelector("#step").max') == '4'
    assert browser.complaints() == []
