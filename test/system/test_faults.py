# SPDX-License-Identifier: Apache-2.0
"""Every fault that was injected into a monitor, and what the monitor must say of it.

One monitor process serves most of the rows. A row injects its fault; then the state on
``safe/alarm``, ``safe/stop`` and the text in ``/diagnostics`` must become as the row says, within
its limit. The table is printed at the end of the run.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from fault_bench import FaultBench, Outcome
from probe import suspend
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy
from signal_detectors import HIGH, LOW, save_signal_detector, signal_step
from std_msgs.msg import Bool, String

from safe_bringup.live import Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent, FailureAlarm
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.ros.qos import ALARM_QOS, EPISODE_QOS, STOP_QOS, alive_qos, stop_deadline
from vla_feature_bridge.step import PolicyStep

LIMIT = 10.0
"""Longest time until a fault is said [s]; an idle machine needs a tenth, a busy one more."""

WARN, ERROR = DiagnosticStatus.WARN, DiagnosticStatus.ERROR
WIDTH = 128


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes
    ----------
    name, how : str
        The fault, and how it is injected.
    state : str
        Expected state.
    text : str
        Pattern that the diagnosis must contain.
    inject : callable
        Causes the fault.
    level : bytes or None
        Expected level of the diagnosis; None for any.
    limit : float
    """

    name: str
    how: str
    state: str
    text: str
    inject: Callable[[FaultBench], None]
    level: bytes | None = None
    limit: float = LIMIT


# --- one function for each fault that is more than one step


def without_id(first: int) -> Callable[[FaultBench], None]:
    return lambda bench: bench.play('', range(first, first + 5))


def constant_id(stamps: Callable[[int], int]) -> Callable[[FaultBench], None]:
    def inject(bench: FaultBench) -> None:
        episode = bench.new_id()
        for again in (0, 100):
            for index in range(5):
                step = bench.quiet(index, episode)
                step.features = step.features + np.float32(1e-4 * again)
                bench.send(step, stamp=stamps(index))
            if not again:
                bench.probe.event(episode, EpisodeEvent.KIND_END)
                bench.spin(0.3)

    return inject


def end_too_early(bench: FaultBench) -> None:
    episode = bench.new_id()
    bench.play(episode, range(3))
    bench.probe.event(episode, EpisodeEvent.KIND_END)
    bench.spin(0.3)
    bench.play(episode, range(3, 6))


def played_twice(bench: FaultBench) -> None:
    episode, stamp = bench.new_id(), time.time_ns()
    for _ in range(2):
        for index in range(5):
            bench.send(bench.quiet(index, episode), stamp=stamp + index)


def new_content_of_a_step(bench: FaultBench) -> None:
    episode = bench.new_id()
    bench.play(episode, range(3))
    bench.send(bench.quiet(1, episode), features=lambda step: step.features + 1)


def two_publishers(ids: int) -> Callable[[FaultBench], None]:
    def inject(bench: FaultBench) -> None:
        episodes = [bench.new_id()] * 2 if ids == 1 else [bench.new_id(), bench.new_id()]
        with bench.node('second_policy') as node:
            second = node.create_publisher(PolicyStepMessage, 'vla/policy_step', 10)
            bench.until_matched(second)
            for index in range(6):
                bench.play(episodes[0], [index])
                second.publish(bench.message(index, episodes[1]))
                bench.spin(0.02)
            pattern = r'/vla/policy_step: expected one publisher, found 2 \([^)]*/second_policy'
            bench.probe.spin_until(lambda: re.search(pattern, bench.text), 'both are seen')

    return inject


def another_stop(bench: FaultBench) -> None:
    with bench.node('safety_stop') as node:
        node.create_publisher(Bool, 'safe/stop', 1)
        pattern = r'/safe/stop: .*found 2 publishers \([^)]*/safety_stop'
        bench.probe.spin_until(lambda: re.search(pattern, bench.text), 'it is seen', LIMIT)
        assert bench.level == ERROR


def two_monitors(bench: FaultBench) -> None:
    second = bench.start_monitor()
    bench.probe.spin_until(
        lambda: '/safe/stop: expected this monitor as' in bench.text,
        'the other monitor is seen',
        40.0,
    )
    assert bench.level == ERROR
    assert '/safe/alarm: expected this monitor as' in bench.text
    assert 'stop the other monitor' in bench.text
    second.stop()
    # The second monitor has said other things about the same episodes.
    bench.settle()


def wrong_type(bench: FaultBench) -> None:
    with bench.node('wrong') as node:
        node.create_publisher(String, 'vla/policy_step', 10)
        node.create_publisher(String, 'vla/episode', 10)
        for topic in ('vla/policy_step', 'vla/episode'):
            pattern = f'/{topic}: expected messages of type safe_msgs/msg/.*String .*/wrong'
            bench.probe.spin_until(
                lambda pattern=pattern: re.search(pattern, bench.text), 'it is seen', LIMIT
            )


def best_effort(bench: FaultBench) -> None:
    with bench.node('lossy') as node:
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_publisher(PolicyStepMessage, 'vla/policy_step', qos)
        bench.probe.spin_until(
            lambda: re.search(r'no message of /lossy arrives.*best effort publisher', bench.text),
            'it is seen',
            LIMIT,
        )


def nobody(bench: FaultBench) -> None:
    bench.probe.leave()
    try:
        bench.probe.spin_until(
            lambda: '/vla/policy_step: expected a publisher' in bench.text, 'it is seen', LIMIT
        )
        with bench.node() as node:
            node.create_publisher(PolicyStepMessage, 'robot7/vla/policy_step', 10)
            bench.probe.spin_until(
                lambda: 'messages of this type are on /robot7/vla/policy_step' in bench.text,
                'the other topic is named',
                LIMIT,
            )
    finally:
        bench.probe.join()


def alarm_and_another_id(bench: FaultBench) -> None:
    raise_alarm(bench)
    bench.play(bench.new_id(), range(2))


def latched_alarm_and_another_id(bench: FaultBench) -> None:
    assert bench.probe.set_parameters(latch='reset').successful
    episode = raise_alarm(bench)
    bench.probe.event(episode, EpisodeEvent.KIND_END)
    bench.spin(0.3)
    assert bench.state == 'ALARM'
    assert bench.probe.stops[-1]
    bench.play(bench.new_id(), range(2))
    assert f"of episode '{episode}'; the parameter latch is reset" in bench.probe.alarms[-1].reason


def raise_alarm(bench: FaultBench) -> str:
    episode, index = bench.new_id(), 0
    while bench.state != 'ALARM':
        bench.send(bench.loud(index, episode))
        index += 1
    return episode


def frozen(bench: FaultBench) -> None:
    episode = bench.new_id()
    features = bench.quiet(0, episode).features
    bench.play(episode, range(8), features=features)


def environment_steps(bench: FaultBench) -> None:
    episode = bench.new_id()
    for index in range(4):
        bench.send(bench.quiet(index, episode), step=50 * index)
    alarms = bench.probe.alarms
    bench.probe.spin_until(
        lambda: 'number the inferences' in alarms[-1].reason, 'the supervisor gets the advice too'
    )


def out_of_order(*indices: int) -> Callable[[FaultBench], None]:
    return lambda bench: bench.play(bench.new_id(), indices)


def third_step(**changes: object) -> Callable[[FaultBench], None]:
    """Publish two good steps, one with a fault, and two good ones."""

    def inject(bench: FaultBench) -> None:
        episode = bench.new_id()
        bench.play(episode, range(2))
        bench.send(bench.quiet(2, episode), **changes)
        bench.play(episode, range(3, 5))

    return inject


def third_message(change: Callable[[PolicyStepMessage], None]) -> Callable[[FaultBench], None]:
    """Do the same with a message that no step has."""

    def inject(bench: FaultBench) -> None:
        episode = bench.new_id()
        bench.play(episode, range(2))
        message = bench.message(2, episode)
        change(message)
        bench.probe.publish(message)
        bench.spin(0.02)
        bench.play(episode, range(3, 5))

    return inject


def cut(message: PolicyStepMessage) -> None:
    message.features.data = message.features.data[:-3]


def huge_shape(message: PolicyStepMessage) -> None:
    message.features.shape = [2**31, 2**31]


def unknown_dtype(message: PolicyStepMessage) -> None:
    message.features.dtype = 'float8'


def unpaired(message: PolicyStepMessage) -> None:
    message.signal_names = ['a', 'b']
    message.signals = [1.0]


def no_features(message: PolicyStepMessage) -> None:
    message.features.dtype, message.features.shape, message.features.data = '', [], []


def long_texts(bench: FaultBench) -> None:
    long = 'x' * 5_000_000
    bench.probe.event(long, EpisodeEvent.KIND_START, task=long)
    bench.play(long, [0, 1, 1, 2])
    bench.probe.spin_until(lambda: 'task=xxx' in bench.text, 'the task is there', 20.0)
    assert len(bench.text) < 20_000
    assert all(len(alarm.reason) < 2000 for alarm in bench.probe.alarms)
    bench.play(bench.new_id(), range(2))


def start_without_steps(bench: FaultBench) -> None:
    bench.probe.event(bench.new_id(), EpisodeEvent.KIND_START)
    bench.spin(0.1)
    bench.play(bench.new_id(), range(2))


def end_of_nothing(bench: FaultBench) -> None:
    bench.probe.event('mistyped', EpisodeEvent.KIND_END)


def volatile_events(bench: FaultBench) -> None:
    """Do as ``create_publisher(EpisodeEvent, 'vla/episode', 10)`` and ``ros2 topic pub`` do."""
    with bench.node() as node:
        publisher = node.create_publisher(EpisodeEvent, 'vla/episode', 10)
        bench.until_matched(publisher)
        episode, task = bench.new_id(), f'task {bench.new_id()}'
        publisher.publish(EpisodeEvent(episode_id=episode, kind=EpisodeEvent.KIND_START, task=task))
        bench.probe.spin_until(lambda: f'task={task}' in bench.text, 'START has arrived')
        bench.play(episode, range(2))
        bench.probe.spin_until(lambda: bench.state == 'NOMINAL', 'it runs')
        publisher.publish(EpisodeEvent(episode_id=episode, kind=EpisodeEvent.KIND_END))
        bench.probe.spin_until(lambda: bench.state == 'UNKNOWN', 'END has arrived')


def monitor_stops_while_an_episode_ends(bench: FaultBench) -> None:
    """Steps and END wait together, and END is a message of another topic."""
    episode = bench.new_id()
    bench.play(episode, [0])
    bench.probe.scores.clear()
    os.kill(bench.process.pid, signal.SIGSTOP)
    try:
        bench.play(episode, range(1, 20), gap=0.0)
        bench.probe.event(episode, EpisodeEvent.KIND_END)
        bench.spin(0.5)
    finally:
        os.kill(bench.process.pid, signal.SIGCONT)
    scores = bench.probe.scores
    bench.probe.spin_until(lambda: len(scores) == 19, 'every step is scored', LIMIT)
    assert {score.state for score in scores} == {FailureAlarm.STATE_NOMINAL}


def monitor_stops_while_two_episodes_end(bench: FaultBench) -> None:
    """What waits is three episodes, in two topics."""
    episodes = [bench.new_id() for _ in range(3)]
    bench.probe.start(episodes[0])
    bench.play(episodes[0], [0])
    bench.probe.scores.clear()
    os.kill(bench.process.pid, signal.SIGSTOP)
    try:
        for episode in episodes:
            if episode != episodes[0]:
                bench.probe.start(episode)
                bench.play(episode, [0], gap=0.0)
            bench.play(episode, range(1, 20), gap=0.0)
            if episode != episodes[-1]:
                bench.probe.event(episode, EpisodeEvent.KIND_END)
        bench.spin(0.5)
    finally:
        os.kill(bench.process.pid, signal.SIGCONT)
    scores = bench.probe.scores
    bench.probe.spin_until(lambda: len(scores) == 59, 'every step is scored', LIMIT)
    assert [score.episode_id for score in scores[::20]] == episodes
    assert {score.state for score in scores} == {FailureAlarm.STATE_NOMINAL}


def monitor_stops_over_episodes(count: int, *, lost: bool) -> Callable[[FaultBench], None]:
    """Only events wait, two of each episode."""

    def inject(bench: FaultBench) -> None:
        before = int(bench.probe.facts()['episodes'])
        suspend(bench.process.pid)
        try:
            for _ in range(count):
                episode = bench.new_id()
                bench.probe.start(episode)
                bench.probe.event(episode, EpisodeEvent.KIND_END)
                bench.spin(0.002)
        finally:
            os.kill(bench.process.pid, signal.SIGCONT)
        if not lost:
            bench.probe.spin_until(
                lambda: int(bench.probe.facts()['episodes']) == before + count, 'all have begun'
            )
        bench.play(bench.new_id(), range(2))

    return inject


def late_end_of_a_used_id(bench: FaultBench) -> None:
    """The END of the first episode is published before the second one, and arrives after it."""
    episode = bench.new_id()
    bench.play(episode, range(3))
    suspend(bench.process.pid)
    # The monitor finds the publisher of END when it goes on. Then the steps wait already.
    with bench.node() as node:
        try:
            late = node.create_publisher(EpisodeEvent, 'vla/episode', EPISODE_QOS)
            late.publish(EpisodeEvent(episode_id=episode, kind=EpisodeEvent.KIND_END))
            bench.play(episode, range(3))
        finally:
            os.kill(bench.process.pid, signal.SIGCONT)
        bench.probe.spin_until(
            lambda: 'was ignored, and' in bench.text or bench.state == 'UNKNOWN', 'END'
        )
        bench.spin(0.3)


def silent(bench: FaultBench) -> None:
    bench.play(bench.new_id(), range(3))


def releasing_policy(bench: FaultBench) -> None:
    refused = bench.probe.set_parameters(alarm_policy=['STALE: SLOW'])
    assert not refused.successful and 'stop_when_blind is true' in refused.reason
    silent(bench)


def replayed(bench: FaultBench, *, again: bool) -> None:
    """Kill a policy in the middle of an episode, and perhaps begin the same episode anew."""
    episode, scores = '', bench.probe.scores
    for run in range(1 + again):
        policy = bench.start_policy(frequency=5.0)
        scores.clear()
        bench.probe.spin_until(lambda: scores and scores[-1].step == 2, 'the policy runs', 40.0)
        if run == 0:
            episode = scores[-1].episode_id
            os.kill(policy.pid, signal.SIGKILL)
    assert not again or bench.probe.scores[-1].episode_id == episode


WIDE = np.zeros(WIDTH + 1, np.float32)
NAN = np.full(WIDTH, np.nan, np.float32)
INF = np.full(WIDTH, np.inf, np.float32)

FAULTS = (
    # Steps that belong to no episode, or contradict each other.
    Fault('empty id from step 0', '5 steps', 'INVALID', 'found an empty text', without_id(0)),
    Fault('empty id from step 5', '5 steps', 'INVALID', 'found an empty text', without_id(5)),
    Fault(
        'constant id and stamp 0, END without START',
        '2 episodes of one id',
        'INVALID',
        'after the END.*its stamp is 0',
        constant_id(lambda index: 0),
    ),
    Fault(
        'constant id, stamps from the start of each episode',
        '2 episodes of one id',
        'INVALID',
        'after the END.*stamp is not later',
        constant_id(lambda index: 10**8 * (index + 1)),
    ),
    Fault('END too early', '3 steps after END', 'INVALID', 'increase end_grace', end_too_early),
    Fault(
        'a recording without events played twice',
        'the same 5 steps twice, then silence',
        'STALE',
        'no new policy step has arrived.*number of ignored repetitions is 5',
        played_twice,
    ),
    Fault(
        'a step comes again with other features',
        'step 1 of 3 again, features + 1',
        'INVALID',
        'arrived twice, with different features',
        new_content_of_a_step,
        ERROR,
    ),
    Fault(
        'two publishers, one id',
        'a second node, the same steps in turn',
        'INVALID',
        'expected one publisher of all steps, found another',
        two_publishers(1),
        ERROR,
    ),
    Fault(
        'two publishers, two ids',
        'a second node, in turn',
        'INVALID',
        'missing',
        two_publishers(2),
        ERROR,
    ),
    # Who else is there.
    Fault('another node publishes safe/stop', 'std_msgs/Bool', 'UNKNOWN', '', another_stop),
    Fault('wrong type on the topics', 'std_msgs/String', 'UNKNOWN', '', wrong_type),
    Fault('best-effort publisher of steps', 'QoS', 'UNKNOWN', '', best_effort),
    Fault('nobody publishes steps, or elsewhere', 'no publisher', 'UNKNOWN', '', nobody),
    Fault(
        'volatile publisher of events', 'START and END, depth 10', 'UNKNOWN', '', volatile_events
    ),
    # Alarms.
    Fault('new id without END, in ALARM', 'latch episode', 'NOMINAL', '', alarm_and_another_id),
    Fault(
        'END and new id, in ALARM',
        'latch reset',
        'ALARM',
        'latch is reset',
        latched_alarm_and_another_id,
        ERROR,
    ),
    # What is in a step.
    Fault('frozen features', '8 identical vectors', 'INVALID', 'identical features', frozen, ERROR),
    Fault(
        'all features 0',
        'step 2 of 5',
        'INVALID',
        'step 2: expected features that are not all 0, found only zeros',
        third_step(features=np.zeros(WIDTH, np.float32)),
        ERROR,
    ),
    Fault(
        'features of int32',
        'step 2 of 5',
        'INVALID',
        'step 2: .*found int32',
        third_step(features=np.arange(WIDTH, dtype=np.int32)),
    ),
    Fault(
        'features of 1e30',
        'step 2 of 5',
        'INVALID',
        r'step 2: .*found 1e\+30',
        third_step(features=np.full(WIDTH, 1e30, np.float32)),
    ),
    Fault(
        'features without a name',
        'the last 1 of 3 steps',
        'NOMINAL',
        'found features without a name',
        lambda bench: bench.play(bench.new_id(), range(3), feature_name=''),
        WARN,
    ),
    Fault(
        'step counts time steps of the environment',
        '0, 50, 100, 150',
        'INVALID',
        r'missing \(1 to 49\).*number the inferences',
        environment_steps,
        ERROR,
    ),
    Fault(
        'NaN, then good steps',
        'step 2 of 5',
        'INVALID',
        'INVALID: step 2: .*NaN',
        third_step(features=NAN),
    ),
    Fault(
        'Inf, then good steps',
        'step 2 of 5',
        'INVALID',
        'INVALID: step 2: .*infinity',
        third_step(features=INF),
    ),
    Fault(
        'wrong width',
        'step 2 of 5',
        'INVALID',
        r'INVALID: step 2: .*\(129,\)',
        third_step(features=WIDE),
    ),
    Fault(
        'other pooling',
        'step 2 of 5',
        'INVALID',
        r'INVALID: step 2: .*h\[token=mean\]',
        third_step(feature_name='h[token=mean]'),
    ),
    Fault('bytes cut', 'step 2 of 5', 'INVALID', 'INVALID: .*bytes', third_message(cut)),
    Fault('absurd shape', 'step 2 of 5', 'INVALID', 'INVALID: .*shape', third_message(huge_shape)),
    Fault(
        'unknown dtype', 'step 2 of 5', 'INVALID', 'INVALID: .*float8', third_message(unknown_dtype)
    ),
    Fault(
        'unpaired signals', 'step 2 of 5', 'INVALID', 'INVALID: .*2 names', third_message(unpaired)
    ),
    Fault(
        'no features',
        'step 2 of 5',
        'INVALID',
        'INVALID: .*expected features',
        third_message(no_features),
    ),
    # Order.
    Fault(
        'a step comes twice',
        '0 1 1 2',
        'NOMINAL',
        'steps? (was|were) ignored',
        out_of_order(0, 1, 1, 2),
        WARN,
    ),
    Fault(
        'out of order',
        '0 1 2 4 3',
        'INVALID',
        r'1 step .* missing \(3\)',
        out_of_order(0, 1, 2, 4, 3),
    ),
    Fault(
        'steps missing', '0 1 5', 'INVALID', r'3 steps .* missing \(2 to 4\)', out_of_order(0, 1, 5)
    ),
    Fault(
        'starts at step 3', '3 4', 'INVALID', r'3 steps .* missing \(0 to 2\)', out_of_order(3, 4)
    ),
    Fault(
        'jumps to the largest number',
        '0 4294967295',
        'INVALID',
        'missing',
        out_of_order(0, 2**32 - 1),
    ),
    Fault('steps cease', '3 steps, then silence', 'STALE', 'no policy step has arrived', silent),
    Fault(
        'publisher killed',
        'kill -9 of replay at step 2',
        'STALE',
        'no policy step has arrived',
        lambda bench: replayed(bench, again=False),
        limit=15.0,
    ),
    Fault(
        'the same episode begun anew by a restarted publisher',
        'kill -9 of replay, started again',
        'NOMINAL',
        '',
        lambda bench: replayed(bench, again=True),
        limit=15.0,
    ),
    Fault(
        'the monitor stops while an episode ends',
        'SIGSTOP, 19 steps and END, SIGCONT',
        'UNKNOWN',
        '',
        monitor_stops_while_an_episode_ends,
    ),
    Fault(
        'the monitor stops while two episodes end',
        'SIGSTOP, 59 steps of 3 episodes, 2 times END and START, SIGCONT',
        'NOMINAL',
        '',
        monitor_stops_while_two_episodes_end,
    ),
    Fault(
        'the monitor stops over 40 episodes',
        'SIGSTOP, 40 times START and END, SIGCONT',
        'NOMINAL',
        r'^(?!.*may be lost)',
        monitor_stops_over_episodes(40, lost=False),
    ),
    Fault(
        'the monitor stops over more events than can wait',
        'SIGSTOP, 60 times START and END, SIGCONT',
        'NOMINAL',
        '/vla/episode: a START, END or LABEL may be lost',
        monitor_stops_over_episodes(60, lost=True),
        WARN,
    ),
    Fault(
        'an alarm policy that would release a blind robot',
        "set 'STALE: SLOW', 3 steps, then silence",
        'STALE',
        'no policy step has arrived',
        releasing_policy,
    ),
    # Texts and events.
    Fault('id and task of 5 MB', 'START and 4 steps', 'NOMINAL', '5000000 characters', long_texts),
    Fault(
        'END of the last episode arrives in the next one of the same id',
        'SIGSTOP, END by a new node, steps, SIGCONT',
        'NOMINAL',
        'END of episode .* was ignored, and its outcome too',
        late_end_of_a_used_id,
        WARN,
    ),
    Fault(
        'START of an id that no step has',
        'START, then another id',
        'NOMINAL',
        'START of episode .*: expected a step of this episode next',
        start_without_steps,
        WARN,
    ),
    Fault(
        'END of an id that no step has',
        'END',
        'UNKNOWN',
        "END of episode 'mistyped': expected START or a step with this id",
        end_of_nothing,
    ),
)


# --- two detectors with the rule `all`; bands of 20 and 6 steps

PAIR = ('unfamiliar', 'uncertain')


def pair_step(
    t: int, episode: str = 'e', first: float = LOW, second: float | None = LOW
) -> PolicyStep:
    return signal_step(t, episode, dict(zip(PAIR, (first, second), strict=True)))


def one_cannot_score(first: float) -> Callable[[FaultBench], None]:
    def inject(bench: FaultBench) -> None:
        episode = bench.new_id()
        for index in range(5):
            second = None if index == 2 else LOW
            bench.send(pair_step(index, episode, first if index == 3 else LOW, second))

    return inject


def reset_of_one_alarm(bench: FaultBench) -> None:
    episode = bench.new_id()
    bench.send(pair_step(0, episode, HIGH, HIGH))
    bench.send(pair_step(1, episode, LOW, None))
    bench.probe.spin_until(lambda: bench.state == 'ALARM', 'both are above')
    bench.probe.reset()


def damaged_folder(bench: FaultBench) -> None:
    answer = bench.probe.load_detector(Path('uncertain=/nowhere'))
    assert not answer.success and '/nowhere' in answer.message
    bench.send(pair_step(0, bench.new_id()))


PAIR_FAULTS = (
    Fault(
        'one of two detectors cannot score',
        'its signal is missing in step 2 of 5',
        'INVALID',
        "INVALID: uncertain: step 2: expected the signal 'uncertain'",
        one_cannot_score(LOW),
        ERROR,
    ),
    Fault(
        'one of two detectors cannot score, the other alarms',
        'rule all, HIGH in step 3',
        'INVALID',
        'INVALID: uncertain: step 2.*detector unfamiliar=ALARM, score',
        one_cannot_score(HIGH),
        ERROR,
    ),
    Fault(
        'the band of one of two detectors ends',
        '8 steps, bands of 20 and 6 steps',
        'INVALID',
        'INVALID: uncertain: .*6',
        lambda bench: bench.play(bench.new_id(), range(8)),
        ERROR,
    ),
    Fault(
        'reset while one of two detectors cannot judge',
        'both alarm, one loses a signal, ~/reset',
        'INVALID',
        'INVALID: uncertain: the alarm was reset, but step 1',
        reset_of_one_alarm,
        ERROR,
    ),
    Fault(
        'a folder that does not exist for one of two detectors',
        '~/load_detector uncertain=/nowhere',
        'NOMINAL',
        'detector uncertain=NOMINAL, score',
        damaged_folder,
    ),
    Fault('two detectors, steps cease', '3 steps', 'STALE', 'STALE: no policy step', silent),
)


@pytest.fixture(scope='module')
def loud(rollouts, mlp_folder):
    """Return the steps of a rollout that raises an alarm."""
    loaded = load_detector(mlp_folder)
    threshold = loaded.band.at(0.2)
    chosen = next(
        r for r in rollouts if threshold.first_crossing(loaded.detector.score(r)) is not None
    )

    def step(index, episode):
        made = chosen.step(index)
        made.episode_id = episode
        return made

    return step


@pytest.fixture(scope='module')
def processes(tmp_path_factory, mlp_folder, domain_of_module) -> Iterator[Callable[..., Process]]:
    """Start nodes in a domain of this module; each ends with 0, or is killed, without traceback."""
    folder, started = tmp_path_factory.mktemp('faults'), []

    def start(module: str, **parameters: object) -> Process:
        log = folder / f'process{len(started)}.log'
        started.append(Process(module, parameters, log))
        return started[-1]

    yield start
    for process in started:
        status = process.stop()
        assert status in (0, -signal.SIGKILL), process.log()
        assert 'Traceback' not in process.log(), process.log()


@pytest.fixture(scope='module')
def bench(processes, mlp_folder, rollout_folder, quiet, loud) -> Iterator[FaultBench]:
    """Yield a monitor for all rows of the table."""
    monitor = partial(processes, 'safe_monitor_node.nodes.monitor', detector_folder=mlp_folder)
    replay = partial(
        processes, 'vla_feature_bridge.nodes.replay', rollout_set=rollout_folder, limit=1
    )
    made = FaultBench(monitor, replay, quiet, loud)
    yield made
    made.close()


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_said(
    fault: Fault, bench: FaultBench, add_outcome: Callable[..., Outcome]
) -> None:
    bench.settle()
    outcome = add_outcome(fault.name, fault.how, fault.state, fault.limit)
    fault.inject(bench)
    try:
        bench.expect(outcome, fault.state, fault.text, fault.level)
    finally:
        bench.stop_policies()
        if 'latch' in fault.how:
            bench.probe.reset()
            bench.probe.set_parameters(latch='episode')
    assert bench.process.exit_status is None


@pytest.fixture(scope='module')
def pair(processes, tmp_path_factory, domains) -> Iterator[FaultBench]:
    """Yield a monitor with two detectors, in a domain of its own."""
    folder = tmp_path_factory.mktemp('pair')
    first, second = (
        save_signal_detector(folder / name, name, length)
        for name, length in zip(PAIR, (20, 6), strict=True)
    )
    monitor = partial(
        processes,
        'safe_monitor_node.nodes.monitor',
        detector_folder=first,
        more_detectors=[str(second)],
        detector_names=list(PAIR),
        detector_rule='all',
    )
    # Other tests of this module start processes in its domain while this monitor runs.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(domains()))
        made = FaultBench(monitor, processes, pair_step, pair_step)
    yield made
    made.close()


@pytest.mark.parametrize('fault', PAIR_FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_one_of_two_detectors_is_said(
    fault: Fault, pair: FaultBench, add_outcome: Callable[..., Outcome]
) -> None:
    pair.settle()
    outcome = add_outcome(fault.name, fault.how, fault.state, fault.limit)
    fault.inject(pair)
    pair.expect(outcome, fault.state, fault.text, fault.level)
    assert pair.process.exit_status is None


def test_two_monitors_see_each_other(
    bench: FaultBench, add_outcome: Callable[..., Outcome]
) -> None:
    bench.settle()
    outcome = add_outcome('two monitors of one name', 'a second process', 'UNKNOWN', 60.0)
    two_monitors(bench)
    bench.expect(outcome, 'UNKNOWN', r'^(?!.*found 2 publishers)', None)
    assert bench.process.exit_status is None


def test_the_device_is_the_robot_and_an_unknown_label_is_said(bench: FaultBench) -> None:
    episode = bench.settle()
    assert bench.probe.status is not None
    assert bench.probe.status.hardware_id == '', 'this monitor has no namespace'
    unknown = bench.probe.label_episode('mistyped', EpisodeEvent.OUTCOME_SUCCESS)
    assert unknown.success
    assert 'neither a START nor a step of this episode has come' in unknown.message
    known = bench.probe.label_episode(episode, EpisodeEvent.OUTCOME_SUCCESS)
    assert 'neither' not in known.message


def test_a_supervisor_sees_a_dead_monitor_without_a_timer(
    bench: FaultBench, add_outcome: Callable[..., Outcome]
) -> None:
    """The last test of the shared monitor: it is killed."""
    bench.settle()
    outcome = add_outcome('monitor killed', 'kill -9', 'dead', LIMIT)
    with bench.node('supervisor') as node:
        said: list[tuple[str, int]] = []

        def events(name: str) -> SubscriptionEventCallbacks:
            return SubscriptionEventCallbacks(
                liveliness=lambda info: said.append((name, info.alive_count)),
                deadline=lambda info: said.append((f'{name} late', info.total_count)),
            )

        received: list[str] = []
        stop_qos = alive_qos(STOP_QOS, lease=2.0, deadline=stop_deadline(0.1))
        for kind, topic, qos in (
            (Bool, 'safe/stop', stop_qos),
            (FailureAlarm, 'safe/alarm', alive_qos(ALARM_QOS, lease=2.0)),
        ):
            node.create_subscription(
                kind,
                topic,
                lambda message, topic=topic: received.append(topic),
                qos,
                event_callbacks=events(topic),
            )
        spin = spinner(node)
        spin(lambda: {'safe/stop', 'safe/alarm'} <= set(received))
        assert ('safe/stop', 1) in said and ('safe/alarm', 1) in said
        said.clear()
        os.kill(bench.process.pid, signal.SIGKILL)
        began = time.monotonic()
        spin(lambda: {('safe/stop', 0), ('safe/alarm', 0)} <= set(said))
        outcome.found, outcome.after = 'dead', time.monotonic() - began
        assert any(name == 'safe/stop late' for name, _ in said)


def spinner(node) -> Callable[[Callable[[], bool]], None]:
    """Return a function that handles the messages of a node until a condition holds."""
    from rclpy.executors import SingleThreadedExecutor

    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def spin(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 2 * LIMIT
        while not condition():
            assert time.monotonic() < deadline
            executor.spin_once(timeout_sec=0.05)

    return spin
