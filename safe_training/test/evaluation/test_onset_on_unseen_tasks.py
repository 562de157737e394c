# SPDX-License-Identifier: Apache-2.0
"""The beginning of failures of unseen tasks: annotated failures, and spliced failures."""

import itertools

import numpy as np
import pytest
from rollout_factory import make_rollout

from safe_training.evaluation.onset import located_onsets, spliced_failures
from safe_training.evaluation.protocol import EvaluationError, Protocol, choose_splits
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.pooling import FeatureSpec

SPEC = FeatureSpec('hidden_states', 4, ('token',), (('token', 'last'),))


def numbered(index, length, success, task='a', **fields):
    """Return a rollout whose features and signals say rollout and step."""
    steps = np.arange(length, dtype=np.float32)
    return make_rollout(
        index,
        features=np.stack([np.full(length, index), steps], axis=1).astype(np.float32),
        task=task,
        success=success,
        signals={'chunk_mse': 100 * index + steps},
        **fields,
    )


def test_a_splice_is_a_beginning_of_a_success_and_late_steps_of_the_failure():
    rollouts = [
        numbered(0, 6, True),
        numbered(1, 8, True),
        numbered(2, 20, False),
        numbered(3, 7, False),  # not longer than the median success
        numbered(4, 20, False, task='b'),  # no success of the task
    ]
    made = spliced_failures(rollouts, np.random.default_rng(0), each=30)
    assert len(made) == 30
    assert {int(r.features[0, 0]) for r in made} == {0, 1}
    assert {r.failure_step for r in made} == set(range(1, 8))
    assert len({r.episode_id for r in made}) == 30
    for rollout in made:
        begins, source = rollout.failure_step, int(rollout.features[0, 0])
        assert rollout.failed and rollout.task == 'a'
        assert begins <= min(7, (6, 8)[source] - 1)
        assert rollout.features[:begins].tolist() == [[source, t] for t in range(begins)]
        assert rollout.features[begins:].tolist() == [[2, t] for t in range(7, 20)]
        expected = [100 * source + t for t in range(begins)] + [200 + t for t in range(7, 20)]
        assert rollout.signals['chunk_mse'].tolist() == expected
        assert rollout.actions is None
        assert len(rollout) <= 20


def with_a_change(annotated):
    """Return rollouts of six tasks; a failure looks like a success until one of its steps."""
    generator = np.random.default_rng(0)
    rollouts = []
    for task, index in itertools.product(range(6), range(20)):
        failed = index % 2 == 1
        length = 24 if failed else int(generator.integers(10, 13))
        begins = int(generator.integers(2, 10))
        features = 0.5 * generator.normal(size=(length, 4))
        features[begins:, 0] += 1.5 * failed
        rollouts.append(
            make_rollout(
                index,
                features=features.astype(np.float32),
                task=f't{task}',
                success=not failed,
                failure_step=begins if failed and annotated else None,
            )
        )
    return Rollouts(rollouts, SPEC)


@pytest.mark.parametrize('annotated', [True, False])
def test_the_estimate_is_nearer_than_the_alarm(annotated):
    rollouts = with_a_change(annotated)
    splits = choose_splits(rollouts, Protocol(), [0, 1])
    params = {'linear_probe': {'inputs': 'features'}}
    found = located_onsets(['linear_probe'], rollouts, {'linear_probe': splits}, params=params)
    assert [result.failures for result in found] == ['annotated', 'spliced'][not annotated :]
    unseen = sum(len(split.unseen) // 2 for split in splits)
    for result in found:
        report = result.report
        assert report.leads.annotated == unseen * (1 if result.failures == 'annotated' else 3)
        assert report.onset.median_distance <= 1 <= report.alarm.median_distance
        assert report.onset.near > 0.85
        assert report.onset.near > report.alarm.near + 0.1 > report.middle.near + 0.1


def test_a_detector_that_compares_chunks_is_refused():
    rollouts = with_a_change(False)
    splits = choose_splits(rollouts, Protocol(), [0])
    with pytest.raises(EvaluationError, match=r'stac_single.*choose another detector'):
        located_onsets(['stac_single'], rollouts, {'stac_single': splits})


def test_without_a_failure_to_judge_it_says_what_is_missing():
    rollouts = with_a_change(False)
    short = rollouts.take(r for r in rollouts if r.success or len(r) < 24)
    longer = [numbered(k, 3, False, task=f't{k % 6}', episode_id=f'f{k}') for k in range(12)]
    for rollout in longer:
        rollout.features = np.zeros((3, 4), np.float32)
    rollouts = short.take([*short, *longer])
    splits = choose_splits(rollouts, Protocol(), [0])
    with pytest.raises(EvaluationError, match='annotate failures with their failure_step'):
        located_onsets(['clock'], rollouts, {'clock': splits})
