# SPDX-License-Identifier: Apache-2.0
"""The dashboard in a real Chromium: live, safe with any name, and it says a lost connection."""

from __future__ import annotations

import json
import math
import time

import pytest
from chromium import Chromium

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.looking.web_access import WebAccess
from safe_monitor_node.looking.web_server import DashboardServer
from safe_monitor_node.monitor.alarm import AlarmState

HOSTILE = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)>'
TOKEN = 'a-long-token_0123456789'


def fill(board, count, steps=30, episode='pick_up_the_mug/7', alarming=(2,)):
    """Give robots an episode; some of them an alarm at step 20."""
    for index in range(count):
        name = f'/robot{index}'
        board.add(name)
        alarm = index in alarming
        for k in range(steps):
            value = 0.3 + 0.1 * math.sin(0.4 * k + index) + alarm * k / 30
            state = AlarmState.ALARM if alarm and k >= 20 else AlarmState.NOMINAL
            sample = ScoreSample(episode, k, value, 0.8, math.nan, int(state), 'safe_lstm')
            board.take_score(name, sample, time.monotonic())
        reason = 'score 0.9 is above the threshold 0.8' if alarm else 'no failure is predicted'
        board.take_alarm(name, AlarmSample(episode, 20, int(state), 2 * alarm, reason))


@pytest.fixture
def serve():
    servers = []

    def start(board, label=None, token='', port=0):
        where = ('127.0.0.1', port)
        access = WebAccess('127.0.0.1', token)
        server = DashboardServer(board, label, where, access, period=0.05)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def texts(browser: Chromium, selector: str) -> list[str]:
    found = f'[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)'
    return list(browser.evaluate(found))


def test_each_state_is_a_word_and_a_mark_and_not_a_colour_alone(browser, serve):
    board = RobotBoard()
    for state in AlarmState:
        board.add(f'/{state.name.lower()}')
        board.take_alarm(f'/{state.name.lower()}', AlarmSample('e', 0, int(state), 0, 'why'))
    board.add('/lost')
    board.set_alive('/lost', False, time.monotonic())
    server = serve(board)
    browser.go(server.url)
    shown = dict(zip(texts(browser, 'h2'), texts(browser, '.state'), strict=True))
    assert shown['/alarm'] == '✖ ALARM'
    assert shown['/lost'] == '⊘ GONE'
    assert {text.split()[1] for text in shown.values()} == {*AlarmState.__members__, 'GONE'}
    assert len({text.split()[0] for text in shown.values()}) == len(AlarmState) + 1
    assert browser.complaints() == []
    asked = [address for address in browser.requests() if not address.startswith('data:')]
    assert asked
    assert all(address.startswith(server.url) for address in asked), asked


def test_new_scores_and_states_appear_without_a_reload(browser, serve):
    board = RobotBoard()
    browser.go(serve(board).url)
    browser.wait('!document.querySelector("#none").hidden')
    fill(board, 3, steps=10, alarming=())
    browser.wait('document.querySelectorAll(".robot").length === 3')
    browser.wait('document.querySelector(".curve .score")')
    before = browser.evaluate('document.querySelector(".curve .score").getAttribute("d").length')
    for k in range(10, 15):
        sample = ScoreSample('pick_up_the_mug/7', k, 0.9, 0.8, math.nan, 3)
        board.take_score('/robot0', sample, time.monotonic())
    board.take_alarm('/robot0', AlarmSample('pick_up_the_mug/7', 12, 3, 2, 'too high'))
    browser.wait('document.querySelector(".robot .word").textContent === "ALARM"')
    browser.wait('document.querySelector(".robot .curve .alarm-mark")')
    browser.wait(f'document.querySelector(".curve .score").getAttribute("d").length > {before}')
    assert texts(browser, '.robot .reason')[0] == 'too high (advice: stop)'
    assert 'step 14' in texts(browser, '.robot .facts')[0]
    assert browser.evaluate('document.title') == '1 ALARM, 2 NOMINAL · SAFE'
    assert browser.evaluate('document.querySelector("#summary").getAttribute("role")') == 'status'


def test_names_are_shown_and_never_run(browser, serve):
    board = RobotBoard()
    board.add(HOSTILE)
    board.take_score(HOSTILE, ScoreSample(HOSTILE, 0, 0.5, 0.8, math.nan, 1, HOSTILE), 0.0)
    board.take_alarm(HOSTILE, AlarmSample(HOSTILE, 0, 3, 2, HOSTILE))
    browser.go(serve(board, label=lambda *asked: (True, HOSTILE)).url)
    browser.wait('document.querySelectorAll(".robot").length === 1')
    browser.evaluate('document.querySelector("button").click()')
    browser.wait('document.querySelector(".answer").textContent.includes("onerror")')
    assert texts(browser, 'h2') == [HOSTILE]
    assert HOSTILE in texts(browser, '.reason')[0]
    assert HOSTILE[:40] in texts(browser, '.facts')[0]
    assert browser.evaluate('document.title') != 'broken'
    assert browser.evaluate('document.querySelectorAll("img, main script").length') == 0
    assert browser.complaints() == []


def test_a_label_button_labels_the_episode_that_it_names(browser, serve):
    asked = []

    def label(*what):
        asked.append(what)
        return len(asked) == 1, 'the monitor answers'

    board = RobotBoard()
    fill(board, 1, episode='first')
    fill(board, 1, episode='second')
    browser.go(serve(board, label=label).url)
    browser.wait('document.querySelectorAll(".episode").length === 2')
    assert texts(browser, '.episode .id') == ['now: second', 'before: first']
    browser.evaluate(
        'document.querySelectorAll(".episode")[1].querySelectorAll("button")[1].click()'
    )
    browser.wait('document.querySelector(".answer").textContent === "✓ the monitor answers"')
    assert asked == [('/robot0', 'first', 2)]
    browser.evaluate(
        'document.querySelectorAll(".episode")[0].querySelectorAll("button")[0].click()'
    )
    browser.wait('document.querySelector(".answer").textContent.startsWith("✖ not labelled")')
    assert asked[1] == ('/robot0', 'second', 1)


def test_without_labels_there_are_no_buttons(browser, serve):
    board = RobotBoard()
    fill(board, 1)
    browser.go(serve(board).url)
    browser.wait('document.querySelectorAll(".robot").length === 1')
    assert browser.evaluate('document.querySelector(".labels").hidden')


def test_a_lost_connection_is_said_and_the_browser_comes_back_by_itself(browser, serve):
    board = RobotBoard()
    fill(board, 2)
    server = serve(board, label=lambda *asked: (True, ''))
    browser.go(server.url)
    browser.wait('document.querySelectorAll(".robot").length === 2')
    port = server.server_address[1]
    server.close()
    browser.wait('!document.querySelector("#lost").hidden')
    browser.evaluate('document.querySelector("button").click()')
    browser.wait('document.querySelector(".answer").textContent.startsWith("✖ not labelled")')
    fill(board, 3, episode='later')
    serve(board, port=port)
    browser.wait('document.querySelector("#lost").hidden', seconds=15)
    browser.wait('document.querySelectorAll(".robot").length === 3')
    assert 'episode later' in texts(browser, '.facts')[0]
    points = browser.evaluate(
        'document.querySelector(".curve .score").getAttribute("d").split("L").length'
    )
    assert points == 30, 'every step once'


def test_a_server_that_hangs_is_said(browser, serve):
    board = RobotBoard()
    fill(board, 1)
    server = serve(board)
    browser.go(server.url)
    browser.wait('document.querySelectorAll(".robot").length === 1')
    server.period = 60.0  # nothing comes, and nothing closes
    browser.wait('!document.querySelector("#lost").hidden', seconds=10)


def test_forty_robots_are_drawn_in_a_small_window_without_a_wide_page(browser, serve):
    board = RobotBoard()
    fill(board, 40)
    browser.look(390, 844)
    browser.go(serve(board).url)
    browser.wait('document.querySelectorAll(".robot").length === 40')
    assert browser.evaluate('document.documentElement.scrollWidth') <= 390
    names = texts(browser, 'h2')
    assert names == [f'/robot{k}' for k in range(40)], '10 comes after 9'
    browser.evaluate(
        'const o = document.querySelector("#order");'
        'o.value = "urgent"; o.dispatchEvent(new Event("change"))'
    )
    assert texts(browser, 'h2')[0] == '/robot2'
    assert browser.complaints() == []


def test_a_wall_screen_begins_with_the_most_urgent(browser, serve):
    board = RobotBoard()
    fill(board, 4)
    browser.go(f'{serve(board).url}#urgent')
    assert texts(browser, 'h2') == [f'/robot{k}' for k in (2, 0, 1, 3)]


def test_the_page_keeps_no_more_than_the_history(browser, serve):
    board = RobotBoard(history=50)
    fill(board, 1, steps=40)
    browser.go(serve(board).url)
    for k in range(40, 400):
        sample = ScoreSample('pick_up_the_mug/7', k, 0.4, 0.8, math.nan, 1)
        board.take_score('/robot0', sample, time.monotonic())
        if k % 20 == 0:
            browser.wait(f'document.querySelector(".facts").textContent.includes("step {k} ")')
    browser.wait('document.querySelector(".facts").textContent.includes("step 399 ")')
    points = 'document.querySelector(".curve .score").getAttribute("d").split("L").length'
    browser.wait(f'{points} === 50')


def test_a_wrong_token_is_refused_and_the_right_one_opens_the_page(browser, serve):
    board = RobotBoard()
    fill(board, 1)
    server = serve(board, token=TOKEN)
    browser.call('Page.navigate', url=f'{server.url}?token=wrong')
    browser.wait('document.querySelector("h1")?.textContent === "Token needed"')
    browser.evaluate(
        f'document.querySelector("input").value = "{TOKEN}";'
        'document.querySelector("form").requestSubmit()'
    )
    browser.wait('document.querySelectorAll(".robot").length === 1')
    assert browser.evaluate('location.href') == server.url
    assert browser.evaluate('document.cookie') == '', 'no script can read the token'


def contrast(browser, selector):
    """Return the contrast of the text of an element, after WCAG 2."""
    parts = browser.evaluate(
        f'(() => {{ const s = getComputedStyle(document.querySelector({json.dumps(selector)}));'
        ' return [s.color, s.backgroundColor]; })()'
    )
    luminances = []
    for part in parts:
        channels = [int(v) / 255 for v in part[part.index('(') + 1 : -1].split(',')[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminances.append(sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_states_can_be_read_in_both_colour_schemes(browser, serve, scheme):
    board = RobotBoard()
    for state in AlarmState:
        board.add(f'/{state.name}')
        board.take_alarm(f'/{state.name}', AlarmSample('e', 0, int(state), 0, 'why'))
    browser.look(1280, 900, scheme)
    browser.go(serve(board).url)
    browser.wait(f'document.querySelectorAll(".robot").length === {len(AlarmState)}')
    for severity in ('ok', 'caution', 'danger', 'unknown'):
        assert contrast(browser, f'[data-severity={severity}] .state') >= 4.5
    assert contrast(browser, 'body') >= 7
