# SPDX-License-Identifier: Apache-2.0
"""The shipped detector on the real node: started by its name, fed with another policy."""

import dataclasses

import numpy as np
import pytest

from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import FailureAlarm


def test_a_monitor_starts_with_the_shipped_detector_and_alarms(probe, run_monitor, rollouts):
    run_monitor(detector_folder='signal_probe')
    probe.wait_until_active()
    loaded = load_detector('signal_probe')
    threshold = loaded.band.at(loaded.alpha)
    rollout = next(
        r for r in rollouts if (threshold.first_crossing(loaded.detector.score(r)) or 0) > 3
    )
    alarm_step = threshold.first_crossing(loaded.detector.score(rollout))
    expected = loaded.detector.score(rollout)
    probe.start(rollout.episode_id)
    for t in range(alarm_step + 1):
        # Another policy: features of another name and width.
        step = dataclasses.replace(
            rollout.step(t), features=np.full(7, t, np.float32), feature_name='other'
        )
        score = probe.step(step)
        assert score.score == pytest.approx(expected[t], abs=1e-5)
        assert score.alarm == (t >= alarm_step)
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_ALARM, 'the alarm arrives'
    )
