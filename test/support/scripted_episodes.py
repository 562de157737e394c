# SPDX-License-Identifier: Apache-2.0
"""Episodes for the tests of the monitor: a detector whose score is chosen, and a clock."""

import numpy as np
import torch

from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.steps import StepId
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState

WIDTH = 4
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))
LOW, RAISED, HIGH = 0.2, 0.7, 1.2


def make_band(alphas=(0.1, 0.2), levels=(1.0, 0.5), length=20):
    return Band(np.array(alphas), np.repeat(np.array(levels)[:, None], length, axis=1), 'any', 19)


def scripted(band=None, alpha=0.1):
    """Return a detector folder whose score is whatever a step's signal says."""
    detector = make_detector('action_norm')
    detector.load_state({}, WIDTH)
    return CalibratedDetector(detector, SPEC, make_band() if band is None else band, alpha)


def recurrent():
    """Return a detector folder whose score depends on every step so far."""
    detector = make_detector('safe_lstm', hidden=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.set_network(detector.build(WIDTH), WIDTH)
    return CalibratedDetector(detector, SPEC, make_band(levels=(0.9, 0.8)), 0.1)


def make_step(index, score=LOW, episode='a', **changes):
    values = {
        'features': np.full(WIDTH, 1 + index % 1000, np.float32),
        'feature_name': str(SPEC),
        'episode_id': episode,
        'step': index,
        'signals': {'action_norm': score},
    }
    return PolicyStep(**{**values, **changes})


class Live:
    """An episode monitor and a clock that runs one second a step."""

    def __init__(self, loaded=None, *, adaptation_step=0.0, **config):
        self.monitor = EpisodeMonitor(
            loaded or scripted(), config=AlarmConfig(**config), adaptation_step=adaptation_step
        )
        self.now = 50.0

    def step(self, *args, **changes):
        self.now += 1.0
        return self.monitor.step(make_step(*args, **changes), self.now)

    def unreadable(self, episode, index, problem='unreadable'):
        step_id = StepId(episode, index, 0)
        if self.monitor.begins(step_id):
            self.monitor.begin(episode, self.now)
        return self.monitor.continue_without(step_id, problem, self.now)

    def state(self, *args, **changes):
        result = self.step(*args, **changes)
        return None if result is None else result.verdict.state

    def play(self, episode, scores, success=None, task=''):
        """Play an episode from START to END and label it, if it is said how it went."""
        self.monitor.start(episode, self.now, task)
        states = [self.state(index, score, episode) for index, score in enumerate(scores)]
        self.monitor.end(episode)
        if success is not None:
            self.monitor.label(episode, success)
        return states
