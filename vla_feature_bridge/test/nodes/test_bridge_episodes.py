# SPDX-License-Identifier: Apache-2.0
"""Channels: steps keep or get their numbers, gaps and repetitions count, episodes are whole."""

import numpy as np
import pytest

from vla_feature_bridge.episode_steps import EpisodeEventRecord, EpisodeSteps
from vla_feature_bridge.nodes.bridge_boundaries import Boundary, InstructionRule
from vla_feature_bridge.nodes.bridge_channel import ChannelError
from vla_feature_bridge.nodes.bridge_episodes import (
    GivenEpisodes,
    JoinedEpisodes,
    SenderEpisodes,
)
from vla_feature_bridge.ros.messages import MessageError
from vla_feature_bridge.signals import rollout_signals
from vla_feature_bridge.step import NO_FEATURE, PolicyStep


class Published:
    """Keeps what a channel publishes, as words: ``start a``, ``a 0``, ``end a True``."""

    def __init__(self):
        self.words, self.steps, self.events = [], [], []

    def publish_step(self, step):
        if step.features.dtype.name == 'complex64':
            raise MessageError('no such dtype in a message')
        self.steps.append(step)
        self.words.append(f'{step.episode_id} {step.step}')

    def publish_event(self, event):
        self.events.append(event)
        outcome = '' if event.kind == 'start' else f' {event.success}'
        self.words.append(f'{event.kind} {event.episode_id}{outcome}')


def clock():
    return 1_700_000_000_000_000_000


def step(episode, number, **fields):
    return PolicyStep(
        features=np.ones(4, np.float32), feature_name='h', episode_id=episode, step=number, **fields
    )


def event(kind, episode, **fields):
    return EpisodeEventRecord(kind=kind, episode_id=episode, **fields)


@pytest.fixture
def out():
    return Published()


@pytest.fixture
def passing(out):
    return SenderEpisodes('left', out, clock)


def take(channel, *items):
    for item in items:
        if isinstance(item, PolicyStep):
            channel.take_step(item)
        else:
            channel.take_event(item)


# --- episodes of the sender


def test_an_episode_passes_with_its_numbers(passing, out):
    take(passing, event('start', 'a'), step('a', 0), step('a', 1), event('end', 'a', success=True))
    assert out.words == ['start a', 'a 0', 'a 1', 'end a True']
    assert (passing.running, passing.problem) == ('', '')


def test_a_start_that_comes_again_begins_no_new_episode(passing, out):
    take(passing, event('start', 'a'), step('a', 0), event('start', 'a'), step('a', 1))
    assert out.words == ['start a', 'a 0', 'a 1']
    assert passing.counts.episodes == 1


def test_a_bridge_that_starts_in_mid_episode_passes_the_start_on_and_says_what_it_missed(
    passing, out
):
    take(passing, event('start', 'a', task='t'), step('a', 7))
    assert out.words == ['start a', 'a 7']
    assert out.events[0].task == 't'
    assert passing.counts.lost == 7
    assert passing.problem == '7 steps are missing before step 7'


def test_gaps_are_counted_and_repetitions_left_out(passing, out):
    take(passing, event('start', 'a'), step('a', 0), step('a', 2), step('a', 2), step('a', 1))
    assert out.words == ['start a', 'a 0', 'a 2']
    assert (passing.counts.lost, passing.counts.repeated) == (1, 2)
    assert passing.problem == '1 step is missing before step 2'


def test_the_first_problem_stays_until_the_episode_ends(passing):
    take(passing, event('start', 'a'), step('a', 1))
    passing.note('something else')
    assert passing.problem == '1 step is missing before step 1'
    assert passing.problem_is_current(now=1e12, recent=10.0)
    take(passing, event('end', 'a'))
    assert not passing.problem_is_current(now=1e12, recent=10.0)
    passing.note('afterwards')
    assert passing.problem == 'afterwards'


def test_an_episode_without_end_ends_when_the_next_one_begins(passing, out):
    take(passing, event('start', 'a'), step('a', 0), event('start', 'b'), step('b', 0))
    assert out.words == ['start a', 'a 0', 'end a None', 'start b', 'b 0']
    assert out.events[1].reason == 'the next episode began'
    assert passing.counts.lost == 0


def test_a_lost_start_is_made_from_the_first_step(passing, out):
    take(passing, step('a', 0, instruction='pick'), step('a', 1))
    assert out.words == ['start a', 'a 0', 'a 1']
    assert out.events[0].instruction == 'pick'
    assert 'the START of the source was lost' in passing.problem


def test_a_source_that_comes_back_after_its_end_goes_on_with_its_numbers(passing, out):
    take(passing, event('start', 'a', task='t'), step('a', 0), step('a', 1))
    passing.end(Boundary('end', reason='the connection of the source was lost'))
    take(passing, step('a', 1), step('a', 4))
    assert out.words == ['start a', 'a 0', 'a 1', 'end a None', 'start a', 'a 4']
    assert out.events[2].task == 't'
    assert (passing.counts.lost, passing.counts.repeated) == (2, 1)


def test_labels_and_ends_of_unknown_episodes_pass(passing, out):
    take(passing, event('label', 'old', success=False), event('end', 'older', success=True))
    assert out.words == ['label old False', 'end older True']
    passing.label('old', None, 'taken back')
    assert out.words[-1] == 'label old None'


def test_a_step_without_episode_is_refused(passing, out):
    with pytest.raises(ChannelError, match='expected an episode_id'):
        take(passing, step('', 0))
    assert passing.counts.refused == 1


# --- episodes that the robot begins


def test_steps_are_numbered_anew_in_the_episodes_of_the_robot(out):
    channel = GivenEpisodes('', out, clock)
    take(channel, event('start', 'own'), step('own', 0), step('own', 1))
    assert out.words == []
    assert channel.counts.outside == 2
    channel.start(Boundary('start', episode_id='g', instruction='pick', task='t'))
    take(channel, step('own', 2), step('own', 3), event('end', 'own'))
    channel.end(Boundary('end', success=False))
    take(channel, step('own', 4))
    assert out.words == ['start g', 'g 0', 'g 1', 'end g False']
    assert [s.instruction for s in out.steps] == ['pick', 'pick']
    assert out.events[-1].task == 't'
    assert channel.counts.lost == 0


def test_steps_lost_on_the_way_leave_a_gap_in_the_new_numbers(out):
    channel = GivenEpisodes('', out, clock)
    channel.start(Boundary('start', episode_id='g'))
    take(channel, step('own', 40), step('own', 41), step('own', 44), step('own', 44))
    take(channel, step('next', 1))
    assert out.words == ['start g', 'g 0', 'g 1', 'g 4', 'g 6']
    assert (channel.counts.lost, channel.counts.repeated) == (3, 1)


def test_the_first_step_of_an_episode_has_the_signals_of_a_first_step(out):
    chunks = np.random.default_rng(1).normal(size=(4, 1, 6, 3)).astype(np.float32)
    whole = rollout_signals(chunks, 2)
    channel = GivenEpisodes('', out, clock)
    channel.start(Boundary('start', episode_id='g'))
    for t in (2, 3):
        signals = {name: float(values[t]) for name, values in whole.items()} | {'own': 5.0}
        take(channel, step('own', t, actions=chunks[t], exec_horizon=2, signals=signals))
    first, second = (s.signals for s in out.steps)
    alone = rollout_signals(chunks[2:], 2)
    for name, values in alone.items():
        assert first[name] == pytest.approx(values[0], rel=1e-5)
        assert second[name] == pytest.approx(values[1], rel=1e-5)
    assert first['chunk_mse'] == 0.0 != whole['chunk_mse'][2]
    assert first['own'] == 5.0


def test_a_gap_in_time_or_a_new_instruction_begins_an_episode_by_itself(out):
    channel = GivenEpisodes('', out, clock, begin_with_step=True)
    take(channel, step('own', 5))
    channel.end(Boundary('end', reason='no step for 5 s'))
    take(channel, step('own', 6))
    assert [word.split()[0] for word in out.words] == [
        *('start', out.steps[0].episode_id, 'end', 'start', out.steps[1].episode_id)
    ]
    assert [s.step for s in out.steps] == [0, 0]

    other = Published()
    channel = GivenEpisodes('', other, clock, instruction_rule=InstructionRule())
    for number, instruction in enumerate(['', 'pick', 'pick', 'place', '']):
        take(channel, step('own', number, instruction=instruction))
    assert [e.kind for e in other.events] == ['start', 'end', 'start', 'end']
    assert [(s.step, s.instruction) for s in other.steps] == [
        (0, 'pick'),
        (1, 'pick'),
        (0, 'place'),
    ]
    assert channel.counts.outside == 2


# --- steps joined from topics


def joined(out, feature_name='h', **options):
    return JoinedEpisodes('', out, clock, EpisodeSteps(feature_name, 2, clock=clock), **options)


def test_joined_steps_are_numbered_and_get_their_signals(out):
    chunks = np.random.default_rng(2).normal(size=(3, 1, 4, 3)).astype(np.float32)
    channel = joined(out)
    channel.take_joined(np.ones(4, np.float32), chunks[0], 5, 'pick', 0)
    channel.start(Boundary('start', episode_id='g', reason='a goal is executed'))
    for t in range(3):
        channel.take_joined(np.ones(4, np.float32), chunks[t], 10 + t, 'pick', 0)
    channel.end(Boundary('end', success=True, reason='done'))
    assert out.words == ['start g', 'g 0', 'g 1', 'g 2', 'end g True']
    assert [s.stamp for s in out.steps] == [10, 11, 12]
    assert (out.events[0].reason, out.events[-1].reason) == ('a goal is executed', 'done')
    for name, values in rollout_signals(chunks, 2).items():
        assert [s.signals[name] for s in out.steps] == pytest.approx(list(values), rel=1e-5)
    assert channel.counts.outside == 1


def test_what_could_not_be_joined_or_read_leaves_a_gap(out):
    channel = joined(out, NO_FEATURE)
    chunk = np.ones((1, 4, 3))
    channel.start(Boundary('start', episode_id='g'))
    channel.take_joined(None, chunk, 1, None, 0)
    channel.take_joined(None, chunk, 2, None, 2)
    channel.refuse('the joints are other ones', 3, 0)
    channel.take_joined(None, np.full((1, 4, 3), np.nan), 4, None, 0)
    channel.take_joined(None, chunk, 5, None, 0)
    assert out.words == ['start g', 'g 0', 'g 3', 'g 6']
    assert (channel.counts.lost, channel.counts.refused) == (2, 2)
    assert channel.problem == '2 steps are missing because their messages found no partners'
    assert out.steps[0].features.shape == (0,)


def test_joined_episodes_follow_each_other(out):
    channel = joined(out, begin_with_step=True)
    begun = []
    channel.on_begin = lambda: begun.append(channel.running)
    channel.take_joined(np.ones(4, np.float32), None, 1, 'pick', 3)
    first = channel.running
    channel.start(Boundary('start', episode_id='b'))
    assert out.words == [f'start {first}', f'{first} 0', f'end {first} None', 'start b']
    assert begun == [first, 'b']
    assert channel.counts.lost == 0
    assert channel.latest_id == 'b'
    assert channel.knows(first)
    assert not channel.end(Boundary('end')) or channel.running == ''
    assert not channel.end(Boundary('end'))


def test_a_step_that_no_message_can_hold_is_counted(out):
    channel = SenderEpisodes('', out, clock)
    bad = step('a', 0)
    bad.features = np.ones(4, np.complex64)
    take(channel, event('start', 'a'))
    with pytest.raises(MessageError):
        take(channel, bad)
    assert (channel.counts.refused, channel.counts.published) == (1, 0)
