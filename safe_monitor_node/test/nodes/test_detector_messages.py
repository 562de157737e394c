# SPDX-License-Identifier: Apache-2.0
"""What is said of each of several detectors: on safe/NAME/score and in the diagnosis."""

from dataclasses import replace

import numpy as np
import pytest
from signal_detectors import HIGH, LOW, save_signal_detector, signal_step

from safe_monitor_node.bands.good_runs import SeenScores
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.monitor.own_labels import EpisodeLabel
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.nodes.diagnosis import facts_of
from safe_monitor_node.nodes.monitor_messages import detector_messages
from safe_msgs.msg import FailureScore, PolicyStep

NOMINAL, WARNING, ALARM = (
    FailureScore.STATE_NOMINAL,
    FailureScore.STATE_WARNING,
    FailureScore.STATE_ALARM,
)
SEEN = SeenScores({task: np.linspace(0.1, 0.5, 9) for task in ('pour', 'stack')})


def make_session(tmp_path, **settings):
    """Return a session of two detectors, of which only the first learns new tasks."""
    folders = [str(save_signal_detector(tmp_path / name, name)) for name in ('near', 'far')]
    near = CalibratedDetector.load(folders[0])
    replace(near, provenance={'seen_tasks': ['pour', 'stack']}, seen_scores=SEEN).save(
        folders[0], overwrite=True
    )
    chosen = {'good_runs': 3, **settings}
    more = {'more_folders': (folders[1],), 'names': ('near', 'far')}
    return MonitorSession(folders[0], MonitorSettings(**more, **chosen))


@pytest.mark.parametrize(
    ('task', 'score', 'state', 'word'),
    [
        ('new', LOW, WARNING, 'WARNING'),
        ('new', HIGH, ALARM, 'ALARM'),
        ('pour', LOW, NOMINAL, 'NOMINAL'),
    ],
)
def test_a_detector_that_learns_the_task_is_nowhere_nominal(tmp_path, task, score, state, word):
    session = make_session(tmp_path)
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


def test_the_file_of_good_runs_is_of_the_detectors_that_learn(tmp_path):
    path = tmp_path / 'kept.json'
    session = make_session(tmp_path, adaptation_file=str(path))
    session.start('a', 1.0, 'new')
    session.step(signal_step(0, 'a', {'near': LOW, 'far': LOW}), 2.0)
    session.end('a', 3.0)
    session.finish_episode()
    session.label(EpisodeLabel('a', True))
    (news,) = session.take_news()
    assert news.startswith("near: episode 'a' is a good run of task 'new'")
    assert [each.name for each in tmp_path.glob('kept*')] == ['kept.json']
    assert '"a"' in path.read_text()
    facts = facts_of(session)
    assert facts['adaptation file'] == str(path)
    assert facts['far: adaptation file'] == 'none: labels change nothing'


def test_a_file_is_refused_if_no_detector_learns(tmp_path):
    with pytest.raises(MonitorError, match='parameter adaptation_file: expected an empty text'):
        make_session(tmp_path, good_runs=0, adaptation_file=str(tmp_path / 'kept.json'))
