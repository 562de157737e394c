# SPDX-License-Identifier: Apache-2.0
"""What every registered detector promises of the scores of whole rollouts, and of its folder."""

import ml_dtypes
import numpy as np
import pytest
from detector_cases import (
    BAND,
    HELD_OUT,
    SPEC,
    TRAINING,
    WIDTH,
    assert_close,
    cases_where,
    every_case,
    fitted,
    full_rollout,
    full_rollouts,
    mapped,
)
from live_scores import streamed

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import DetectorError, make_detector
from safe_monitor_node.storage.detector_folder import load_detector

# --- batch and stream are one score

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@every_case
def test_the_stream_gives_the_score_of_the_whole_rollout(case):
    for rollout in [r for dtype in DTYPES for r in full_rollouts(3, seed=2, dtype=dtype)]:
        score = fitted(case).score(rollout)
        assert score.shape == (len(rollout),)
        assert score.dtype == np.float32
        assert np.isfinite(score).all()
        assert_close(streamed(fitted(case), rollout), score)


@cases_where(lambda case: case.make().get_params().get('accumulate') in ('sum', 'mean'))
def test_what_is_accumulated_gives_the_values_of_single_steps_back(case):
    detector = fitted(case)
    alone = make_detector(case.name, **{**detector.get_params(), 'accumulate': 'none'})
    alone.load_state(detector.state(), WIDTH)
    for rollout in HELD_OUT:
        assert_close(detector.step_values(detector.score(rollout)), alone.score(rollout), 1e-4)


@every_case
def test_each_step_has_a_value(case):
    for rollout in HELD_OUT:
        values = fitted(case).step_values(fitted(case).score(rollout))
        assert values.dtype == np.float64 and values.shape == (len(rollout),)
        assert np.isfinite(values).all()


@every_case
def test_the_stream_gives_the_score_of_a_long_rollout(case):
    rollout = full_rollout(np.random.default_rng(3), 1, 200)
    assert_close(streamed(fitted(case), rollout), fitted(case).score(rollout))


@every_case
def test_one_step_is_a_rollout_too(case):
    rollout = full_rollout(np.random.default_rng(4), 1, 1)
    assert_close(streamed(fitted(case), rollout), fitted(case).score(rollout))


@every_case
def test_strided_arrays_score_as_contiguous_ones(case):
    def strided(array):
        wide = np.repeat(array, 2, axis=-1)
        return wide[..., ::2]

    rollout = HELD_OUT[0]
    np.testing.assert_array_equal(
        fitted(case).score(mapped(rollout, strided)), fitted(case).score(rollout)
    )
    assert_close(streamed(fitted(case), mapped(rollout, strided)), fitted(case).score(rollout))


@every_case
def test_scoring_many_rollouts_is_scoring_each(case):
    # More than a detector may take at once, in no order of length.
    rollouts = full_rollouts(70, seed=5, shortest=1, longest=6)
    together = fitted(case).score_all(rollouts)
    assert len(together) == len(rollouts)
    for scores, rollout in zip(together, rollouts, strict=True):
        assert scores.shape == (len(rollout),)
        assert_close(scores, fitted(case).score(rollout), 1e-6)
    assert fitted(case).score_all([]) == []


# --- time runs forwards


@every_case
def test_the_score_of_a_step_does_not_know_the_future(case):
    rollout = full_rollout(np.random.default_rng(6), 1, 12)
    score = fitted(case).score(rollout)
    for now in (1, 5, 11):

        def past(array, now=now):
            return array[:now]

        def another_future(array, now=now):
            # Probabilities stay probabilities, entropies stay positive.
            return np.concatenate([array[:now], 0.1 + 0.3 * array[now:][::-1]])

        assert_close(fitted(case).score(mapped(rollout, past)), score[:now], 1e-6)
        assert_close(fitted(case).score(mapped(rollout, another_future))[:now], score[:now], 1e-6)


@cases_where(lambda case: case.needs)
def test_the_score_depends_on_what_the_detector_needs(case):
    rollout = HELD_OUT[0]
    changed = mapped(rollout, lambda array: array[::-1] * 0.7)
    assert not np.allclose(fitted(case).score(changed), fitted(case).score(rollout))


# --- the detector folder


@every_case
def test_a_detector_from_its_folder_scores_bit_for_bit_the_same(case, tmp_path):
    detector = fitted(case)
    folder = CalibratedDetector(detector, SPEC, BAND, 0.1).save(tmp_path / 'detector')
    loaded = load_detector(folder).detector
    assert type(loaded) is type(detector)
    assert loaded.get_params() == detector.get_params()
    for rollout in HELD_OUT:
        np.testing.assert_array_equal(loaded.score(rollout), detector.score(rollout))
        np.testing.assert_array_equal(streamed(loaded, rollout), streamed(detector, rollout))


@every_case
def test_the_state_is_a_copy_in_plain_arrays(case):
    detector = case.make().fit(TRAINING)
    before = detector.score(HELD_OUT[0])
    for array in detector.state().values():
        assert type(array) is np.ndarray
        array[...] = 0
    np.testing.assert_array_equal(detector.score(HELD_OUT[0]), before)


@every_case
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(case):
    state = fitted(case).state()
    changed = [{**state, 'surplus': np.zeros(3, np.float32)}]
    for name, array in state.items():
        rest = {key: value for key, value in state.items() if key != name}
        changed.append(rest)
        changed.append({**rest, name: array[..., None]})
        if array.size > 1:
            changed.append({**rest, name: array[:-1]})
        if array.dtype == np.float32:
            changed.append({**rest, name: array.astype(np.int64)})
    for wrong in changed:
        detector = case.make()
        with pytest.raises(DetectorError, match=case.name):
            detector.load_state(wrong, WIDTH)
        assert not detector.fitted
