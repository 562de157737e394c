# SPDX-License-Identifier: Apache-2.0
"""The next steps of many episodes, scored together: the numbers are those of each alone."""

import dataclasses

import numpy as np
import pytest
import torch
from detector_cases import WIDTH, every_case, fitted, full_rollout
from live_scores import streamed

from safe_monitor_node.detectors import StepError, make_detector
from vla_feature_bridge.step import PolicyStep

TOLERANCE = 1e-6


def close(found, expected):
    # A sum over an episode, or a distance, grows beyond 1; its rounding grows with it.
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@every_case
def test_episodes_in_batches_of_any_size_score_as_each_alone(case):
    rng = np.random.default_rng(11)
    detector = fitted(case)
    rollouts = [full_rollout(rng, index, int(rng.integers(4, 12))) for index in range(9)]
    streams = [detector.stream() for _ in rollouts]
    scores = [[] for _ in rollouts]
    while waiting := [i for i, r in enumerate(rollouts) if len(scores[i]) < len(r)]:
        size = int(rng.integers(1, len(waiting) + 1))
        chosen = rng.permutation(waiting)[:size]
        steps = [rollouts[i].step(len(scores[i])) for i in chosen]
        answers = detector.step_many([streams[i] for i in chosen], steps)
        assert len(answers) == size
        assert all(type(answer) is float for answer in answers)
        for i, answer in zip(chosen, answers, strict=True):
            scores[i].append(answer)
    for found, rollout in zip(scores, rollouts, strict=True):
        close(found, streamed(detector, rollout))


@every_case
def test_a_refused_step_leaves_the_others_and_its_own_stream_alone(case):
    rng = np.random.default_rng(12)
    detector = fitted(case)
    rollouts = [full_rollout(rng, index, 6) for index in range(4)]
    streams = [detector.stream() for _ in rollouts]
    scores = [[] for _ in rollouts]
    for t in range(6):
        steps = [rollout.step(t) for rollout in rollouts]
        if t in (2, 3):
            bad = dataclasses.replace(
                steps[1],
                features=np.full(WIDTH, np.nan, np.float32),
                actions=None,
                signals={},
                token_probability=None,
                token_entropy=None,
            )
            answers = detector.step_many(streams, [steps[0], bad, *steps[2:]])
            if detector.needs:
                assert isinstance(answers[1], StepError)
                answers[1] = detector.step_many([streams[1]], [steps[1]])[0]
        else:
            answers = detector.step_many(streams, steps)
        for found, answer in zip(scores, answers, strict=True):
            found.append(answer)
    for found, rollout in zip(scores, rollouts, strict=True):
        close(found, streamed(detector, rollout))


@pytest.mark.parametrize('name', ['safe_lstm', 'safe_mlp'])
def test_networks_of_full_size_score_as_each_alone(name):
    width = 1024
    rng = np.random.default_rng(13)
    detector = make_detector(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.set_network(detector.build(width), width)
    features = rng.normal(size=(12, 40, width)).astype(np.float32)
    alone = [detector.stream() for _ in features]
    together = [detector.stream() for _ in features]
    for t in range(features.shape[1]):
        steps = [PolicyStep(robot[t], step=t) for robot in features]
        size = int(rng.integers(1, 13))
        found = detector.step_many(together[:size], steps[:size])
        found += detector.step_many(together[size:], steps[size:]) if size < 12 else []
        expected = [stream.step(step) for stream, step in zip(alone, steps, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_mahalanobis_of_many_features_scores_as_each_alone():
    # More features than a block of its factor has.
    width, rng = 700, np.random.default_rng(15)
    arrays = {}
    for outcome in ('success', 'failure'):
        factor = np.tril(rng.normal(size=(width, width))).astype(np.float32) / 20
        factor[np.diag_indices(width)] = 1.0
        arrays[f'{outcome}.mean'] = rng.normal(size=width)
        arrays[f'{outcome}.factor'] = factor
    detector = make_detector('mahalanobis')
    detector.load_state(arrays, width)
    features = rng.normal(size=(9, 5, width)).astype(np.float32)
    alone = [detector.stream() for _ in features]
    together = [detector.stream() for _ in features]
    for t in range(features.shape[1]):
        steps = [PolicyStep(robot[t], step=t) for robot in features]
        expected = [stream.step(step) for stream, step in zip(alone, steps, strict=True)]
        found = detector.step_many(together, steps)
        # The rounding of a difference of two distances is that of the distances.
        rounding = 1e-7 * detector.success_.distances(features[:, t]).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=max(rounding, TOLERANCE))


@pytest.mark.parametrize('name', ['safe_lstm', 'safe_mlp'])
def test_features_that_overflow_score_as_each_alone(name):
    # A finite score of such a step would be one that no monitor alone gives.
    torch.manual_seed(1)
    detector = make_detector(name, hidden=16)
    detector.set_network(detector.build(32), 32)
    rng = np.random.default_rng(14)
    features = rng.normal(size=(6, 4, 32)).astype(np.float32)
    features[0] = np.sign(features[0]) * np.float32(3e38)
    features[1] = np.float32(3e38)
    alone = [detector.stream() for _ in features]
    together = [detector.stream() for _ in features]
    for t in range(features.shape[1]):
        steps = [PolicyStep(robot[t], step=t) for robot in features]
        expected = [stream.step(step) for stream, step in zip(alone, steps, strict=True)]
        found = detector.step_many(together, steps)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.isfinite(found[2:]).all()
