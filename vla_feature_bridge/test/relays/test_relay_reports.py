# SPDX-License-Identifier: Apache-2.0
"""Readings, episodes, the queue and the command line of the relays, without a network."""

import threading

import numpy as np
import pytest

from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.relays import work_queue
from vla_feature_bridge.relays.byte_stream import Body
from vla_feature_bridge.relays.episodes import (
    EpisodeOptionError,
    EpisodeRules,
    Episodes,
    parse_episode,
)
from vla_feature_bridge.relays.exchanges import Asked, Closed, Exchange, Request
from vla_feature_bridge.relays.options import OptionError, parse_options
from vla_feature_bridge.relays.policies import read_groot, read_openpi
from vla_feature_bridge.relays.readings import ErrorReply, Keys, ReadingError, Reset, chunk, pooled
from vla_feature_bridge.relays.reporter import Reporter, Settings
from vla_feature_bridge.relays.work_queue import Lost, Worker
from vla_feature_bridge.step_checks import StepError
from vla_feature_bridge.wire.address import default_address

msgpack = pytest.importorskip('msgpack', reason='no msgpack')


def array(values):
    values = np.asarray(values, '<f4')
    return {
        '__ndarray__': True,
        'data': values.tobytes(),
        'dtype': '<f4',
        'shape': list(values.shape),
    }


def body(value):
    made = Body()
    made.add(memoryview(msgpack.packb(value)))
    return made


def exchange(request, reply, connection=1, clock=0):
    return Exchange(
        'a:1', connection, Request(body(request), clock=clock), body(reply), clock=clock
    )


class RecordingSink:
    """Writes down what a StepSender would send; the numbers and checks are tested with it."""

    def __init__(self):
        self.calls = []

    def start(self, *, task='', instruction='', episode_id=''):
        self.calls.append(f'start {instruction}')

    def publish(self, features, actions=None, *, stamp=None, **fields):
        self.calls.append('step')
        return object()

    def skip(self, reason):
        self.calls.append('skip')

    def end(self, success=None, reason=''):
        self.calls.append(f'end: {reason}')

    def image(self, name, image, stamp=None):
        self.calls.append(f'image {name}')


# --- readings


@pytest.mark.parametrize(
    ('actions', 'shape'),
    [
        (array(np.zeros((5, 7))), (1, 5, 7)),
        (array(np.zeros((1, 5, 7))), (1, 5, 7)),
        (array(np.zeros(7)), (1, 1, 7)),
        ([[1, 2], [3, 4]], (1, 2, 2)),
    ],
)
def test_chunks_have_one_form(actions, shape):
    found = read_openpi(exchange({'prompt': ['fold']}, {'actions': actions}), Keys())
    assert found.actions.shape == shape
    assert found.instruction == 'fold'


@pytest.mark.parametrize(
    'actions', [array(np.zeros((2, 5, 7))), array(np.zeros((0, 7))), 'text', [[1], [1, 2]], None]
)
def test_chunks_of_another_form_are_refused(actions):
    with pytest.raises(ReadingError):
        read_openpi(exchange({}, {'actions': actions}), Keys())


def test_big_endian_actions_become_native():
    found = chunk(np.arange(6, dtype='>f4').reshape(2, 3), 'actions')
    assert found.dtype.isnative
    np.testing.assert_array_equal(found.ravel(), np.arange(6))


GROOT_N15 = {
    'video.ego_view': array(np.zeros((1, 8, 8, 3))),
    'annotation.human.action.task_description': ['pick up'],
}


def test_groot_n15_answers_with_a_flat_map():
    request = {'endpoint': 'get_action', 'data': GROOT_N15}
    reply = {'action.arm': array(np.ones((4, 6))), 'action.gripper': array(np.zeros(4))}
    found = read_groot(exchange(request, reply), Keys())
    assert found.instruction == 'pick up'
    np.testing.assert_array_equal(found.actions[0], [[1] * 6 + [0]] * 4)
    keys = Keys(actions=('action.gripper', 'action.arm'))
    np.testing.assert_array_equal(
        read_groot(exchange(request, reply), keys).actions[0], [[0] + [1] * 6] * 4
    )


def test_groot_replies_that_hold_no_inference():
    def read(request, reply):
        return read_groot(exchange(request, reply), Keys())

    assert isinstance(read({'endpoint': 'reset'}, {}), Reset)
    assert isinstance(read({'endpoint': 'reset'}, {'error': 'no'}), ErrorReply)
    assert isinstance(read({}, {'error': 'no'}), ErrorReply)
    assert read({'endpoint': 'ping'}, {'status': 'ok'}) is None
    with pytest.raises(ReadingError, match='one horizon'):
        read({}, [{'a': array(np.zeros((1, 4, 2))), 'b': array(np.zeros((1, 5, 2)))}, {}])
    with pytest.raises(ReadingError, match='a map of actions'):
        read({}, [])


def test_features_are_pooled_or_refused():
    spec = FeatureSpec(
        'pre_velocity', 0, ('denoise', 'horizon'), (('denoise', 'last'), ('horizon', 'mean'))
    )
    raw = np.random.default_rng(0).normal(size=(10, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(pooled(spec, raw), spec.apply(raw))
    np.testing.assert_array_equal(pooled(spec, raw[None]), spec.apply(raw))
    with pytest.raises(ReadingError, match='--axes'):
        pooled(spec, raw[0])


# --- episodes


def test_episodes_end_by_the_rules():
    sink = RecordingSink()
    episodes = Episodes(EpisodeRules(instruction=True, gap=2.0, reset=True), sink)
    second = 10**9
    episodes.before_step(1, 'a')
    episodes.answered(1, second)
    episodes.asked(1, 2 * second)
    episodes.tick(9 * second)  # the inference takes long
    episodes.answered(1, 9 * second)
    episodes.tick(10 * second)
    episodes.before_step(1, 'b')
    episodes.tick(12 * second)
    episodes.before_step(1, 'b')
    episodes.reset()
    episodes.closed(1)
    assert sink.calls == [
        'start a',
        'end: the instruction changed',
        'start b',
        'end: no inference for 2 s',
        'start b',
        'end: the client reset the policy',
    ]


def test_a_missing_inference_before_the_first_step_is_a_gap_too():
    sink = RecordingSink()
    episodes = Episodes(EpisodeRules(gap=1.0), sink)
    episodes.miss('unreadable')
    episodes.before_step(1, 'a')
    episodes.miss('unreadable')
    episodes.before_step(1, 'a')
    assert sink.calls == ['start a', 'skip', 'skip']


def test_a_missing_inference_may_be_the_first_of_the_next_instruction():
    sink = RecordingSink()
    episodes = Episodes(EpisodeRules(instruction=True), sink)
    episodes.before_step(1, 'a')
    episodes.miss('unreadable')
    episodes.before_step(1, 'b')
    assert sink.calls == ['start a', 'skip', 'end: the instruction changed', 'start b', 'skip']


@pytest.mark.parametrize(
    ('words', 'policy', 'rules'),
    [
        (['none'], 'openpi', EpisodeRules()),
        (['gap', '5', 'instruction'], 'openvla', EpisodeRules(instruction=True, gap=5.0)),
        (['reset', 'connection'], 'groot', EpisodeRules(reset=True, connection=True)),
    ],
)
def test_words_of_the_option_episode(words, policy, rules):
    assert parse_episode(words, policy) == rules


@pytest.mark.parametrize(
    ('words', 'policy', 'text'),
    [
        (['reset'], 'openpi', 'expected words among instruction, gap, connection, none'),
        (['connection'], 'openvla', 'expected words among instruction, gap, none'),
        (['gap'], 'openpi', '--episode gap 5'),
        (['gap', '-1'], 'openpi', '--episode gap 5'),
        (['gap', 'nan'], 'openpi', '--episode gap 5'),
        (['none', 'gap', '5'], 'openpi', 'none alone'),
    ],
)
def test_wrong_words_of_the_option_episode(words, policy, text):
    with pytest.raises(EpisodeOptionError, match=text):
        parse_episode(words, policy)


# --- the reporter and its queue


def test_a_lost_inference_is_a_gap_and_other_clients_are_not_mixed_in():
    sink, lines = RecordingSink(), []
    reporter = Reporter(Settings('openpi', EpisodeRules()), lambda name: sink, lines.append)
    reply = {'actions': array(np.zeros((5, 7)))}
    for item in (
        exchange({}, reply),
        Lost('a:1', 1),
        Lost('b:1', 2),
        exchange({}, reply, connection=2),
        exchange({}, reply),
        exchange({}, {'actions': 'text'}),
        exchange({}, {'actions': 'text'}, connection=2),
        Closed('a:1', 1),
        exchange({}, reply, connection=2),
    ):
        reporter.handle(item)
    assert sink.calls == ['start ', 'step', 'skip', 'step', 'skip', 'step']
    counts = reporter.counts
    assert (counts.inferences, counts.steps, counts.lost) == (6, 3, 2)
    assert (counts.of_others, counts.unreadable) == (1, 2)
    assert any('start one relay for each client' in line for line in lines)


def test_a_mistake_of_ours_does_not_end_the_worker():
    lines = []

    def fail(name):
        raise RuntimeError('broken')

    reporter = Reporter(Settings('openpi', EpisodeRules()), fail, lines.append)
    reporter.handle(exchange({}, {'actions': array(np.zeros((5, 7)))}))
    assert 'unexpected RuntimeError' in lines[-1]


def test_control_characters_of_a_message_do_not_reach_the_terminal():
    sink, lines = RecordingSink(), []
    reporter = Reporter(Settings('groot', EpisodeRules()), lambda name: sink, lines.append)
    reply = [{'a\x1b[2J\n': array(np.zeros((2, 5, 7)))}, {}]
    reporter.handle(exchange({'endpoint': 'get_action'}, reply))
    assert lines[-1].isprintable()
    assert 'a?[2J?: expected actions of shape' in lines[-1]


def test_a_worker_that_is_behind_drops_and_says_where(monkeypatch):
    monkeypatch.setattr(work_queue, '_MOST_ITEMS', 2)
    handled, may_go_on = [], threading.Event()

    def handle(item):
        may_go_on.wait(10)
        handled.append(item)

    worker = Worker(handle, lambda: None)
    items = [exchange({}, {'n': n}) for n in range(4)]
    worker.put(Asked('a:1', 1, 0))
    for item in items:
        worker.put(item)
    worker.put(Closed('a:1', 1))
    worker.start()
    may_go_on.set()
    worker.close()
    assert handled == [Asked('a:1', 1, 0), *items[:2], Lost('a:1', 1), Closed('a:1', 1)]


# --- the command line

OPENPI = ['openpi', '--episode', 'none', '--exec-horizon', '5']


def test_options_with_their_defaults():
    options = parse_options([*OPENPI, '--ros-args', '-r', '__ns:=/arm'])
    assert (str(options.listen), str(options.server)) == ('127.0.0.1:8001', '127.0.0.1:8000')
    assert (options.bridge, options.source) == (default_address(), '')
    options = parse_options(['groot', '--exec-horizon', '8'])
    assert options.settings.rules == EpisodeRules(reset=True)
    assert (str(options.listen), options.allow_kill) == ('127.0.0.1:5556', False)
    options = parse_options(['openvla', '--episode', 'gap', '3'])
    assert (options.exec_horizon, options.settings.rules.gap) == (1, 3.0)


def test_options_of_the_features():
    options = parse_options(
        [*OPENPI, '--feature-key', 'state/h', '--axes', 'layer,token', '--pooling', 'token=last']
        + ['--pooling', 'layer=mean']
    )
    assert str(options.settings.feature) == 'state/h[token=last,layer=mean]'
    assert options.settings.keys.features == ('state/h',)


@pytest.mark.parametrize(
    ('words', 'error', 'text'),
    [
        ([*OPENPI, '--pooling', 'token=last'], OptionError, '--feature-key pre_velocity'),
        ([*OPENPI, '--axes', 'token'], OptionError, '--feature-key'),
        ([*OPENPI, '--feature-key', 'x', '--pooling', 'token=last'], PoolingError, 'token'),
        ([*OPENPI, '--statistics', '-1'], StepError, '--statistics'),
        ([*OPENPI, '--wait-for-monitor', 'nan'], StepError, '--wait-for-monitor'),
        ([*OPENPI[:-1], '0'], OptionError, '--exec-horizon'),
    ],
)
def test_options_that_do_not_fit_together(words, error, text):
    with pytest.raises(error, match=text):
        parse_options(words)


def test_what_ends_an_episode_has_to_be_said(capsys):
    with pytest.raises(SystemExit):
        parse_options(['openpi', '--exec-horizon', '5'])
    assert '--episode' in capsys.readouterr().err
