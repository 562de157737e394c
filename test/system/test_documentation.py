# SPDX-License-Identifier: Apache-2.0
"""The code in the documentation runs: what a reader copies must work."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import FailureScore
from vla_feature_bridge.rollout_set.reader import RolloutSet

TOP = Path(__file__).parents[2]


def python_blocks(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (TOP / page).read_text(encoding='utf-8'), re.DOTALL)


def test_the_publisher_of_the_readme_feeds_a_monitor(probe, run_monitor, mlp_folder, rollouts):
    (block,) = python_blocks('README.md')
    names: dict = {}
    exec(compile(block, 'README.md', 'exec'), names)
    loaded, rollout = load_detector(mlp_folder), rollouts[0]
    run_monitor(detector_folder=mlp_folder)
    publisher = names['StepPublisher'](probe.node, str(loaded.feature), rollout.exec_horizon)
    probe.wait_until_active()
    for t in range(3):
        publisher.publish('e', t, rollout.features[t], rollout.actions[t])
    probe.spin_until(lambda: len(probe.scores) == 3, 'three steps are answered')
    assert FailureScore.STATE_INVALID not in [s.state for s in probe.scores]
    offline = loaded.detector.score(rollout)[:3]
    np.testing.assert_allclose([s.score for s in probe.scores], offline, rtol=0, atol=1e-5)


def test_pooling_as_the_how_to_page_shows_it():
    (block,) = python_blocks('docs/how-to/connect_your_policy.md')
    states = np.random.default_rng(0).normal(size=(7, 4096)).astype(np.float32)
    names: dict = {'hidden_states': states}
    exec(compile(block, 'connect_your_policy.md', 'exec'), names)
    np.testing.assert_array_equal(names['vector'], states[-1])
    assert names['name'] == 'hidden_states[token=last]'


def test_a_rollout_set_is_written_as_the_how_to_page_shows_it(tmp_path, monkeypatch):
    block = python_blocks('docs/how-to/use_your_recordings.md')[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(block, 'use_your_recordings.md', 'exec'), {})
    assert len(RolloutSet.open('my_rollouts')) == 20


@pytest.mark.parametrize(
    'page', sorted(p.relative_to(TOP).as_posix() for p in TOP.glob('docs/**/*.md')) + ['README.md']
)
def test_links_lead_somewhere(page):
    text = (TOP / page).read_text(encoding='utf-8')
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        if not target.startswith('http'):
            path = os.path.normpath(TOP / Path(page).parent / target)
            assert os.path.exists(path), f'{page} links to {target}, which does not exist'
