# SPDX-License-Identifier: Apache-2.0
"""What real processes send over DDS is what scoring the recorded rollout gives, step by step."""

import dataclasses

import numpy as np
import pytest
from rollout_factory import make_rollout
from scripted_episodes import SPEC, scripted

from safe_bringup.live import play_live
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter


@pytest.mark.slow
@pytest.mark.parametrize('detector', ['safe_mlp', 'safe_lstm'])
def test_scores_and_alarms_of_24_rollouts(
    detector, request, rollouts, rollout_folder, own_domain, tmp_path
):
    folder = request.getfixturevalue(f'{detector.removeprefix("safe_")}_folder')
    loaded = load_detector(folder)
    threshold = loaded.band.at(0.2)
    # Every 31st rollout: all tasks, both outcomes, seen and unseen.
    chosen = {rollouts.episode_ids[i]: rollouts[i] for i in range(0, len(rollouts), 31)}
    assert len(chosen) >= 24
    assert loaded.probability is not None
    assert {r.failed for r in chosen.values()} == {True, False}

    live = play_live(rollout_folder, folder, list(chosen), logs=tmp_path, frequency=100.0, gap=0.15)

    alarms = 0
    for episode, rollout in zip(live, chosen.values(), strict=True):
        offline = loaded.detector.score(rollout)
        assert episode.steps == list(range(len(rollout))), (
            f'{episode.episode_id}: steps missing or out of order'
        )
        np.testing.assert_allclose(episode.scores, offline, rtol=0, atol=1e-5)
        np.testing.assert_allclose(episode.thresholds, threshold.upper[: len(rollout)], rtol=1e-6)
        given = loaded.probability.along(offline)
        np.testing.assert_allclose(episode.probabilities, given, rtol=0, atol=1e-4)
        assert episode.alarm_step == threshold.first_crossing(offline), episode.episode_id
        assert episode.success == rollout.success
        assert episode.ended
        alarms += episode.alarm_step is not None
    assert 0 < alarms < len(chosen), (
        'a test without alarms, or with nothing else, would prove little'
    )


@pytest.mark.parametrize('fitted_on', ['robot', 'normalized'])
def test_a_replayed_set_states_its_action_space(fitted_on, own_domain, tmp_path):
    rollout = make_rollout(
        steps=4,
        actions=np.arange(56, dtype=np.float32).reshape(4, 1, 2, 7) / 1000,
        feature_name=str(SPEC),
        action_space='robot',
    )
    with RolloutSetWriter(tmp_path / 'set', SPEC) as writer:
        writer.add(rollout)
    calibrated = dataclasses.replace(scripted(), action_space=fitted_on)
    folder = calibrated.save(tmp_path / 'detector')
    (live,) = play_live(
        tmp_path / 'set', folder, [rollout.episode_id], logs=tmp_path, frequency=50.0, gap=0.1
    )
    assert live.steps == [0, 1, 2, 3]
    offline = calibrated.detector.score(rollout)
    expected = offline if fitted_on == 'robot' else np.full(4, np.nan)
    np.testing.assert_allclose(live.scores, expected, rtol=0, atol=1e-5)
