# SPDX-License-Identifier: Apache-2.0
"""Every registered detector with parameters that make it small, and rollouts to fit it on."""

import dataclasses
import functools

import numpy as np
import pytest
from rollout_factory import make_rollout

from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import DETECTORS, make_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.signals import rollout_signals

WIDTH = 16
BAND = Band(np.array([0.1]), np.ones((1, 8)), 'any', 9)
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))
DATA = frozenset({'features', 'actions', 'sampled_actions', 'tokens', 'signals'})
TINY = {'hidden': 8, 'epochs': 5}
TINY_UNET = {
    'down_dims': [16, 16],
    'kernel_size': 3,
    'groups': 2,
    'time_dim': 4,
    'epochs': 1,
    'batch_size': 12,
}

# Parameters that make a detector small and quick; one that is not named here is made by default.
SMALL = {
    'safe_mlp': TINY,
    'safe_lstm': TINY,
    'pca_kmeans': {'pca_dim': 4, 'clusters': 3},
    'rnd': TINY_UNET,
    'logpzo': {**TINY_UNET, 'in_dim': 5},
    # The samples of the rollouts below are this far apart.
    'action_cluster_entropy': {'threshold': 0.8},
}
# Further ways to score, beside the default.
VARIANTS = {
    'safe_mlp': [
        {'accumulate': 'sum'},
        {'accumulate': 'none'},
        {'layers': 1, 'activation': 'none'},
        {'layers': 3, 'accumulate': 'none', 'threshold': 0.9, 'max_grad_norm': 0.1},
        {'activation': 'relu', 'accumulate': 'sum', 'threshold': 5.0, 'init_weight_scale': 3.0},
        {'one_loss_per_rollout': True, 'batch_size': 5, 'time_weighting': True},
        {'window': 3, 'accumulate': 'none'},
    ],
    'safe_lstm': [
        {'layers': 2},
        {'accumulate': 'sum'},
        {'accumulate': 'mean', 'layers': 3},
        {'history': 1},
        {'history': 4, 'layers': 2, 'accumulate': 'mean'},
        {'dropout': 0.5, 'batch_size': 5, 'hard_negative': 1.0},
    ],
    'random': [{'seed': 7}],
    'token_max_neg_log_prob': [{'accumulate': 'mean'}],
    'token_avg_neg_log_prob': [{'accumulate': 'sum'}],
    'token_max_entropy': [{'accumulate': 'mean'}],
    'token_avg_entropy': [{'accumulate': 'mean'}],
    'action_total_var': [{'accumulate': 'mean'}],
    'action_general_var': [{'accumulate': 'mean', 'floor': 0.1}],
    'action_translation_var': [{'dimensions': [1, 6]}, {'reference_compatible': True}],
    'action_rotation_var': [{'accumulate': 'sum'}, {'reference_compatible': True}],
    'action_gripper_var': [{'accumulate': 'mean'}, {'reference_compatible': True}],
    'action_cluster_entropy': [{'accumulate': 'mean'}],
    'stac': [{'accumulate': 'mean', 'beta': 10.0}, {'exec_horizon': 1, 'negate': True}],
    'stac_single': [{'accumulate': 'mean'}, {'exec_horizon': 4, 'negate': True}],
    'linear_probe': [
        {'inputs': 'both', 'l2': 0.1, 'smoothing': 0.5, 'method': 'linear', 'components': 3},
        {'inputs': 'both', 'method': 'distance', 'smoothing': 0.9},
        {'inputs': 'signals', 'signals': ['action_norm', 'action_jerk'], 'smoothing': 0.0},
        {'choose': True},
    ],
    'signal': [
        {'signal': 'action_jerk', 'accumulate': 'none', 'negate': True},
        {'accumulate': 'mean'},
    ],
    'rnd': [
        {'success_only': True, 'accumulate': 'sum', 'lambda_reg': 0.1},
        {'groups': 8},  # groups of a few values, which are normalised in float64
    ],
    'logpzo': [
        {'success_only': True, 'accumulate': 'sum', 'chunk': 10, 'batch_size': 1},
        {'groups': 8},
    ],
    'mahalanobis': [
        {'accumulate': 'sum'},
        {'success_only': True, 'accumulate': 'none', 'ridge': 0.1},
    ],
    'euclidean_knn': [
        {'neighbours': 1, 'accumulate': 'none'},
        {'success_only': True, 'accumulate': 'sum'},
    ],
    'cosine_knn': [
        {'neighbours': 1, 'accumulate': 'none'},
        {'success_only': True, 'accumulate': 'sum'},
    ],
    'pca_kmeans': [
        {'accumulate': 'sum', 'reference_compatible': True},
        {'success_only': True, 'accumulate': 'none', 'clusters': 6},
    ],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A detector and the parameters that it is made with."""

    name: str
    variant: int = -1

    def __str__(self):
        if self.variant < 0:
            return self.name
        changes = VARIANTS[self.name][self.variant].items()
        return '-'.join([self.name, *(f'{name}={value}' for name, value in changes)])

    @property
    def params(self):
        changes = {} if self.variant < 0 else VARIANTS[self.name][self.variant]
        return {**SMALL.get(self.name, {}), **changes}

    @property
    def needs(self):
        return DETECTORS[self.name].needs

    def make(self):
        return make_detector(self.name, **self.params)


CASES = [
    Case(name, variant)
    for name in sorted(DETECTORS)
    for variant in range(-1, len(VARIANTS.get(name, ())))
]

every_detector = pytest.mark.parametrize('name', sorted(DETECTORS))
every_case = pytest.mark.parametrize('case', CASES, ids=str)


def cases_where(condition):
    return pytest.mark.parametrize('case', [case for case in CASES if condition(case)], ids=str)


def cases_and_data_where(condition):
    pairs = [(case, data) for case in CASES for data in sorted(DATA) if condition(case, data)]
    return pytest.mark.parametrize(('case', 'data'), pairs, ids=str)


def may_read(needs, data):
    """Tell whether a detector with these needs may look at some data, directly or derived."""
    from_actions = {'actions', 'sampled_actions', 'signals'}
    return data in needs or (data in from_actions and bool(needs & from_actions))


def full_rollout(rng, index, length, dtype=np.float32):
    """Return a rollout that carries everything a detector may ask for; every second one fails."""
    failed = index % 2 == 1
    drift = np.linspace(0.0, 2.0, length)[:, None] if failed else 0.0
    features = rng.normal(size=(length, WIDTH)) + drift
    actions = rng.normal(size=(length, 1, 5, 7)) + 0.1 * rng.normal(size=(length, 4, 5, 7))
    probability = rng.uniform(0.2, 1.0, size=(length, 7))
    return make_rollout(
        index,
        features=features.astype(dtype),
        task=f'task_{index % 3}',
        task_id=index % 3,
        instruction='put the mug on the plate',
        policy='synthetic',
        feature_name=str(SPEC),
        actions=actions.astype(np.float32),
        exec_horizon=2,
        token_probability=probability.astype(np.float32),
        token_entropy=-np.log(probability).astype(np.float32),
        signals=rollout_signals(actions, 2),
    )


def full_rollouts(count, seed=0, shortest=6, longest=11, dtype=np.float32):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    return [full_rollout(rng, index, int(length), dtype) for index, length in enumerate(lengths)]


# 24 rollouts: every task has four successes and four failures.
TRAINING = full_rollouts(24)
HELD_OUT = full_rollouts(6, seed=1)


@functools.cache
def fitted(case):
    return case.make().fit(TRAINING)


def arrays_of(rollout):
    """Return (name, array) of everything that has an entry for each step."""
    named = ('features', 'actions', 'token_probability', 'token_entropy')
    return [(name, getattr(rollout, name)) for name in named] + list(rollout.signals.items())


def mapped(rollout, change):
    """Return the rollout with every array replaced by ``change(array)``."""
    named = ('features', 'actions', 'token_probability', 'token_entropy')
    return dataclasses.replace(
        rollout,
        **{name: change(getattr(rollout, name)) for name in named},
        signals={name: change(values) for name, values in rollout.signals.items()},
    )


def without(rollout, need):
    """Return the rollout without what a detector needs."""
    return {
        # As a dump that carries signals only.
        'features': lambda: dataclasses.replace(rollout, features=rollout.features[:, :0]),
        'actions': lambda: dataclasses.replace(rollout, actions=None, signals={}),
        'sampled_actions': lambda: dataclasses.replace(rollout, actions=rollout.actions[:, :1]),
        'tokens': lambda: dataclasses.replace(rollout, token_probability=None, token_entropy=None),
        'signals': lambda: dataclasses.replace(rollout, signals={}),
    }[need]()


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
