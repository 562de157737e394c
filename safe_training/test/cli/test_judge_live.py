# SPDX-License-Identifier: Apache-2.0
"""``judge --live-parity``: the scores of a live session are compared with those offline."""

import json
import math

import numpy as np
import pytest
from recorded_scores import make_score, write_scores

from safe_monitor_node.storage.detector_folder import load_detector
from safe_training.evaluation.judge import judge
from safe_training.evaluation.live_parity import compare_live
from safe_training.metrics.onset import onset_step
from safe_training.recordings.sources import load_rollouts
from vla_feature_bridge.rollout_set.reader import RolloutSet


@pytest.fixture
def session(rollouts, folder):
    """Return what a monitor publishes for the set: scores of each episode, as float32."""
    detector = load_detector(folder)
    live = {}
    for rollout in RolloutSet.open(rollouts):
        scores = detector.detector.score(rollout)
        threshold = detector.band.at(detector.alpha, rollout.task)
        crossed = threshold.first_crossing(scores)
        live[rollout.episode_id] = [
            make_score(
                rollout.episode_id,
                t,
                float(np.float32(score)),
                threshold=float(np.float32(threshold.upper[t])),
                alarm=crossed is not None and t >= crossed,
            )
            for t, score in enumerate(scores)
        ]
    assert any(scores[-1].alarm for scores in live.values())
    return live


@pytest.fixture
def compare(run, rollouts, folder, tmp_path):
    """Record a session and compare it; returns the status and the JSON."""

    def compared(live, *options):
        scores = [score for episode in live.values() for score in episode]
        write_scores(tmp_path / 'bag', {'/safe/score': scores})
        arguments = ('judge', rollouts, folder, '--live-parity', tmp_path / 'bag', *options)
        return run(*arguments)

    return compared


def test_the_same_scores_give_the_same_table(compare, session):
    status, said, errors = compare(session, '--json')
    assert (status, errors) == (0, '')
    found = json.loads(said)
    live = found['live']
    assert live['differences'] == []
    assert live['episodes'] == len(session)
    assert live['steps'] == sum(map(len, session.values()))
    assert 0 < live['largest_difference'] < 1e-6, 'float32'
    for row, other in zip(found['parts'], live['parts'], strict=True):
        assert row['part'] == other['part']
        for name in ('false_alarm_rate', 'detection_rate', 'roc_auc_max_score'):
            assert row[name] == pytest.approx(other[name], nan_ok=True)


def test_every_difference_is_named(compare, session):
    names = iter(session)
    score, threshold, nan, missing, alarm, absent = (next(names) for _ in range(6))
    session[score][1] = session[score][1]._replace(score=session[score][1].score + 0.01)
    session[threshold][0] = session[threshold][0]._replace(threshold=9.0)
    session[nan][2] = session[nan][2]._replace(score=math.nan)
    del session[missing][3]
    session[alarm] = [s._replace(alarm=not session[alarm][-1].alarm) for s in session[alarm]]
    del session[absent]
    session['unknown'] = [make_score('unknown', 0)]
    status, said, _ = compare(session, '--json')
    assert status == 1
    found = {(d['where'], d['step'], d['what']): d for d in json.loads(said)['live']['differences']}
    assert (score, 1, 'score') in found
    assert found[threshold, 0, 'threshold']['live'] == '9'
    assert found[nan, 2, 'score']['live'] == 'nan'
    assert found[missing, None, 'steps']['live'].startswith('0-2')
    assert (alarm, None, 'first alarm') in found
    assert found[absent, None, 'episode']['live'] == 'no score'
    assert found['unknown', None, 'episode']['offline'] == 'not in the set'
    named = {where for where, _, _ in found if not where.startswith('table')}
    assert named == {score, threshold, nan, missing, alarm, absent, 'unknown'}


def test_scores_of_another_detector_make_another_table(compare, session):
    changed = {
        name: [s._replace(score=-s.score) for s in scores] for name, scores in session.items()
    }
    status, said, _ = compare(changed)
    assert status == 1
    assert 'the same table from the scores of the monitor' in said
    assert 'differences of the live session' in said
    assert 'more differences are not shown' in said
    assert 'Live session: ' in said


def test_the_beginning_of_a_failure_comes_from_the_live_scores(session, rollouts, folder):
    detector = load_detector(folder)
    judged = judge(detector, load_rollouts(rollouts))
    falling = {
        name: [s._replace(score=1.0 - 0.01 * s.step) for s in scores]
        for name, scores in session.items()
    }
    found = compare_live(judged, falling)
    failures = [r for part in found.live.parts.values() for r in part if r.failed]
    assert {r.onset_step for r in failures} == {0}, 'it never rises'
    for rollout in (r for part in found.offline.parts.values() for r in part if r.failed):
        values = detector.detector.step_values(rollout.scores)
        assert rollout.onset_step == onset_step(values)
    assert any(r.onset_step for part in found.offline.parts.values() for r in part)


def test_equality_is_one_line(compare, session):
    status, said, _ = compare(session)
    assert status == 0
    assert f'steps of {len(session)} episodes were compared' in said
    assert 'differences of the live session' not in said


def test_options_that_do_not_fit_are_wrong_usage(run, rollouts, folder, tmp_path):
    status, _, errors = run('judge', rollouts, folder, '--live-topic', '/safe/score')
    assert (status, '--live-parity' in errors) == (2, True)
    for other in ('--bands', '--onset'):
        status, _, errors = run('judge', rollouts, folder, other, '--live-parity', tmp_path)
        assert (status, f'cannot be used with {other}' in errors) == (2, True)


def test_a_recording_without_scores_is_refused(run, rollouts, folder, tmp_path):
    write_scores(tmp_path / 'bag', {})
    status, _, errors = run('judge', rollouts, folder, '--live-parity', tmp_path / 'bag')
    assert status == 1
    assert 'found no scores; record safe/score during the session' in errors
