# SPDX-License-Identifier: Apache-2.0
"""The adaptive threshold keeps its long-run promise if scores drift; a fixed threshold does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from safe_monitor_node.bands.adaptive_threshold import (
    KEPT_BEYOND_WINDOW,
    AdaptationError,
    AdaptiveThreshold,
)


def drifting(generator: np.random.Generator, steps: int) -> np.ndarray:
    """Return scores that rise slowly, jump, and fall back."""
    level = np.concatenate([np.linspace(0, 3, steps // 2), np.full(steps - steps // 2, 1.0)])
    return level + generator.normal(size=steps)


@pytest.mark.parametrize('alpha', [0.05, 0.1, 0.3])
@pytest.mark.parametrize('gamma', [0.005, 0.05])
@pytest.mark.parametrize('n', [5, 50])
@pytest.mark.parametrize('window', [0, 200])
def test_false_alarms_stay_within_the_bound_under_drift(alpha, gamma, n, window):
    generator = np.random.default_rng(n)
    adaptive = AdaptiveThreshold(generator.normal(size=n), alpha, gamma, window=window)
    fixed = adaptive.threshold
    scores = drifting(generator, 4000)
    for count, score in enumerate(scores, start=1):
        adaptive.observe(score)
        bound = (max(alpha, 1 - alpha) + gamma) / (count * gamma)
        assert abs(adaptive.false_alarms / count - alpha) <= bound + 1e-9
    if n == 50:
        kept = abs(adaptive.false_alarms / len(scores) - alpha)
        assert kept < 0.25 * abs(np.mean(scores > fixed) - alpha), 'a fixed threshold does as well'


@pytest.mark.parametrize('late', [0, 3, 20])
@pytest.mark.parametrize('share_taken_back', [0.0, 0.02])
@pytest.mark.parametrize('gamma', [0.01, 0.1])
def test_late_labels_and_take_backs_widen_the_bound_as_stated(late, share_taken_back, gamma):
    alpha = 0.1
    generator = np.random.default_rng(late)
    adaptive = AdaptiveThreshold(generator.normal(size=30), alpha, gamma, window=100)
    scores, waiting, learned = drifting(generator, 3000), [], []
    # Each of the `late` episodes that begin in between may have a label and a withdrawn label.
    between, taken_back = 2 * late, 0
    for score in scores:
        waiting.append((score, bool(score > adaptive.threshold)))
        if len(waiting) <= late:
            continue
        learned.append(adaptive.observe(*waiting.pop(0)))
        if generator.random() < share_taken_back:
            adaptive.undo(learned.pop(int(generator.integers(len(learned)))))
            taken_back += 1
        if count := adaptive.successes:
            bound = (max(alpha, 1 - alpha) + gamma) / (count * gamma)
            bound += (between + taken_back) / count
            assert abs(adaptive.false_alarms / count - alpha) <= bound + 1e-9
    assert adaptive.false_alarms == sum(observation.alarmed for observation in learned)
    assert (taken_back > 20) == (share_taken_back > 0)


def test_observed_values_make_infinite_thresholds_rare():
    infinite = {}
    for window in (0, 1000):
        generator = np.random.default_rng(1)
        adaptive = AdaptiveThreshold(generator.normal(size=20), 0.1, 0.02, window=window)
        count = 0
        for score in 3.0 + generator.normal(size=2000):
            count += adaptive.threshold == math.inf
            adaptive.observe(score)
        infinite[window] = count / 2000
    assert infinite[0] > 0.8, 'the values calibrated on say nothing of the scores after the drift'
    assert infinite[1000] < 0.05


def state(adaptive):
    """Return all that decides about the future."""
    levels = np.linspace(0.001, 0.999, 97)
    return (
        adaptive.level,
        adaptive.successes,
        adaptive.false_alarms,
        [adaptive.quantile(level) for level in levels],
    )


@pytest.mark.parametrize('window', [0, 1, 7, 1000])
@pytest.mark.parametrize('seed', range(5))
def test_what_was_taken_back_might_never_have_come(window, seed):
    generator = np.random.default_rng(seed)
    calibrated = generator.normal(size=9)
    # Few different values, so that some values occur twice.
    scores = np.round(2.0 * generator.normal(size=150), 1).tolist()
    alarmed = (generator.random(150) < 0.3).tolist()
    taken_back = generator.permutation(150)[:KEPT_BEYOND_WINDOW]
    adaptive = AdaptiveThreshold(calibrated, 0.1, 0.03, window=window)
    never = AdaptiveThreshold(calibrated, 0.1, 0.03, window=window)
    observations = [adaptive.observe(*both) for both in zip(scores, alarmed, strict=True)]
    for index in sorted(set(range(150)) - set(taken_back.tolist())):
        never.observe(scores[index], alarmed[index])
    for index in taken_back:
        adaptive.undo(observations[index])
    assert state(adaptive) == state(never)


def test_a_value_that_was_pushed_out_returns_when_the_one_that_pushed_is_taken_back():
    adaptive = AdaptiveThreshold([0.0], 0.5, 0.1, window=2)
    observations = [adaptive.observe(value, False) for value in (1.0, 2.0, 3.0, 4.0)]
    assert [adaptive.quantile(level) for level in (0.75, 0.5, 0.25)] == [0.0, 3.0, 4.0]
    adaptive.undo(observations[3])
    assert [adaptive.quantile(level) for level in (0.75, 0.5, 0.25)] == [0.0, 2.0, 3.0]
    adaptive.undo(observations[0])
    assert [adaptive.quantile(level) for level in (0.75, 0.5, 0.25)] == [0.0, 2.0, 3.0]
    adaptive.undo(observations[1])
    assert [adaptive.quantile(level) for level in (0.67, 0.34)] == [0.0, 3.0]


def test_what_is_kept_for_taking_back_is_bounded_and_older_ones_can_still_be_uncounted():
    adaptive = AdaptiveThreshold([0.0], 0.1, 0.01, window=10)
    first = adaptive.observe(0.0, True)
    for value in range(1, 1000):
        adaptive.observe(float(value), False)
    assert adaptive.observed == tuple(map(float, range(1000 - 10 - KEPT_BEYOND_WINDOW, 1000)))
    adaptive.undo(first)
    assert (adaptive.successes, adaptive.false_alarms) == (999, 0)
    assert len(adaptive.observed) == 10 + KEPT_BEYOND_WINDOW


def test_a_false_alarm_raises_the_threshold_and_quiet_lowers_it():
    adaptive = AdaptiveThreshold(np.arange(100.0), 0.1, 0.05)
    before = adaptive.threshold
    assert before == 90.0
    assert adaptive.observe(1000.0).alarmed
    assert adaptive.threshold > before
    raised = adaptive.threshold
    assert not adaptive.observe(0.0).alarmed
    assert adaptive.threshold < raised
    for _ in range(5):
        adaptive.observe(1000.0, alarmed=True)
    assert adaptive.threshold == math.inf
    for _ in range(300):
        adaptive.observe(0.0, False)
    assert adaptive.threshold == -math.inf


def test_the_level_is_that_of_the_published_recursion():
    generator = np.random.default_rng(3)
    adaptive, level = AdaptiveThreshold(generator.normal(size=20), 0.15, 0.04), 0.15
    for score in generator.normal(0.5, size=500):
        level += 0.04 * (0.15 - adaptive.observe(score).alarmed)
        assert adaptive.level == pytest.approx(level, abs=1e-12)


def test_an_alarm_is_what_was_in_force_and_not_what_would_be_now():
    adaptive = AdaptiveThreshold(np.arange(100.0), 0.1, 0.05)
    assert not adaptive.observe(1000.0, alarmed=False).alarmed
    assert adaptive.observe(0.0, alarmed=True).alarmed
    assert (adaptive.successes, adaptive.false_alarms) == (2, 1)


@pytest.mark.parametrize('window', [5, 1000])
def test_a_restored_threshold_goes_on_as_the_first_would_have(window):
    generator = np.random.default_rng(5)
    calibrated, scores = generator.normal(size=20), generator.normal(0.5, size=300)
    whole = AdaptiveThreshold(calibrated, 0.1, 0.05, window=window)
    for score in scores[:200]:
        whole.observe(score)
    rest = AdaptiveThreshold(calibrated, 0.1, 0.05, window=window)
    rest.restore(whole.level, whole.successes, whole.false_alarms, whole.observed)
    for score in scores[200:]:
        assert rest.threshold == whole.threshold
        assert rest.observe(score).alarmed == whole.observe(score).alarmed
    assert rest.level == pytest.approx(whole.level, abs=1e-12)


def test_another_step_size_goes_on_at_the_level_that_was_reached():
    first = AdaptiveThreshold(np.arange(50.0), 0.1, 0.05)
    for _ in range(3):
        first.observe(100.0)
    second = AdaptiveThreshold(np.arange(50.0), 0.1, 0.2)
    second.restore(first.level, first.successes, first.false_alarms, first.observed)
    assert second.level == pytest.approx(first.level)
    second.observe(0.0)
    assert second.level == pytest.approx(first.level + 0.2 * 0.1)


def test_wrong_values_are_refused():
    for values, alpha, gamma in (
        ([], 0.1, 0.1),
        ([math.nan], 0.1, 0.1),
        ([1.0], 0, 0.1),
        ([1.0], 0.1, 0),
    ):
        with pytest.raises(AdaptationError, match='adaptive threshold'):
            AdaptiveThreshold(values, alpha, gamma)
    with pytest.raises(AdaptationError, match='window of at least 0 values, found -1'):
        AdaptiveThreshold([1.0], 0.1, window=-1)
    for value in (math.nan, math.inf):
        with pytest.raises(
            AdaptationError, match='expected a finite nonconformity of the episode, found'
        ):
            AdaptiveThreshold([1.0], 0.1).observe(value)


def test_what_is_not_there_cannot_be_undone():
    adaptive, other = AdaptiveThreshold([1.0], 0.1), AdaptiveThreshold([1.0], 0.1)
    adaptive.observe(0.0, False)
    for observation in (other.observe(0.0, True), other.observe(0.0, False)):
        with pytest.raises(AdaptationError, match=r'not undone already, found Observation\('):
            adaptive.undo(observation)
    assert adaptive.successes == 1
    observation = adaptive.observe(2.0)
    adaptive.undo(observation)
    with pytest.raises(AdaptationError, match='nonconformity=2'):
        adaptive.undo(observation)


@pytest.mark.parametrize(
    'state',
    [
        (0.1, 1, 2, []),
        (0.1, -1, -1, []),
        (0.1, 1, 0, [1.0, 2.0]),
        (math.nan, 1, 0, [1.0]),
        (0.1, 1, 0, [math.inf]),
    ],
)
def test_a_state_that_cannot_be_is_refused(state):
    adaptive = AdaptiveThreshold([1.0], 0.1)
    with pytest.raises(AdaptationError, match='adaptive threshold'):
        adaptive.restore(*state)
    assert (adaptive.successes, adaptive.level, adaptive.observed) == (0, 0.1, ())


def test_only_a_new_threshold_is_restored():
    adaptive = AdaptiveThreshold([1.0], 0.1)
    adaptive.observe(0.0)
    with pytest.raises(AdaptationError, match='restore the state of the new threshold'):
        adaptive.restore(0.1, 0, 0, [])
