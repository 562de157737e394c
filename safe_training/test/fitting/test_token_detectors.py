# SPDX-License-Identifier: Apache-2.0
"""Token uncertainty against the published vectors, and what is no uncertainty at all."""

import dataclasses
import json

import numpy as np
import pytest
from rollout_factory import make_rollout
from shared_files import assert_golden, golden_arrays

import safe_training  # noqa: F401  (registers the fitters)
from safe_monitor_node.detectors import DetectorError, StepError, make_detector

GOLDEN = golden_arrays('token_metrics')
CASES = sorted({key.split('/')[0] for key in GOLDEN if key.startswith('c')})
PUBLISHED = {
    'token_max_neg_log_prob': 'max_token_prob',
    'token_avg_neg_log_prob': 'avg_token_prob',
    'token_max_entropy': 'max_token_entropy',
    'token_avg_entropy': 'avg_token_entropy',
}
SAMPLED = {
    'action_total_var': ('total_var', {}),
    'action_general_var': ('general_var', {}),
    'action_translation_var': ('pos_var', {}),
    'action_rotation_var': ('rot_var', {}),
    'action_gripper_var': ('gripper_var', {}),
    'action_cluster_entropy': ('entropy_linkage.01', {'threshold': 0.01}),
    'action_cluster_entropy ': ('entropy_linkage.05', {'threshold': 0.05}),
}

every_detector = pytest.mark.parametrize('name', PUBLISHED)


def rollout_of(probability=None, entropy=None, signals=None):
    length = len(
        next(a for a in (probability, entropy, *(signals or {}).values()) if a is not None)
    )
    return make_rollout(
        steps=length,
        task='stack',
        token_probability=probability,
        token_entropy=entropy,
        signals=signals or {},
    )


def fitted(name, rollout, **params):
    return make_detector(name.strip(), **params).fit([rollout])


def table(kind):
    columns = json.loads(str(GOLDEN[f'openvla_csv/{kind}/columns']))
    return dict(zip(columns, GOLDEN[f'openvla_csv/{kind}/table'].T, strict=True))


def recorded():
    columns = table('in')
    tokens = [
        np.stack([columns[f'action/token_{k}_{what}'] for k in range(7)], axis=1)
        for what in ('prob', 'entropy')
    ]
    signals = {key.removeprefix('action/'): v for key, v in columns.items() if 'token' not in key}
    return rollout_of(*tokens, signals)


@every_detector
@pytest.mark.parametrize('case', CASES)
def test_the_published_value_of_logits(case, name):
    logits = GOLDEN[f'{case}/in/logits'].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    assert_golden(entropy, GOLDEN[f'{case}/out/entropy'])
    rollout = rollout_of(np.exp(log_p.max(axis=1))[None], entropy[None])
    assert_golden(fitted(name, rollout).score(rollout)[0], GOLDEN[f'{case}/out/{PUBLISHED[name]}'])


@every_detector
@pytest.mark.parametrize(('accumulate', 'suffix'), [('none', ''), ('mean', '_rmean')])
def test_the_published_value_of_an_openvla_table(name, accumulate, suffix):
    rollout = recorded()
    score = fitted(name, rollout, accumulate=accumulate).score(rollout)
    assert_golden(score, table('out')[PUBLISHED[name] + suffix])


@pytest.mark.parametrize('name', SAMPLED)
@pytest.mark.parametrize(('accumulate', 'suffix'), [('none', ''), ('mean', '_rmean')])
def test_the_recorded_spread_of_samples_that_were_not_kept(name, accumulate, suffix):
    signal, params = SAMPLED[name]
    rollout = recorded()
    score = fitted(name, rollout, accumulate=accumulate, **params).score(rollout)
    assert_golden(score, table('out')[signal + suffix])


@pytest.mark.parametrize('name', ['token_max_neg_log_prob', 'token_avg_neg_log_prob'])
def test_a_probability_of_zero_is_very_unlikely_and_not_infinite(name):
    # Defect D63 of the published code: inf, on which its evaluation then raised.
    probability = np.array([[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]], np.float32)
    with np.errstate(divide='ignore'):
        published = -np.log(probability)
    assert np.isinf(published[1]).all()
    score = fitted(name, rollout_of(probability)).score(rollout_of(probability))
    np.testing.assert_allclose(score, [np.log(2), 87.33654, np.log(2)], rtol=1e-6)


@every_detector
def test_a_step_with_fewer_tokens_is_judged_by_those_it_has(name):
    probability = np.array([[0.5, 0.25, np.nan], [0.5, np.nan, np.nan]])
    rollout = rollout_of(probability, -np.log2(probability))
    expected = {
        'token_max_neg_log_prob': [np.log(4), np.log(2)],
        'token_avg_neg_log_prob': [np.log(8) / 2, np.log(2)],
        'token_max_entropy': [2, 1],
        'token_avg_entropy': [1.5, 1],
    }[name]
    np.testing.assert_allclose(fitted(name, rollout).score(rollout), expected, rtol=1e-6)


BAD = {
    'NaN': [0.5, np.nan],
    'infinity': [np.inf, 0.5],
    'no tokens': [],
    'negative': [-0.5, 0.5],
    'two rows': [[0.5, 0.5]],
}


@every_detector
@pytest.mark.parametrize('kind', BAD)
def test_tokens_without_meaning_are_refused_and_forgotten(name, kind):
    rollout = recorded()
    detector = fitted(name, rollout, accumulate='mean')
    expected = detector.score(rollout)
    bad = np.array(BAD[kind])
    stream = detector.stream()
    for t in range(len(rollout)):
        step = rollout.step(t)
        with pytest.raises(StepError, match=f'step {t}'):
            stream.step(dataclasses.replace(step, token_probability=bad, token_entropy=bad))
        assert stream.step(step) == pytest.approx(expected[t])


@pytest.mark.parametrize('name', ['token_max_neg_log_prob', 'token_avg_neg_log_prob'])
def test_logits_are_no_probabilities(name):
    with pytest.raises(DetectorError, match=r"'stack/0'.*from 0 to 1, found 2 to 7.*logits"):
        fitted(name, rollout_of(np.array([[2.0, 7.0]])))


@every_detector
def test_only_the_array_that_is_needed_must_be_there(name):
    values = np.array([[0.5, 0.25]])
    needed, other = (values, None), (None, values)
    if 'entropy' in name:
        needed, other = other, needed
    assert fitted(name, rollout_of(*needed)).fitted
    with pytest.raises(DetectorError, match=r"rollout 'stack/0'.*emits tokens"):
        fitted(name, rollout_of(*other))


def test_a_wrong_accumulation_is_refused_at_fit():
    with pytest.raises(DetectorError, match='accumulate: expected one of none, sum, mean'):
        fitted('token_max_entropy', recorded(), accumulate='median')
