# SPDX-License-Identifier: Apache-2.0
"""The detector without training data: found by its name, made again, and good on other policies."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rollout_factory import make_rollout
from shared_files import DATA

from safe_bringup.shipped_detector import shipped_detector
from safe_monitor_node import EpisodeMonitor, load_detector
from safe_monitor_node.storage.detector_folder import describe, is_detector_folder
from safe_monitor_node.storage.shipped import SHIPPED, located
from safe_training.evaluation.judge import judge
from safe_training.metrics.part_report import flatten_report
from safe_training.recordings.sources import load_rollouts
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.signals import rollout_signals

PACKAGE = Path(__file__).parents[2] / 'safe_monitor_node'


@pytest.mark.parametrize('name', SHIPPED)
def test_a_shipped_detector_is_found_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_detector_folder(name)
    assert load_detector(name).alpha == 0.1
    assert describe(name)['band']['steps'] == 1000
    # A folder of the user has precedence, also if it is no detector.
    (tmp_path / name).mkdir()
    assert located(name) == Path(name)
    with pytest.raises(SafeError, match='description of a detector folder'):
        load_detector(name)


def test_another_name_is_refused_with_the_names_there_are():
    with pytest.raises(SafeError, match=r'no such folder.* shipped detector: signal_probe'):
        load_detector('signal_prob')


def test_the_command_makes_the_same_detector_again():
    made = shipped_detector(str(DATA / 'miniature_flow_signals.npz'))
    kept = load_detector('signal_probe')
    for name, array in made.detector.state().items():
        np.testing.assert_allclose(kept.detector.state()[name], array, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(kept.band.upper, made.band.upper, rtol=1e-5)
    assert kept.provenance['episodes'] == made.provenance['episodes']
    assert kept.band.provenance['scores'] == 'loto'


@pytest.mark.parametrize('width', [0, 3, 1024])
def test_it_scores_steps_with_features_of_any_name_and_width(width):
    rng = np.random.default_rng(width)
    chunks = rng.normal(size=(6, 1, 8, 7)).astype(np.float32)
    rollout = make_rollout(
        features=rng.normal(size=(6, width)).astype(np.float32),
        feature_name='anything',
        actions=chunks,
        exec_horizon=4,
        signals=rollout_signals(chunks, 4),
    )
    calibrated = load_detector('signal_probe')
    monitor = EpisodeMonitor(calibrated)
    results = [monitor.step(rollout.step(t), 0.1 * t) for t in range(6)]
    found = [result.score for result in results]
    np.testing.assert_allclose(found, calibrated.detector.score(rollout), rtol=1e-5)
    still = replace(rollout.step(0), episode_id='b', signals={'chunk_mse': 0.0})
    assert monitor.step(still, 1.0).verdict.state.name == 'NOMINAL'


def test_a_wheel_holds_its_files(tmp_path):
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-q']
    source = tmp_path / 'source'
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns('test', 'build', '*.egg-info'))
    done = subprocess.run(
        [*command, '-w', str(tmp_path), str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    for file in ('detector.json', 'weights.safetensors'):
        assert f'safe_monitor_node/shipped/signal_probe/{file}' in names


@pytest.mark.parametrize(
    ('archive', 'early', 'macro'),
    [
        ('pi05_robocasa', 0.101, 0.745),
        ('groot_robocasa_action_signals', 0.0, 0.555),
        ('pi0_libero10_action_signals', 0.537, 0.783),
    ],
)
def test_it_judges_rollouts_of_other_policies_as_the_documentation_says(archive, early, macro):
    path = Path(os.environ.get('SAFE_SHARED', '')) / 'rollouts' / f'{archive}.npz'
    if not path.is_file():
        pytest.skip(f'{archive} is not part of the repository')
    report = judge(load_detector('signal_probe'), load_rollouts(str(path))).report()['new']
    values = flatten_report(report)
    found = values['found_early'], values['macro_roc_auc_max_score_until_min_length']
    assert found == pytest.approx((early, macro), abs=0.005)
