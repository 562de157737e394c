# SPDX-License-Identifier: Apache-2.0
"""Steps of many robots that wait for their scores: the same verdicts as of each robot alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from band_factory import constant_band

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.scoring import Wanted, scored_alone, scored_together
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep

WIDTH = 16
STEPS = 12
# A seed whose networks make alarms and leave the first robot without one.
SEED = 0


def save(folder, name, **params):
    torch.manual_seed(SEED)
    detector = make_detector(name, hidden=8, **params)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.set_network(detector.build(WIDTH), WIDTH)
    band = constant_band(np.linspace(0.3, 0.52, 39), (0.1, 0.5), STEPS)
    return str(CalibratedDetector(detector, FeatureSpec('f', WIDTH), band, 0.1).save(folder))


@pytest.fixture
def folders(tmp_path):
    return [save(tmp_path / 'lstm', 'safe_lstm'), save(tmp_path / 'mlp', 'safe_mlp')]


def session(folders, *more):
    names = ('lstm', 'mlp')[: 1 + len(more)] if more else ()
    settings = MonitorSettings(more_folders=tuple(more), names=names)
    return MonitorSession(folders, settings)


def features_of(robot):
    return np.random.default_rng(robot).normal(size=(STEPS, WIDTH)).astype(np.float32)


def step_of(robot, t):
    return PolicyStep(features_of(robot)[t], feature_name='f', episode_id=f'e{robot}', step=t)


def same(found, expected):
    assert (found is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=1e-6)
        assert found.threshold == pytest.approx(expected.threshold, nan_ok=True)
        assert found.verdict.state == expected.verdict.state
        assert found.problem == expected.problem


def test_robots_together_get_what_each_gets_alone(folders):
    lstm, mlp = folders
    # One detector, another one, and both in one session.
    made = [(lstm,), (lstm,), (mlp,), (lstm, mlp), (lstm, mlp), (lstm,)]
    alone, together = [session(*one) for one in made], [session(*one) for one in made]
    states, following = set(), [0] * len(made)
    for t in range(STEPS):
        # Not every robot has a step each time, and the first one sends garbage at last.
        waiting = [robot for robot in range(len(made)) if (t + robot) % 4]
        steps = [step_of(robot, following[robot]) for robot in waiting]
        for robot in waiting:
            following[robot] += 1
        if waiting[0] == 0 and following[0] > 6:
            steps[0].features = np.full(WIDTH, np.nan, np.float32)
        expected = [
            alone[robot].step(step, float(t)) for robot, step in zip(waiting, steps, strict=True)
        ]
        found = scored_together(
            [
                together[robot].scoring(step, float(t), None, None)
                for robot, step in zip(waiting, steps, strict=True)
            ]
        )
        for one, other in zip(found, expected, strict=True):
            same(one, other)
            states |= {other.verdict.state}
    assert {AlarmState.ALARM, AlarmState.INVALID} <= states, 'the test saw more than one state'


def test_one_detector_scores_all_its_steps_in_one_call(folders, monkeypatch):
    sessions = [session(folders[0]) for _ in range(5)]
    detector = sessions[0].monitor.calibrated.detector
    assert all(one.monitor.calibrated.detector is detector for one in sessions)
    sizes = []
    step_many = type(detector).step_many

    def counted(self, streams, steps):
        sizes.append(len(steps))
        return step_many(self, streams, steps)

    monkeypatch.setattr(type(detector), 'step_many', counted)
    scored_together([one.scoring(step_of(i, 0), 0.0, None, None) for i, one in enumerate(sessions)])
    assert sizes == [5]


def test_a_detector_that_fails_makes_the_steps_of_its_robots_invalid(folders, monkeypatch):
    lstm, mlp = folders
    broken, sound = [session(lstm), session(lstm)], session(mlp)
    kind = type(broken[0].monitor.calibrated.detector)

    def fail(self, streams, steps):
        raise MemoryError('no memory')

    monkeypatch.setattr(kind, 'step_many', fail)
    scorings = [
        one.scoring(step_of(i, 0), 0.0, None, None) for i, one in enumerate([*broken, sound])
    ]
    first, second, third = scored_together(scorings)
    for result in (first, second):
        assert result.verdict.state == AlarmState.INVALID
        assert 'detector safe_lstm failed with MemoryError: no memory' in result.problem
    assert np.isfinite(third.score)


@pytest.mark.parametrize('answers', [[0.1], [0.1, 0.2, 0.3], None], ids=['few', 'many', 'none'])
def test_a_detector_with_another_number_of_answers_has_failed(folders, monkeypatch, answers):
    lstm, mlp = folders
    broken, sound = [session(lstm), session(lstm)], session(mlp)
    kind = type(broken[0].monitor.calibrated.detector)
    monkeypatch.setattr(kind, 'step_many', lambda self, streams, steps: answers)
    first, second, third = scored_together(
        [one.scoring(step_of(i, 0), 0.0, None, None) for i, one in enumerate([*broken, sound])]
    )
    for result in (first, second):
        assert result.verdict.state == AlarmState.INVALID
        assert 'detector safe_lstm failed' in result.problem
    assert np.isfinite(third.score)


def test_an_error_of_one_scoring_is_its_result(folders):
    detector = make_detector('clock')
    detector.load_state({}, WIDTH)

    def good(robot):
        return (yield Wanted(detector, detector.stream(), step_of(robot, 0)))

    def bad():
        yield Wanted(detector, detector.stream(), step_of(1, 0))
        raise ValueError('a fault')

    def never():
        raise KeyError('at once')
        yield

    results = scored_together([good(0), bad(), never(), good(3)])
    assert results[0] == results[3] == scored_alone(good(0))
    assert isinstance(results[1], ValueError)
    assert isinstance(results[2], KeyError)
    assert scored_together([]) == []
