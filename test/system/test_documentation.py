# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: its code runs, its commands parse, its links lead somewhere."""

import argparse
import importlib
import itertools
import os
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from safe_bringup.parameter_docs import NODES
from safe_monitor_node.nodes import monitor_parameters
from safe_monitor_node.nodes.watch_node import make_parser as watch_parser
from safe_monitor_node.storage.detector_folder import load_detector
from safe_monitor_node.verbs.live import VERBS as LIVE_VERBS
from safe_msgs.msg import EpisodeEvent, FailureScore, PolicyStep
from safe_training.cli.main import VERBS, parser_of
from safe_training.cli.renamed import OPTIONS
from safe_training.cli.renamed import VERBS as RENAMED_VERBS
from safe_training.sweep.grid import read_grid
from vla_feature_bridge.nodes import replay_node
from vla_feature_bridge.relays.options import make_parser, parse_options
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.wire import StepReceiver

TOP = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(TOP).as_posix()
    for pattern in ('docs/**/*.md', '*.md', '*/README.md', 'test/data/README.md')
    for path in TOP.glob(pattern)
    if not path.parent.name.startswith('.')  # .pytest_cache
)
GENERATED = (
    'docs/reference/detectors.md',
    'docs/reference/parameters.md',
    'docs/reference/presets.md',
)
WRAPPED = [
    page
    for page in PAGES
    if page.startswith(('docs', 'README', 'QUALITY', 'test')) and page not in GENERATED
]
DOCTESTS = 'docs/reference/python_api.md'  # safe_training/test/test_python_api.py runs it
FROM_0_1 = 'docs/how-to/come_from_0_1.md'
ENTRY_POINTS = 'safe_monitor_node.fitters'  # a group of entry points, no module


def text_of(page: str) -> str:
    return (TOP / page).read_text(encoding='utf-8')


def blocks(page: str, *languages: str) -> list[str]:
    """Return the code blocks of a page that are in one of the languages."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', text_of(page), re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


def run_block(page: str, block: str, names: dict | None = None) -> dict:
    """Run a code block; ``names`` is what the page presumes, and gets what the block defines."""
    names = {} if names is None else names
    exec(compile(block, page, 'exec'), names)
    return names


# --- code

NAME_IN_A_PACKAGE = (
    r'`((?:safe_training|safe_monitor_node|vla_feature_bridge|safe_bringup)(?:\.[a-zA-Z]\w*)+)[`(]'
)


def exists(name: str) -> bool:
    """Tell whether a name with dots is a module, or an attribute of one."""
    module, _, attribute = name.rpartition('.')
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), attribute)
    return True


class RobotOfThreeSteps:
    """The robot and the policy of the README, played from a rollout."""

    def __init__(self, rollout, probe):
        self._rollout, self._probe = rollout, probe
        self._step, self.executed = 0, []

    def is_running(self):
        if self._step == 0:
            self._probe.wait_until_active()
        return self._step < 3

    def observe(self):
        return self._step

    def infer(self, step):
        self._step += 1
        return self._rollout.features[step], self._rollout.actions[step]

    def execute(self, actions):
        self.executed.append(actions)

    def has_succeeded(self):
        return True


def test_the_publisher_of_the_readme_feeds_a_monitor(probe, run_monitor, mlp_folder, rollouts):
    publishing, _ = blocks('README.md', 'python')
    loaded, rollout = load_detector(mlp_folder), rollouts[0]
    assert "'hidden_states[token=last]'" in publishing
    publishing = publishing.replace("'hidden_states[token=last]'", repr(str(loaded.feature)))
    run_monitor(detector_folder=mlp_folder)
    robot = RobotOfThreeSteps(rollout, probe)
    run_block('README.md', publishing, {'node': probe.node, 'robot': robot, 'policy': robot})
    probe.spin_until(lambda: len(probe.scores) == 3, 'three steps are answered')
    assert FailureScore.STATE_INVALID not in [s.state for s in probe.scores]
    offline = loaded.detector.score(rollout)[:3]
    np.testing.assert_allclose([s.score for s in probe.scores], offline, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(robot.executed, rollout.actions[:3, 0, :4])


def test_the_python_of_the_readme_fits_a_detector(tmp_path, monkeypatch, rollout_folder, capsys):
    (tmp_path / 'my_rollouts').symlink_to(rollout_folder)
    monkeypatch.chdir(tmp_path)
    _, from_python = blocks('README.md', 'python')
    run_block('README.md', from_python)
    assert load_detector('my_detector').detector.name == 'linear_probe'
    assert 'unseen' in capsys.readouterr().out


def test_steps_are_published_as_the_how_to_page_shows_it(probe):
    publishing, _, _ = blocks('docs/how-to/connect_your_policy.md', 'python')
    events, steps = [], []
    probe.node.create_subscription(EpisodeEvent, 'vla/episode', events.append, 10)
    probe.node.create_subscription(PolicyStep, 'vla/policy_step', steps.append, 10)
    names = {
        'node': probe.node,
        'hidden_state': np.ones(4096, np.float32),
        'chunks': np.ones((1, 8, 7), np.float32),
    }
    publisher = run_block('connect_your_policy.md', publishing, names)['publisher']
    assert publisher.episode_id == '', 'the episode has ended'
    assert names['episode_id']
    probe.spin_until(lambda: len(steps) == 1 and len(events) == 2, 'the monitor is waited for')
    assert not publisher.last_error


def test_pooling_as_the_how_to_page_shows_it():
    _, pooling, _ = blocks('docs/how-to/connect_your_policy.md', 'python')
    states = np.random.default_rng(0).normal(size=(7, 4096)).astype(np.float32)
    names = run_block('connect_your_policy.md', pooling, {'hidden_states': states})
    np.testing.assert_array_equal(names['vector'], states[-1])
    assert names['name'] == 'hidden_states[token=last]'


def test_steps_are_sent_as_the_how_to_page_shows_it(tmp_path, monkeypatch):
    _, _, sending = blocks('docs/how-to/connect_your_policy.md', 'python')
    address, received = f'unix:{tmp_path / "s"}', []
    with StepReceiver([address], lambda source, message: received.append(source)) as receiver:
        receiver.set_status(True)
        monkeypatch.setenv('SAFE_BRIDGE', address)
        sender = run_block('connect_your_policy.md', sending)['sender']
        sender.start()
        sender.publish(np.ones(4096, np.float32), np.ones((1, 8, 7), np.float32))
        sender.close(timeout=30)
    assert received == ['left_arm'] * 2


def test_a_rollout_set_is_written_as_the_how_to_page_shows_it(tmp_path, monkeypatch):
    (block,) = blocks('docs/how-to/use_your_recordings.md', 'python')
    monkeypatch.chdir(tmp_path)
    run_block('use_your_recordings.md', block)
    assert len(RolloutSet.open('my_rollouts')) == 20


def test_the_detectors_of_the_recipe_score_as_the_recipe_says():
    jump, recent = blocks('CONTRIBUTING.md', 'python')
    detector = run_block('CONTRIBUTING.md', jump)['LargestJump'](floor=2.0)
    chunks = np.array([[[0, 3], [1, 3]], [[0, 3], [4, 1]], [[1, 1], [1, 1]]], np.float32)
    rollout = Rollout(np.zeros((3, 2), np.float32), 'task', actions=chunks[:, None])
    np.testing.assert_array_equal(detector.fit([rollout]).score(rollout), [0, 4, 4])
    detector = run_block('CONTRIBUTING.md', recent)['RecentNorm'](window=2)
    norms = np.linalg.norm(chunks.reshape(3, -1), axis=1)
    expected = [norms[0], norms[:2].mean(), norms[1:].mean()]
    np.testing.assert_allclose(detector.fit([rollout]).score(rollout), expected, rtol=1e-6)


def test_the_public_names_are_where_the_page_of_0_1_says():
    (block,) = blocks(FROM_0_1, 'python')
    run_block(FROM_0_1, block)


def test_a_supervisor_of_the_reference_page_sees_a_monitor_that_hangs(
    probe, run_monitor, mlp_folder
):
    (block,) = blocks('docs/reference/topics.md', 'python')
    halted, stops = [], []
    names = {
        'node': probe.node,
        'on_stop': stops.append,
        'halt': lambda: halted.append(len(stops)),
    }
    run_block('topics.md', block, names)
    process = run_monitor(detector_folder=mlp_folder)
    probe.spin_until(lambda: len(stops) > 5, 'the subscription matches')
    os.kill(process.pid, signal.SIGSTOP)
    try:
        halted.clear()
        probe.spin_until(lambda: halted, 'the supervisor halts the robot')
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_every_block_of_python_has_a_test():
    tested = {
        'README.md': 2,
        'docs/how-to/connect_your_policy.md': 3,
        'docs/how-to/use_your_recordings.md': 1,
        'docs/reference/topics.md': 1,
        'CONTRIBUTING.md': 2,
        FROM_0_1: 1,
        # test/repository/test_tap_pages.py
        'docs/how-to/tap_a_torch_policy.md': 2,
        'docs/how-to/tap_groot.md': 2,
        'docs/how-to/tap_lerobot_pi0.md': 2,
        'docs/how-to/tap_lerobot_smolvla.md': 1,
        'docs/how-to/tap_openpi.md': 2,  # the second one: test_openpi_jax.py
        'docs/how-to/tap_openvla.md': 1,
    }
    found = {page: len(blocks(page, 'python')) for page in PAGES if page != DOCTESTS}
    assert {page: count for page, count in found.items() if count} == tested


def test_every_module_that_a_page_names_exists():
    for page in set(PAGES) - {FROM_0_1}:
        for name in set(re.findall(NAME_IN_A_PACKAGE, text_of(page))) - {ENTRY_POINTS}:
            assert exists(name), f'{page} names {name}, which does not exist'


def test_the_new_names_on_the_page_of_0_1_exist():
    rows = re.findall(r'^\| .* \| (.*) \|$', text_of(FROM_0_1).split('## Python')[1], re.M)
    names = [name for row in rows for name in re.findall(NAME_IN_A_PACKAGE, row)]
    assert len(names) > 10
    for name in names:
        assert exists(name), f'{FROM_0_1} names {name}, which does not exist'


# --- commands


def commands(page: str) -> list[str]:
    """Return the lines of a page that call the command line, continued lines as one."""
    text = '\n'.join(blocks(page, 'bash', 'sh')).replace('\\\n', ' ')
    return re.findall(r'^.*?python3? -m safe_training (.+)$', text, re.MULTILINE)


def live_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'safe {name}')
    LIVE_VERBS[name]().add_arguments(parser, f'safe {name}')
    return parser


def options_of_live(name: str) -> set[str]:
    return {option for action in live_parser(name)._actions for option in action.option_strings}


def test_every_command_of_an_operator_is_one(capsys):
    offline = {'label-recording' if verb == 'label' else verb: verb for verb in VERBS}
    count = 0
    for page in PAGES:
        text = '\n'.join(blocks(page, 'bash', 'sh')).replace('\\\n', ' ')
        for line in re.findall(
            r'(?:ros2 safe|safe_monitor_node safe|-m safe_monitor_node) ([^;|&\n]+)', text
        ):
            verb, *words = shlex.split(line, comments=True)
            if verb in ('--help', 'VERB'):
                continue
            assert verb in {**LIVE_VERBS, **offline}, f'{page}: {line}'
            parser = live_parser(verb) if verb in LIVE_VERBS else parser_of(offline[verb])
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f'{page}: {line}\n{capsys.readouterr().err}')
            count += 1
    assert count >= 10


def test_the_reference_of_commands_has_every_verb_of_an_operator():
    page = text_of('docs/reference/commands.md')
    section = page.split('## One command for all')[1].split('\n## ')[0]
    for name in LIVE_VERBS:
        (row,) = re.findall(rf'^\| `{name}[ `].*$', section, re.M)
        assert not {o for o in options_of_live(name) - {'-h', '--help'} if o not in row}, row


@pytest.mark.parametrize('page', PAGES)
def test_every_command_is_one_of_the_command_line(page, capsys):
    for line in commands(page):
        verb, *words = shlex.split(line, comments=True)
        if verb == '--help':
            continue
        assert verb in VERBS, f'{page}: {line}'
        try:
            parser_of(verb).parse(words)
        except SystemExit:
            pytest.fail(f'{page}: {line}\n{capsys.readouterr().err}')


def options_of(verb: str) -> set[str]:
    return {name for action in parser_of(verb)._actions for name in action.option_strings}


RELAYS = make_parser()._subparsers._group_actions[0].choices
RELAY_OPTIONS = {
    name
    for parser in RELAYS.values()
    for action in parser._actions
    for name in action.option_strings
}


def test_every_command_of_a_relay_is_one():
    count = 0
    for page in PAGES:
        text = '\n'.join(blocks(page, 'bash', 'sh')).replace('\\\n', ' ')
        for line in re.findall(
            r'(?:vla_feature_bridge\.relays|vla_feature_bridge relay) (.+)$', text, re.M
        ):
            words = shlex.split(line, comments=True)
            if words != ['--help']:
                parse_options(words)
                count += 1
    assert count >= 5


def test_the_reference_of_commands_has_every_option_of_the_relays():
    page = text_of('docs/reference/commands.md')
    assert not {name for name in RELAY_OPTIONS - {'-h', '--help'} if f'`{name}' not in page}


def test_every_option_that_a_page_names_exists():
    known = set(itertools.chain.from_iterable(map(options_of, VERBS))) | RELAY_OPTIONS
    # Of ./dev, pytest, pip, git, ROS and colcon.
    known |= {'--distro', '--lf', '--ros-args', '--params-file', '--from-paths', '--ignore-src'}
    known |= {'--seconds', '--steps'}  # of ./dev bench
    known |= {'--policy', '--inference'}  # of python -m vla_feature_bridge.taps
    known |= {'--packages-up-to', '--storage', '--output', '--epochs', '--no-push', '--version'}
    known |= {'--clock', '--delay', '--no-deps', '--enclave', '--snapshot-mode', '--topics'}
    known |= {'--dist', '--perspective-file', '--share', '--show-args'}
    known |= {'--system-site-packages', '--build-arg', '--rm', '--net', '--ipc', '--simulate'}
    known |= {'--user', '--cap-add', '--layout'}  # of docker run, and of PlotJuggler
    known |= {'--launch-prefix', '--launch-prefix-filter', '--rr'}  # of ros2 launch, and of chrt
    known |= {name for action in watch_parser()._actions for name in action.option_strings}
    known |= {option for name in LIVE_VERBS for option in options_of_live(name)}
    # Of the programs of LeRobot.
    known |= {'--env', '--eval', '--host', '--port', '--duration', '--robot', '--strategy'}
    # test/README.md names mostly options of git, pip and colcon.
    for page in set(PAGES) - {FROM_0_1, 'test/README.md'}:
        named = set(re.findall(r'(?<![\w{}-])--[a-z][a-z-]+', text_of(page)))
        unknown = {name for name in named - known if not name.startswith(('--ep', '--succ'))}
        assert not unknown - {'--meta', '--note', '--task', '--t'}, page


def test_the_reference_of_commands_has_every_verb_and_option():
    page = text_of('docs/reference/commands.md')
    for verb in VERBS:
        assert f'`{verb} ' in page, verb
        missing = {name for name in options_of(verb) if f'{name}' not in page} - {'-h'}
        assert not missing, f'docs/reference/commands.md lacks {missing} of {verb}'


def test_the_page_of_0_1_has_every_name_that_changed():
    page = text_of(FROM_0_1)
    changed = [(verb, new) for verb, new in RENAMED_VERBS.items()]
    for verb, options in OPTIONS.items():
        assert f'`{verb}`' in page
        changed += options.items()
    for old, new in changed:
        assert re.search(rf'`[^`\n]*{re.escape(old)}', page), old
        for word in re.findall(r'--[a-z-]+', new):
            assert word in page, new
    parameters = (*monitor_parameters.PARAMETERS, *replay_node.PARAMETERS)
    for parameter in parameters:
        if parameter.old_name:
            assert f'| `{parameter.old_name}` | `{parameter.name}` |' in page


def test_every_node_parameter_that_a_page_sets_exists():
    known = {p.name for _, node, _ in NODES for p in node.PARAMETERS}
    for page in PAGES:
        assert set(re.findall(r'-p (\w+):=', text_of(page))) <= known, page


def test_the_grid_of_the_how_to_page_is_a_grid(tmp_path):
    (block,) = blocks('docs/how-to/sweep.md', 'yaml')
    path = tmp_path / 'grid.yaml'
    path.write_text(block)
    grid = read_grid(str(path))
    assert grid.benchmark == yaml.safe_load(block)['benchmark']
    assert [family.detector for family in grid.families] == ['safe_lstm', 'clock']


# --- text


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    words = re.sub(r'[^\w\- ]', '', heading.strip().lower())
    return words.replace(' ', '-')


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', text_of(page)):
        if link.startswith('http'):
            continue
        target, _, anchor = link.partition('#')
        path = (TOP / page).parent / target if target else TOP / page
        assert path.exists(), f'{page} links to {link}, which does not exist'
        if anchor:
            headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
            assert anchor in map(slug, headings), f'{page} links to {link}: no such heading'


@pytest.mark.parametrize('page', PAGES)
def test_each_row_of_a_table_has_a_line_and_the_columns_of_its_head(page):
    def columns(row: str) -> int:
        return len(re.findall(r'(?<!\\)\|', row)) - 1

    text = re.sub(r'^```.*?^```$', '', text_of(page), flags=re.DOTALL | re.MULTILINE)
    for table in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
        head, line, *rows = table.splitlines()
        assert re.fullmatch(r'\|(?: *:?-+:? *\|)+', line), f'{page}: no table below {head}'
        for row in (line, *rows):
            assert columns(row) == columns(head), f'{page}: {row}'


@pytest.mark.parametrize('page', WRAPPED)
def test_pages_wrap_at_100_columns(page):
    fenced = False
    for number, line in enumerate(text_of(page).splitlines(), 1):
        if line.startswith('```'):
            fenced = not fenced
        elif not fenced and not line.startswith(('|', '![')):
            assert len(line) <= 100, f'{page}:{number} has {len(line)} columns'
