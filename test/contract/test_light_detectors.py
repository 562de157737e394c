# SPDX-License-Identifier: Apache-2.0
"""Detectors load no library that they do not need: a monitor starts fast and stays small."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from detector_cases import SMALL, TRAINING

from safe_monitor_node.detectors import DETECTORS, ENTRIES, make_detector

HEAVY = {'torch', 'sympy', 'sklearn', 'scipy', 'pyarrow', 'safe_training'}
NEED_TORCH = {'logpzo', 'rnd', 'safe_lstm', 'safe_mlp'}

SCORE = """
import json, sys
import numpy as np
import safe_monitor_node.detectors
from safe_monitor_node.detectors import make_detector
from vla_feature_bridge.rollout import Rollout

name, params, folder = json.loads(sys.argv[1])
with np.load(f'{folder}/state.npz') as state, np.load(f'{folder}/rollout.npz') as rollout:
    state, arrays = dict(state), dict(rollout)
signals = {key[7:]: arrays.pop(key) for key in list(arrays) if key.startswith('signal.')}
rollout = Rollout(task='t', exec_horizon=2, signals=signals, **arrays)
detector = make_detector(name, **params)
detector.load_state(state, rollout.features.shape[1])
score = detector.score_all([rollout])[0]
stream = detector.stream()
live = [stream.step(rollout.step(t)) for t in range(len(rollout))]
np.testing.assert_allclose(live, score, rtol=1e-5, atol=1e-5)
print(json.dumps([score.tolist(), sorted({module.split('.')[0] for module in sys.modules})]))
"""


@pytest.mark.parametrize('name', sorted(DETECTORS))
def test_a_detector_scores_without_heavy_libraries(name, tmp_path):
    params = SMALL.get(name, {})
    detector = make_detector(name, **params).fit(TRAINING)
    rollout = TRAINING[0]
    fields = ('features', 'actions', 'token_probability', 'token_entropy')
    arrays = {field: getattr(rollout, field) for field in fields}
    arrays |= {f'signal.{signal}': values for signal, values in rollout.signals.items()}
    np.savez(tmp_path / 'state.npz', **detector.state())
    np.savez(tmp_path / 'rollout.npz', **arrays)
    argument = json.dumps([name, params, str(tmp_path)])
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', SCORE, argument],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    score, loaded = json.loads(done.stdout)
    if name != 'random':  # its noise depends on the name of the episode
        np.testing.assert_allclose(score, detector.score(rollout), rtol=1e-6, atol=1e-6)
    assert HEAVY & set(loaded) == ({'torch'} if name in NEED_TORCH else set())


def test_the_registry_knows_which_detectors_use_pytorch():
    assert {name for name, entry in ENTRIES.items() if entry.uses_torch} == NEED_TORCH


def test_fitting_a_detector_without_networks_needs_no_pytorch():
    code = (
        'import sys, safe_training.fitting.embedding, safe_training.fitting.probe; '
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ['False'], done.stderr
