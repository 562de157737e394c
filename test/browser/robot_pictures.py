# SPDX-License-Identifier: Apache-2.0
"""Makes the pictures of robots in ``docs/images``: dashboard, terminal, camera image, markers.

``python test/browser/robot_pictures.py docs/images`` needs Chromium and OpenCV. The scores, bands
and alarms are those of a detector that is fitted here on the recorded rollouts of the repository,
and of the alarm state machine of the monitor. RViz does not run without a screen: Matplotlib draws
the message that RViz gets. The rollouts have no camera images: the scene of the overlay is drawn.
"""

from __future__ import annotations

import html
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from chromium import Chromium, find_chromium
from numpy.typing import NDArray
from PIL import Image

import safe_training as st
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.looking.camera_panel import draw
from safe_monitor_node.looking.terminal import Style, table
from safe_monitor_node.looking.web_access import WebAccess
from safe_monitor_node.looking.web_server import DashboardServer
from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.nodes.marker_messages import MarkerPlace, robot_markers
from vla_feature_bridge.rollout import Rollout

TOP = Path(__file__).resolve().parents[2]
ROBOTS = 8
ALARMING = 2
ADVICE_STOP = 2
PERIOD = 1.0
COLOURS = 128
FIRST_STEPS, LIVE_STEPS = 38, 14


def chosen_rollouts() -> tuple[CalibratedDetector, list[Rollout]]:
    """Return a fitted detector, and unseen tasks: one detected failure, else quiet rollouts."""
    rollouts = st.load_rollouts(TOP / 'test' / 'data' / 'miniature_disturbed.npz')
    detector = st.fit('linear_probe', rollouts, st.choose_split(rollouts, split=0))
    judged = st.judge(detector, rollouts).parts['unseen']
    detected = next(r for r in judged if r.outcome == 'detection' and 8 < r.alarm_step < 25)
    quiet = [r for r in judged if r.outcome == 'quiet' and len(r.scores) > 20][: ROBOTS - 1]
    chosen = [*quiet[:ALARMING], detected, *quiet[ALARMING:]]
    return detector, [entry.rollout for entry in chosen]


def episode(
    board: RobotBoard, name: str, detector: CalibratedDetector, rollout: Rollout
) -> Generator[None, float, None]:
    """Score a rollout as the monitor of a robot does; each time that is sent is one step."""
    board.add(name)
    monitor, before = EpisodeMonitor(detector), None
    for t in range(len(rollout)):
        now = yield
        result = monitor.step(rollout.step(t), now)
        assert result is not None
        verdict, of = result.verdict, rollout.episode_id
        state = int(verdict.state)
        score = ScoreSample(
            of, t, result.score, result.threshold, math.nan, state, detector.detector.name
        )
        board.take_score(name, score, now)
        if verdict.state != before:
            advice = ADVICE_STOP if verdict.state == AlarmState.ALARM else 0
            board.take_alarm(name, AlarmSample(of, t, state, advice, verdict.reason))
        before = verdict.state


def play(
    board: RobotBoard, detector: CalibratedDetector, rollouts: Sequence[Rollout]
) -> threading.Thread:
    """Score the first steps at once, and start a thread that scores the others live."""
    episodes = []
    for number, rollout in enumerate(rollouts):
        running = episode(board, f'/robot{number + 1}', detector, rollout)
        next(running)
        first = min(len(rollout), FIRST_STEPS + 2 * number) - LIVE_STEPS
        for t in range(first):
            running.send(time.monotonic() - PERIOD * (first - t))
        episodes.append(running)

    def live() -> None:
        for _ in range(LIVE_STEPS - 1):
            for running in episodes:
                running.send(time.monotonic())
            time.sleep(PERIOD)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    return thread


DESK, PHONE = (1280, 800), (390, 844)
DASHBOARDS = (
    ('dashboard', DESK, 'light'),
    ('dashboard_dark', DESK, 'dark'),
    ('dashboard_phone_light', PHONE, 'light'),
    ('dashboard_phone', PHONE, 'dark'),
)


def photograph(board: RobotBoard, executable: str, folder: Path) -> None:
    """Write the dashboard on a desk and on a phone, in light and in dark colours."""
    server = DashboardServer(board, lambda *_: (True, ''), ('127.0.0.1', 0), WebAccess('::1', ''))
    server.start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(executable, Path(profile))
        try:
            for name, (width, height), scheme in DASHBOARDS:
                browser.look(width, height, scheme)
                browser.go(server.url)
                browser.wait('document.querySelectorAll(".curve svg").length > 1')
                if width < 600:
                    browser.evaluate(
                        'const o = document.querySelector("#order"); o.value = "urgent";'
                        'o.dispatchEvent(new Event("change")); '
                        'document.querySelector(".labels").open = true'
                    )
                time.sleep(1.0)
                browser.screenshot(folder / f'{name}.png')
                make_small(folder / f'{name}.png')
        finally:
            browser.close()
            server.close()


ANSI = {'32': '#7ee787', '33': '#e3b341', '1;31': '#ff7b72', '2': '#8b949e'}
TERMINAL = Style(width=100, colour=True)


def photograph_terminal(board: RobotBoard, executable: str, path: Path) -> None:
    """Write what ``watch`` prints into a terminal of 100 columns, as a dark terminal shows it."""
    text = html.escape('\n'.join(table(board.views(time.monotonic()), TERMINAL)))
    text = re.sub(
        r'\x1b\[([0-9;]+)m(.*?)\x1b\[0m',
        lambda found: f'<span style="color:{ANSI[found[1]]}">{found[2]}</span>',
        text,
    )
    page = (
        '<!doctype html><meta charset="utf-8"><html data-ready="yes"><body style="margin:0;'
        'background:#0d1117"><pre style="margin:14px;color:#e6edf3;font:15px/1.35 '
        f"'DejaVu Sans Mono',monospace\">{text}</pre>"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (Path(profile) / 'page.html').write_text(page, encoding='utf-8')
        browser = Chromium(executable, Path(profile))
        try:
            browser.look(960, 30 + 21 * (text.count('\n') + 1), 'dark')
            browser.open(Path(profile) / 'page.html')
            browser.screenshot(path)
        finally:
            browser.close()
    make_small(path)


def drawn_scene(height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    """Return a drawn table with a cup and a gripper, BGR uint8 (H, W, 3), as a camera image."""
    scene = np.empty((height, width, 3), np.uint8)
    shade = np.linspace(0, 40, width)[None, :, None]
    scene[:] = (np.array([196, 190, 182]) - shade).astype(np.uint8)
    scene[height // 2 :] = (np.array([96, 132, 168]) - shade / 2).astype(np.uint8)
    rows, columns = np.ogrid[:height, :width]
    scene[(rows - 300) ** 2 / 4 + (columns - 380) ** 2 < 900] = (70, 70, 190)
    scene[250:300, 440:500] = (150, 90, 40)
    scene[60:215, 300:332] = (60, 60, 60)
    scene[205:225, 268:364] = (45, 45, 45)
    scene[225:272, 268:282] = scene[225:272, 350:364] = (30, 30, 30)
    return scene


def draw_overlay(board: RobotBoard, path: Path) -> None:
    """Write a drawn camera image with the state of a nominal robot and of the one in alarm."""
    views = board.views(time.monotonic())
    pictures = []
    for index in (0, ALARMING):
        scene = drawn_scene()
        draw(scene, views[index])
        pictures.append(scene)
    Image.fromarray(np.hstack(pictures)[:, :, ::-1]).save(path)
    make_small(path)


def make_small(path: Path) -> None:
    """Give a picture a palette: a clone has to carry it."""
    with Image.open(path) as picture:
        small = picture.convert('RGB').quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def draw_markers(board: RobotBoard, path: Path) -> None:
    """Write the markers of the first three robots as Matplotlib draws their messages."""
    import matplotlib as mpl

    mpl.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4))
    place = MarkerPlace('base_link', 0.0, 0.0, 0.0, 0.6, 1.0)
    for axis, view in zip(axes, board.views(time.monotonic()), strict=False):
        axis.set_facecolor('#303030')
        for marker in robot_markers(view, place).markers:
            if marker.action != marker.ADD:
                continue
            at, colour = marker.pose.position, marker.color
            ink = (colour.r, colour.g, colour.b, colour.a)
            if marker.type == marker.CUBE:
                corner = (at.x - marker.scale.x / 2, at.z - marker.scale.z / 2)
                box = plt.Rectangle(corner, marker.scale.x, marker.scale.z, color=ink)
                axis.add_patch(box)
            else:
                axis.text(at.x, at.z, marker.text, color=ink, ha='center', va='center')
        axis.set(xlim=(-0.4, 0.4), ylim=(-0.15, 0.35), aspect='equal', title=view.name)
        axis.set(xlabel='x [m]', ylabel='z [m]')
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(folder: Path) -> int:
    """Write the pictures and print the view of the terminal."""
    executable = find_chromium()
    if executable is None:
        print('robot_pictures: expected Chromium, found none', file=sys.stderr)
        return 1
    detector, rollouts = chosen_rollouts()
    board = RobotBoard()
    live = play(board, detector, rollouts)
    photograph(board, executable, folder)
    photograph_terminal(board, executable, folder / 'terminal.png')
    print('\n'.join(table(board.views(time.monotonic()), Style())))
    live.join()
    draw_overlay(board, folder / 'overlay.png')
    draw_markers(board, folder / 'markers.png')
    return 0


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main(Path(sys.argv[1])))
