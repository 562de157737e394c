# SPDX-License-Identifier: Apache-2.0
"""The sentences of the doctor, one fault after the other."""

from dataclasses import replace

import pytest

from safe_monitor_node.looking.examination import (
    GraphSeen,
    Mark,
    MonitorSeen,
    Reader,
    Report,
    examine_bridge,
    examine_graph,
    examine_monitor,
)

OFFERED = ('/r/policy',)
FACTS = {
    'detector': 'linear_probe',
    'detector_folder': '/d',
    'features': 'h[token=last] (width 64)',
    'state': 'NOMINAL',
    'reason': 'score 0.1 is not above the threshold 0.8',
    'steps scored': '10',
    'steps invalid': '0',
    'steps missing': '0',
    'age of the last step [s]': '0.010',
}


def report(at, **changes):
    facts = {**FACTS, **{name.replace('_', ' '): value for name, value in changes.items()}}
    message = f'{facts["state"]}: {facts["reason"]}'
    return Report(at, 0, message, facts)


HEALTHY = MonitorSeen(
    name='/r/monitor',
    reports=[report(0.0), report(2.0, steps_scored='20')],
    step_topics=['/r/vla/policy_step'],
    step_publishers=OFFERED,
    event_publishers=OFFERED,
    stop_topic='/r/safe/stop',
    stop_readers=[Reader('/r/twist_mux', 'std_msgs/msg/Bool')],
)
GRAPH = GraphSeen(
    wait=4.0,
    surroundings='ROS domain 7',
    nodes=['/r/monitor', '/r/policy', '/r/twist_mux'],
    steps={'/r/vla/policy_step': OFFERED},
    monitors=[HEALTHY],
)


def problems(remarks):
    return [remark.text for remark in remarks if remark.mark is Mark.PROBLEM]


def notes(remarks):
    return [remark.text for remark in remarks if remark.mark is Mark.NOTE]


def with_last(**changes):
    """Return the healthy monitor with another last report."""
    return replace(HEALTHY, reports=[report(0.0), report(2.0, **changes)])


def test_a_healthy_robot_has_only_good_news():
    remarks = [*examine_graph(GRAPH), *examine_monitor(HEALTHY, 4.0)]
    assert {remark.mark for remark in remarks} == {Mark.OK}
    assert 'in 2.0 s: 10 steps scored, 0 steps invalid, 0 steps missing' in [
        r.text for r in remarks
    ]


def test_an_empty_graph_is_a_matter_of_domain_or_network():
    texts = problems(examine_graph(GraphSeen(4.0, 'ROS domain 7')))
    assert 'ROS_DOMAIN_ID' in texts[0] and 'multicast' in texts[0]
    assert 'expected a monitor, found none' in texts[1]


def test_steps_without_a_monitor_are_named():
    alone = replace(GRAPH, monitors=[], nodes=['/r/policy'])
    none, unheard = problems(examine_graph(alone))
    assert 'ros2 launch safe_bringup monitor.launch.py' in none
    assert unheard == '/r/vla/policy_step: /r/policy publishes steps, and no monitor subscribes'


def test_steps_in_another_namespace_are_named_with_the_way_out():
    elsewhere = replace(GRAPH, steps={'/x/vla/policy_step': ['/x/policy']})
    (text,) = problems(examine_graph(elsewhere))
    assert '/x/policy publishes steps' in text and 'namespace' in text and 'remap' in text


def test_two_nodes_of_one_name_are_a_problem():
    twice = replace(GRAPH, nodes=[*GRAPH.nodes, '/r/monitor'])
    (text,) = problems(examine_graph(twice))
    assert text.startswith('/r/monitor: expected one node of this name, found 2')


def test_a_monitor_that_answers_without_diagnostics_is_not_said_to_hang():
    (text,) = problems(examine_monitor(replace(HEALTHY, reports=[]), 4.0))
    assert text.startswith('/r/monitor answers, but sent no diagnostics for 4 s: use a longer')


@pytest.mark.parametrize('reports', [HEALTHY.reports, []])
def test_a_monitor_that_does_not_answer_hangs_whatever_it_said_before(reports):
    silent = replace(HEALTHY, reports=reports, answers=False, until=6.5)
    remarks = examine_monitor(silent, 4.0)
    (text,) = problems(remarks)
    assert text.startswith('/r/monitor/get_state: expected an answer, found none: the process of ')
    assert 'hangs' in text
    before = f'its last diagnostics came 4.5 s before: NOMINAL: {FACTS["reason"]}'
    assert notes(remarks) == ([before] if reports else [])
    assert Mark.OK not in {remark.mark for remark in remarks}


def test_a_monitor_that_is_not_configured_gives_its_reason():
    refused = Report(0.0, 2, '/d: no such folder', {'detector_folder': '/d'})
    (text,) = problems(examine_monitor(replace(HEALTHY, reports=[refused]), 4.0))
    assert '/d: no such folder' in text and 'ros2 safe load FOLDER' in text


def test_an_inactive_monitor_gets_the_command_that_activates_it():
    inactive = replace(report(1.0, state='UNKNOWN'), message='not active')
    (text,) = problems(examine_monitor(replace(HEALTHY, reports=[inactive]), 4.0))
    assert 'ros2 lifecycle set /r/monitor activate' in text


@pytest.mark.parametrize(
    ('state', 'reason', 'advice'),
    [
        ('INVALID', '12 steps of the episode are missing (0 to 11)', 'StepPublisher.start'),
        ('STALE', 'no policy step has arrived for more than 2 s', 'END'),
        ('STALE', 'no /clock for 9 s: use_sim_time is true', 'ros2 bag play --clock'),
    ],
)
def test_a_state_without_scores_is_a_problem_with_advice(state, reason, advice):
    texts = problems(examine_monitor(with_last(state=state, reason=reason), 4.0))
    assert any(text.startswith(f'{state}: {reason}; ') and advice in text for text in texts)


@pytest.mark.parametrize('state', ['ALARM', 'WARNING', 'UNKNOWN'])
def test_a_state_that_the_policy_causes_is_no_fault_of_the_set_up(state):
    remarks = examine_monitor(with_last(state=state, reason='so', steps_scored='20'), 4.0)
    assert problems(remarks) == []
    assert f'{state}: so' in notes(remarks)


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ('NOMINAL', 'NOMINAL, but /r/vla/policy_step: found 2'),
        ('UNKNOWN', 'UNKNOWN: no episode is running; /r/vla/policy_step: found 2'),
    ],
)
def test_what_the_monitor_finds_around_itself_is_a_problem(state, message):
    last = replace(report(2.0, state=state, reason='no episode is running'), message=message)
    monitor = replace(HEALTHY, reports=[report(0.0), last])
    assert '/r/vla/policy_step: found 2' in problems(examine_monitor(monitor, 4.0))


def test_steps_that_cease_are_a_note_and_steps_that_are_all_invalid_a_problem():
    assert any(
        'no step arrived for 2.0 s' in text for text in notes(examine_monitor(with_last(), 4))
    )
    texts = problems(examine_monitor(with_last(steps_invalid='7'), 4.0))
    assert texts == ['in 2.0 s: 0 steps scored, 7 steps invalid, 0 steps missing']


def test_a_stamp_of_the_future_is_a_matter_of_two_clocks():
    changes = {'age of the last step [s]': '-3.500'}
    last = replace(report(2.0, steps_scored='20'), facts={**FACTS, **changes})
    texts = problems(examine_monitor(replace(HEALTHY, reports=[report(0.0), last]), 4.0))
    assert texts == [
        'the stamp of the last step is 3.50 s in the future: synchronise the clocks of the '
        'computers, for example with chrony'
    ]


def test_a_policy_without_events_is_a_note():
    assert any(
        'END' in text for text in notes(examine_monitor(replace(HEALTHY, event_publishers=[]), 4))
    )


def test_a_diagnosis_that_is_not_understood_is_no_good_news():
    last = replace(HEALTHY.reports[-1], level=1, message='NOMINAL (with trouble)')
    found = examine_monitor(replace(HEALTHY, reports=[HEALTHY.reports[0], last]), 4.0)
    assert problems(found) == ['NOMINAL (with trouble)']


def test_who_gets_the_stop_is_said():
    nobody = replace(HEALTHY, stop_readers=[])
    assert any('no node subscribes' in text for text in notes(examine_monitor(nobody, 4.0)))
    box = Reader('/r/black_box', 'std_msgs/msg/Bool', records=True)
    recorded = replace(HEALTHY, stop_readers=[box])
    assert any('stops no robot' in text for text in notes(examine_monitor(recorded, 4.0)))
    both = replace(HEALTHY, stop_readers=[box, *HEALTHY.stop_readers])
    assert not any('stops no robot' in text for text in notes(examine_monitor(both, 4.0)))
    wrong = replace(
        HEALTHY,
        stop_readers=[
            Reader('/r/a', 'std_msgs/msg/String'),
            Reader('/r/b', 'std_msgs/msg/Bool', 'durability'),
        ],
    )
    first, second = problems(examine_monitor(wrong, 4.0))
    assert '/r/a expects std_msgs/msg/String' in first
    assert '/r/b gets no message (durability)' in second


SERVES = Report(0.0, 0, '1 source(s)', {'episode_from': 'gap'})


def test_a_bridge_in_order_is_no_problem():
    source = Report(0.0, 0, "episode 'a', 5.0 steps/s", {'episode': 'a'})
    assert [remark.mark for remark in examine_bridge({'bridge': SERVES, 'source': source})] == [
        *(Mark.OK, Mark.OK)
    ]


@pytest.mark.parametrize('level', [1, 2])
def test_what_a_bridge_finds_at_a_source_is_a_problem(level):
    source = Report(0.0, level, 'set the parameter join to approximate', {'episode': ''})
    remarks = examine_bridge({'source left': source, 'bridge': SERVES})
    assert problems(remarks) == ['source left: set the parameter join to approximate']


def test_a_bridge_that_waits_for_its_source_is_a_note():
    waits = Report(0.0, 3, 'no source is connected', {'sources': 'none'})
    assert notes(examine_bridge({'bridge': waits})) == ['bridge: no source is connected']


@pytest.mark.parametrize(
    ('report', 'expected'),
    [
        (Report(0.0, 2, 'joining topics: none'), 'not configured: joining topics: none; correct'),
        (Report(0.0, 3, 'not configured'), 'not configured: '),
        (Report(0.0, 3, 'not active', {'sources': 'none'}), 'not active; make it active'),
    ],
)
def test_a_bridge_that_publishes_nothing_is_a_problem(report, expected):
    (text,) = problems(examine_bridge({'bridge': report}))
    assert text.startswith(expected)
