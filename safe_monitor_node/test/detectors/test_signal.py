# SPDX-License-Identifier: Apache-2.0
"""One signal as the score: the smooth form by its formula, its scale, and what cannot be fitted."""

import dataclasses
import math

import numpy as np
import pytest
from live_scores import streamed
from rollout_factory import make_rollout

from safe_monitor_node.detectors import DetectorError, StepError, make_detector

VALUES = [0.0, 2.0, 6.0, 0.0, 14.0]


def rollout_of(values, *, success=True, name='chunk_mse', index=0):
    values = np.array(values, np.float32)
    return make_rollout(index, steps=len(values), success=success, signals={name: values})


def by_hand(values, scale):
    """Return the smooth score by its definition."""
    q = [math.log(1 + x / scale) for x in values]
    first, second, scores = q[0], q[0], [q[0]]
    for value in q[1:]:
        first = 0.85 * first + 0.15 * value
        second = 0.7 * second + 0.3 * first
        scores.append(second)
    return scores


def test_the_smooth_form_is_the_default_and_averages_the_compressed_signal_twice():
    rollout = rollout_of(VALUES)
    detector = make_detector('signal').fit([rollout])
    assert detector.scale_ == 6.0  # the median of 2, 6 and 14: a step without change tells nothing
    expected = by_hand(VALUES, 6.0)
    np.testing.assert_allclose(detector.score(rollout), expected, rtol=1e-6)
    # The second step by hand: u = 0.15 log(1 + 2/6), y = 0.3 u.
    assert detector.score(rollout)[1] == pytest.approx(0.045 * math.log(4 / 3), rel=1e-6)
    np.testing.assert_array_equal(streamed(detector, rollout), detector.score(rollout))


def test_the_compressed_signal_is_read_back_from_the_smooth_scores():
    detector = make_detector('signal').fit([rollout_of(VALUES)])
    values = detector.step_values(detector.score(rollout_of(VALUES)))
    expected = [math.log(1 + x / 6.0) for x in VALUES]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_both_averages_start_at_the_first_value_whatever_it_is():
    detector = make_detector('signal').fit([rollout_of([3.0, 3.0, 3.0])])
    np.testing.assert_allclose(detector.score(rollout_of([9.0, 9.0, 9.0])), math.log(4), rtol=1e-6)


def test_the_scale_comes_from_successes_alone():
    successes = [rollout_of([0.0, 1.0, 3.0]), rollout_of([0.0, 5.0], index=1)]
    failures = [rollout_of([0.0, 1e3, 1e3, 1e3, 1e3], success=False, index=2)]
    alone = make_detector('signal').fit(successes)
    assert alone.scale_ == 3.0
    assert make_detector('signal').fit([*failures, *successes]).scale_ == 3.0
    with pytest.raises(
        DetectorError, match=r'expected successes .*found 0 successes and 1 failure'
    ):
        make_detector('signal').fit(failures)


def test_a_signal_below_zero_and_a_negated_one_keep_their_sign():
    rollout = rollout_of([0.0, -2.0, -2.0])
    detector = make_detector('signal').fit([rollout])
    negated = make_detector('signal', negate=True).fit([rollout])
    scores = detector.score(rollout)
    np.testing.assert_allclose(scores[1], -0.045 * math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(negated.score(rollout), -scores)
    np.testing.assert_array_equal(streamed(negated, rollout), -scores)


@pytest.mark.parametrize('nothing', [0.0, np.nan], ids=['zeros', 'NaN'])
def test_chunks_that_do_not_overlap_are_refused_with_a_detector_to_use(nothing):
    rollouts = [rollout_of([nothing] * 4), rollout_of([nothing] * 3, success=False, index=1)]
    with pytest.raises(DetectorError, match=r'overlap.* one action per inference.*such as maha'):
        make_detector('signal').fit(rollouts)
    # Also if only the failures contradict themselves: there is no scale to learn.
    rollouts[1] = rollout_of([0.0, 1.0, 2.0], success=False, index=1)
    with pytest.raises(DetectorError, match=r'do not overlap|finite signal'):
        make_detector('signal').fit(rollouts)


def test_another_signal_that_is_always_zero_is_not_blamed_on_the_chunks():
    with pytest.raises(DetectorError, match=r"'speed'.* found only 0 or NaN in 1 rollouts; use a"):
        make_detector('signal', signal='speed').fit([rollout_of([0.0, 0.0], name='speed')])


def test_a_broken_signal_is_refused_by_the_rollout():
    broken = rollout_of([0.0, 1.0, 2.0, np.inf], index=1)
    with pytest.raises(DetectorError, match=rf'rollout {broken.episode_id!r}.*finite signal'):
        make_detector('signal').fit([rollout_of(VALUES), broken])
    detector = make_detector('signal').fit([rollout_of(VALUES)])
    with pytest.raises(StepError, match=rf'rollout {broken.episode_id!r}: step 3.*found inf'):
        detector.score(broken)
    huge = dataclasses.replace(broken, signals={'chunk_mse': np.array([0, 1e31, 0, 0])})
    with pytest.raises(StepError, match=r'step 1: expected a quantity below 1e\+30'):
        detector.score(huge)


def test_the_scale_is_kept_and_a_folder_without_it_is_refused():
    detector = make_detector('signal').fit([rollout_of(VALUES)])
    again = make_detector('signal')
    again.load_state(detector.state(), detector.dim_)
    rollout = rollout_of(VALUES)
    np.testing.assert_array_equal(again.score(rollout), detector.score(rollout))
    with pytest.raises(DetectorError, match=r"'scale'.*found no such array"):
        make_detector('signal').load_state({}, 3)
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(DetectorError, match="'scale'"):
            make_detector('signal').load_state({'scale': np.array([bad])}, 3)


def test_the_forms_of_version_0_1_learn_nothing():
    for form, expected in (('none', VALUES), ('sum', np.cumsum(VALUES))):
        detector = make_detector('signal', accumulate=form)
        detector.load_state({}, 3)
        assert detector.state() == {}
        np.testing.assert_allclose(detector.score(rollout_of(VALUES)), expected)
