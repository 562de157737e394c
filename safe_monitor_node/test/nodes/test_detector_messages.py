# SPDX-License-Identifier: Apache-2.0
"""What is said of each of several detectors: on safe/NAME/score and in the diagnosis."""

from dataclasses import replace

import numpy as np
import pytest
from signal_detectors import HIGH, LOW, save_signal_detector, signal_step

from safe_monitor_node.bands.good_runs import SeenScores
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.nodes.diagnosis import facts_of
from safe_monitor_node.nodes.monitor_messages import detector_messages
from safe_msgs.msg import FailureScore, PolicyStep

NOMINAL, WARNING, ALARM = (
    FailureScore.STATE_NOMINAL,
    FailureScore.STATE_WARNING,
    FailureScore.STATE_ALARM,
)
SEEN = SeenScores({task: np.linspace(0.1, 0.5, 9) for task in ('pour', 'stack')})


@pytest.fixture
def session(tmp_path):
    """Return a session of two detectors, of which only the first learns new tasks."""
    folders = [str(save_signal_detector(tmp_path / name, name)) for name in ('near', 'far')]
    near = CalibratedDetector.load(folders[0])
    replace(near, provenance={'seen_tasks': ['pour', 'stack']}, seen_scores=SEEN).save(
        folders[0], overwrite=True
    )
    settings = MonitorSettings(more_folders=(folders[1],), names=('near', 'far'), good_runs=3)
    return MonitorSession(folders[0], settings)


@pytest.mark.parametrize(
    ('task', 'score', 'state', 'word'),
    [
        ('new', LOW, WARNING, 'WARNING'),
        ('new', HIGH, ALARM, 'ALARM'),
        ('pour', LOW, NOMINAL, 'NOMINAL'),
    ],
)
def test_a_detector_that_learns_the_task_is_nowhere_nominal(session, task, score, state, word):
    session.start('a', 1.0, task)
    session.step(signal_step(0, 'a', {'near': score, 'far': LOW}), 2.0)
    messages = detector_messages(session, PolicyStep())
    assert {name: message.state for name, message in messages.items()} == {
        'near': state,
        'far': NOMINAL,
    }
    facts = facts_of(session)
    assert str(facts['detector near']).startswith(word)
    assert str(facts['detector far']).startswith('NOMINAL')
