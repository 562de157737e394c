# SPDX-License-Identifier: Apache-2.0
"""The conformal band: the published numbers, the finite-sample promise, and small sets."""

from fractions import Fraction

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import binom
from shared_files import golden_arrays
from two_sided import two_sided_band

from safe_monitor_node.bands.adaptive_threshold import conformal_rank
from safe_training.calibration.constant import constant_band
from safe_training.calibration.curves import ALPHAS, CalibrationError, Successes
from safe_training.calibration.functional import calibrate, functional_band
from safe_training.calibration.quantile import conformal_quantile

MODULATIONS = {'max_deviation': 'Tfunc', 'std': 'Stdev', 'constant': 'Const'}


def golden_cases():
    arrays = golden_arrays('functional_cp')
    cases = []
    for case in sorted({key.split('/')[0] for key in arrays}):
        for modulation, name in MODULATIONS.items():
            if f'{case}/out/{name}_upper' in arrays:
                cases.append(
                    pytest.param(
                        arrays[f'{case}/in/training'],
                        arrays[f'{case}/in/calibration'],
                        arrays[f'{case}/in/alphas'],
                        arrays[f'{case}/out/{name}_upper'],
                        modulation,
                        id=f'{case}-{name}',
                    )
                )
    return cases


def test_golden_cases_are_all_there():
    # Three cases, but the standard deviation of one curve does not exist.
    assert len(golden_cases()) == 8


@pytest.mark.parametrize(('center', 'calibration', 'alphas', 'upper', 'modulation'), golden_cases())
def test_published_bands(center, calibration, alphas, upper, modulation):
    band = functional_band(center, calibration, alphas, modulation, 'published')
    np.testing.assert_allclose(band.upper, upper, rtol=1e-9, atol=0)


def golden_two_sided():
    arrays = golden_arrays('functional_cp')
    return [
        pytest.param(arrays, case, name, modulation, id=f'{case}-{name}')
        for case in sorted({key.split('/')[0] for key in arrays})
        for modulation, name in MODULATIONS.items()
        if f'{case}/out/{name}_twosided_upper' in arrays
    ]


@pytest.mark.parametrize(('arrays', 'case', 'name', 'modulation'), golden_two_sided())
def test_published_two_sided_bands(arrays, case, name, modulation):
    center, calibration = arrays[f'{case}/in/training'], arrays[f'{case}/in/calibration']
    alphas = np.sort(arrays[f'{case}/out/{name}_twosided_alphas'])
    order = np.argsort(arrays[f'{case}/out/{name}_twosided_alphas'])
    lower, upper = two_sided_band(center, calibration, alphas, modulation, 'published')
    expected = arrays[f'{case}/out/{name}_twosided_lower'][order]
    np.testing.assert_allclose(lower, expected, rtol=1e-9, atol=1e-12)
    expected = arrays[f'{case}/out/{name}_twosided_upper'][order]
    np.testing.assert_allclose(upper, expected, rtol=1e-9, atol=1e-12)


def test_two_sided_bands_refuse_what_one_sided_ones_refuse():
    with pytest.raises(CalibrationError, match=r"modulation: expected one of .*, found 'wavy'"):
        two_sided_band(np.zeros((2, 3)), np.zeros((9, 3)), [0.1], 'wavy')
    with pytest.raises(
        CalibrationError, match=r'center_curves: expected shape \(n1, T\).*found \(0, 3\)'
    ):
        two_sided_band(np.zeros((0, 3)), np.zeros((9, 3)), [0.1])


@pytest.mark.parametrize('modulation', list(MODULATIONS))
@pytest.mark.parametrize('n', [5, 10, 20, 100])
def test_curves_leave_two_sided_bands_as_seldom_as_promised(n, modulation):
    resamplings, alphas = 1000, (0.05, 0.1, 0.2, 0.3, 0.5)
    generator = np.random.default_rng([n, len(modulation)])
    outside = np.zeros(len(alphas), dtype=int)
    n_center = max(1, 3 * n // 10)
    for _ in range(resamplings):
        curves, _ = unequal_curves(generator, n + 1)
        new, center, ranked = curves[0], curves[1 : 1 + n_center], curves[1 + n_center :]
        lower, upper = two_sided_band(center, ranked, alphas, modulation)
        outside += ((new < lower) | (new > upper)).any(axis=1)
    allowed = binom.ppf(1 - 1e-4, resamplings, alphas)
    assert (outside <= allowed).all(), (outside / resamplings, alphas)
    n_ranked = n - n_center
    for alpha, count in zip(alphas, outside, strict=True):
        reachable = np.floor((n_ranked + 1) * alpha + 1e-9) / (n_ranked + 1)
        assert count == 0 if reachable == 0 else count > 0.4 * reachable * resamplings


@pytest.mark.parametrize('n', [4, 9, 21])
def test_finite_sample_thresholds_are_calibration_curves_and_published_ones_lie_below(n):
    # D11: the published quantile interpolates over n values where the promise needs n + 1 ranks.
    center = np.zeros((2, 1))
    calibration = np.random.default_rng(n).normal(size=(n, 1))
    for k in range(1, n + 1):
        alpha = float(1 - Fraction(k, n + 1))
        ours = functional_band(center, calibration, [alpha], 'constant').upper[0, 0]
        assert ours == pytest.approx(np.sort(calibration[:, 0])[k - 1], rel=1e-12)
        # At alpha 0.5 both are the median.
        if alpha < 0.5 - 1e-9 and k < n:
            published = functional_band(center, calibration, [alpha], 'constant', 'published')
            assert published.upper[0, 0] < ours
    assert np.isposinf(functional_band(center, calibration, [0.99 / (n + 1)]).upper).all()


@pytest.mark.parametrize('n', [*range(1, 60), 99, 199, 999])
def test_the_rank_is_exact(n):
    for percent in range(1, 100):
        expected = -(-(n + 1) * (100 - percent) // 100)
        assert conformal_rank(n, percent / 100) == expected
        assert conformal_rank(n, 1 - (100 - percent) / 100) == expected


def test_the_rank_in_floating_point_would_be_another():
    # D38, the case it names.
    assert np.ceil((9 + 1) * (1 - 0.7)) == 4
    assert conformal_rank(9, 0.7) == 3


def test_the_threshold_is_the_ranked_calibration_curve():
    center = np.zeros((3, 4))
    calibration = np.arange(1.0, 10.0)[:, None] * np.ones(4)
    band = functional_band(center, calibration, [0.05, 0.1, 0.2, 0.5, 0.9], 'constant')
    np.testing.assert_allclose(
        band.upper, np.array([np.inf, 9, 8, 5, 1])[:, None] * np.ones(4), rtol=1e-12
    )
    assert band.smallest_finite_alpha == 0.1


@settings(max_examples=100, deadline=None)
@given(
    curves=hnp.arrays(
        np.float32,
        st.tuples(st.integers(4, 12), st.integers(1, 6)),
        elements=st.floats(-100, 100, width=32),
    ),
    n_center=st.integers(1, 3),
    modulation=st.sampled_from(list(MODULATIONS)),
    alpha=st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7]),
)
def test_at_most_the_allowed_number_of_calibration_curves_cross(
    curves, n_center, modulation, alpha
):
    # Ties included: a curve that equals the k-th must not be above a threshold made of it by
    # rounding.
    center, calibration = curves[:n_center], curves[n_center:]
    n = calibration.shape[0]
    threshold = functional_band(center, calibration, [alpha], modulation).at(alpha)
    crossing = sum(threshold.first_crossing(curve) is not None for curve in calibration)
    assert crossing <= n - min(conformal_rank(n, alpha), n)


def test_the_curve_a_threshold_is_made_of_is_never_above_it():
    # mu + (x - mu) / M * M need not give back x: without care every other one would cross.
    generator = np.random.default_rng(0)
    for _ in range(200):
        center, calibration = generator.normal(size=(3, 5)), generator.normal(size=(4, 5))
        threshold = functional_band(center, calibration, [0.2]).at(0.2)
        assert [threshold.first_crossing(curve) for curve in calibration] == [None] * 4
        # Yet it is that curve's own threshold: with a little more it crosses.
        assert any(threshold.first_crossing(curve + 1e-9) is not None for curve in calibration)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n_center=st.integers(1, 6), n=st.integers(0, 25))
def test_bands_of_one_modulation_are_ordered_by_alpha(seed, n_center, n):
    generator = np.random.default_rng(seed)
    center = generator.normal(size=(n_center, 7)).cumsum(axis=1)
    calibration = generator.normal(size=(n, 7)).cumsum(axis=1)
    for modulation in ('std', 'constant'):
        band = functional_band(center, calibration, ALPHAS, modulation)
        assert (band.upper[:-1] >= band.upper[1:] - 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
    modulation=st.sampled_from(list(MODULATIONS)),
)
def test_the_band_moves_with_the_unit_of_the_score(seed, scale, shift, modulation):
    generator = np.random.default_rng(seed)
    curves = generator.normal(size=(15, 6)).cumsum(axis=1)
    plain = functional_band(curves[:5], curves[5:], [0.2, 0.5], modulation)
    moved = curves * scale + shift
    band = functional_band(moved[:5], moved[5:], [0.2, 0.5], modulation)
    np.testing.assert_allclose(band.upper, plain.upper * scale + shift, rtol=1e-8, atol=1e-7)


def test_a_step_where_the_center_agrees_does_not_blow_up_the_band():
    generator = np.random.default_rng(0)
    center = generator.uniform(0.4, 0.6, size=(5, 20))
    calibration = generator.uniform(0.4, 0.6, size=(20, 20))
    center[:, 0] = 0.5
    # D15: modulation 1e-8 at step 0 makes w about 1e7, and no score ever reaches the rest.
    published = functional_band(center, calibration, [0.1], 'max_deviation', 'published')
    assert published.upper[0, 1:].min() > 1e5
    ours = functional_band(center, calibration, [0.1])
    assert ours.upper[0, 1:].max() < 2.0


@pytest.mark.parametrize('alpha', [0.1, 0.2, 0.3, 0.5])
def test_the_adaptive_shape_is_the_published_one(alpha):
    # Including the outliers it leaves out: with w aside, both bands are parallel.
    generator = np.random.default_rng(5)
    center = generator.normal(size=(9, 12)).cumsum(axis=1)
    center[2, 7] += 30.0
    calibration = generator.normal(size=(30, 12)).cumsum(axis=1)
    mu = center.mean(axis=0)
    ours = functional_band(center, calibration, [alpha]).upper[0] - mu
    published = (
        functional_band(center, calibration, [alpha], 'max_deviation', 'published').upper[0] - mu
    )
    np.testing.assert_allclose(ours / ours[0], published / published[0], rtol=1e-6)
    # The spike widens the band at its step only where alpha leaves out no curve: ceil(10 * 0.9)
    # is all nine.
    assert (ours[7] > 4 * np.median(ours)) == (alpha == 0.1)


def test_identical_center_curves_give_a_band_parallel_to_them():
    # 0.1 is not a binary fraction: the spread of the mean is rounding and must not shape M.
    center = np.tile(np.linspace(0.1, 0.7, 7), (3, 1)) + 0.1
    calibration = center[0] + np.array([[0.0], [0.2], [0.1], [-0.3]])
    for modulation in MODULATIONS:
        band = functional_band(center, calibration, [0.2], modulation)
        np.testing.assert_allclose(band.upper[0], center[0] + 0.2, rtol=1e-9)


def unequal_curves(generator, n):
    """Curves (n, 16) with lengths: level and length hang together, as they do in rollouts."""
    lengths = generator.integers(4, 17, size=n)
    level = generator.normal(size=(n, 1)) + 0.1 * lengths[:, None]
    curves = level + generator.normal(size=(n, 16)).cumsum(axis=1) * 0.5
    # Coarse values: ties between rollouts are where a wrong rank or comparison shows.
    return np.round(curves * 4) / 4, lengths


@pytest.mark.parametrize('modulation', list(MODULATIONS))
@pytest.mark.parametrize('n', [5, 10, 20, 100])
def test_realised_false_alarms_keep_the_promise(n, modulation):
    # One new success for each of the resamplings: alarms are then binomial with p <= alpha.
    resamplings, alphas = 1000, (0.05, 0.1, 0.2, 0.3, 0.5)
    generator = np.random.default_rng([n, len(modulation)])
    alarms = np.zeros(len(alphas), dtype=int)
    for _ in range(resamplings):
        curves, lengths = unequal_curves(generator, n + 1)
        *successes, new = (curve[:length] for curve, length in zip(curves, lengths, strict=True))
        band = calibrate(
            successes, alphas, max_steps=16, generator=generator, modulation=modulation
        )
        alarms += [band.at(alpha).first_crossing(new) is not None for alpha in alphas]
    allowed = binom.ppf(1 - 1e-4, resamplings, alphas)
    assert (alarms <= allowed).all(), (alarms / resamplings, alphas)
    # And not by never alarming.
    n_ranked = n - max(1, 3 * n // 10)
    for alpha, count in zip(alphas, alarms, strict=True):
        if alpha < 1 / (n_ranked + 1):
            assert count == 0
        else:
            reachable = np.floor((n_ranked + 1) * alpha + 1e-9) / (n_ranked + 1)
            assert count > 0.4 * reachable * resamplings


@pytest.mark.parametrize('modulation', [*MODULATIONS, 'none'])
def test_the_shape_of_a_band_gives_its_thresholds(modulation):
    curves, _ = unequal_curves(np.random.default_rng(3), 21)
    alphas = (0.01, 0.1, 0.3)
    if modulation == 'none':
        band = constant_band(list(curves), alphas, max_steps=16)
    else:
        band = calibrate(
            list(curves),
            alphas,
            max_steps=16,
            generator=np.random.default_rng(0),
            modulation=modulation,
        )
    shape = band.shape
    for row, alpha in enumerate(alphas):
        w = conformal_quantile(shape.nonconformity[row], alpha)
        np.testing.assert_allclose(band.upper[row], shape.center + w * shape.width[row], rtol=1e-12)
    assert np.isinf(band.upper[0]).all() and np.isfinite(band.upper[1]).all()


def test_the_same_simulation_convicts_the_published_quantile():
    # D11, and that the simulation above can fail at all.
    resamplings, alpha = 800, 0.1
    generator = np.random.default_rng(10)
    alarms = 0
    for _ in range(resamplings):
        curves, lengths = unequal_curves(generator, 11)
        *successes, new = (curve[:length] for curve, length in zip(curves, lengths, strict=True))
        band = calibrate(
            successes, [alpha], max_steps=16, generator=generator, quantile='published'
        )
        alarms += band.at(alpha).first_crossing(new) is not None
    assert alarms > binom.ppf(1 - 1e-4, resamplings, alpha)


def calibrate_some(n, *, episodes=(), described='', **options):
    scores = [np.linspace(0, 0.1 * (index + 1), 3 + index % 4) for index in range(n)]
    defaults = {'max_steps': 8, 'generator': np.random.default_rng(0)}
    successes = Successes(scores, episodes, described=described)
    return calibrate(successes, **{**defaults, **options})


def test_no_success_is_an_error_that_says_what_to_do():
    with pytest.raises(CalibrationError, match=r'success .* found none.*seen_train_ratio'):
        calibrate_some(0)


@pytest.mark.parametrize(
    ('n', 'n_center', 'smallest'), [(1, 1, None), (2, 1, 0.5), (3, 1, 0.4), (4, 1, 0.25)]
)
def test_few_successes_give_infinite_thresholds_and_a_note(n, n_center, smallest):
    # D10: the published code stops with a ValueError at 2 and 3.
    band = calibrate_some(n)
    assert (band.n_center, band.n_calibration) == (n_center, n - n_center)
    assert band.smallest_finite_alpha == smallest
    note = band.provenance['note']
    assert f'{n - n_center} calibration rollouts are too few for alpha 0.01, 0.02' in note
    assert 'Alpha 0.01 needs 99 calibration rollouts' in note
    if n == 1:
        assert 'No alpha has a finite threshold' in note
    else:
        assert f'smallest alpha with a finite threshold is 1/{n}' in note


def test_enough_successes_need_no_note():
    band = calibrate_some(150)
    assert band.n_calibration == 105
    assert 'note' not in band.provenance
    assert np.isfinite(band.upper).all()


def test_provenance_says_what_was_promised_on_which_rollouts():
    names = [f'pour/{index}' for index in range(10)]
    band = calibrate_some(10, episodes=names, described='successes of val_seen, split 0')
    facts = band.provenance
    assert facts['alphas'] == list(ALPHAS)
    assert facts['calibrated_on'] == 'successes of val_seen, split 0'
    assert (facts['n_center'], facts['n_calibration'], facts['n_successes']) == (3, 7, 10)
    assert sorted(facts['center'] + facts['calibration']) == list(range(10))
    assert facts['center_rollouts'] == [names[index] for index in facts['center']]
    assert facts['calibration_rollouts'] == [names[index] for index in facts['calibration']]
    assert (facts['modulation'], facts['quantile'], facts['max_steps']) == (
        'max_deviation',
        'finite_sample',
        8,
    )


def test_the_part_drawn_depends_on_the_generator_alone():
    # D14: every detector must be calibrated on the same rollouts.
    first = calibrate_some(20, generator=np.random.default_rng(4)).provenance
    other = calibrate_some(
        20, generator=np.random.default_rng(4), modulation='std', alphas=[0.2]
    ).provenance
    assert first['center'] == other['center']
    assert first['center'] != calibrate_some(20).provenance['center']


def test_curves_are_extended_with_their_last_value():
    scores = [np.array([0.0, 1.0]), np.array([0.0, 2.0, 3.0]), np.array([5.0])]
    band = calibrate(
        scores, [0.4], max_steps=4, generator=np.random.default_rng(1), modulation='constant'
    )
    by_hand = [[0, 1, 1, 1], [0, 2, 3, 3], [5, 5, 5, 5]]
    center, ranked = band.provenance['center'], band.provenance['calibration']
    expected = functional_band(
        [by_hand[index] for index in center],
        [by_hand[index] for index in ranked],
        [0.4],
        'constant',
    )
    np.testing.assert_array_equal(band.upper, expected.upper)
    assert band.length == 4


@pytest.mark.parametrize(
    ('scores', 'options', 'message'),
    [
        ([[0.0, np.nan]], {}, 'rollout 0, step 1: expected a finite score, found nan'),
        ([[0.0], [np.inf]], {}, 'rollout 1, step 0: expected a finite score, found inf'),
        ([[]], {}, r'shape \(T,\)'),
        ([[[0.0]]], {}, r'shape \(T,\)'),
        ([[0.0] * 9], {}, r'rollout 0: expected at most .*8 steps, found 9 steps; raise max_steps'),
        ([[0.0]], {'max_steps': 0}, 'max_steps of at least 1, found 0'),
        ([[0.0]], {'center_fraction': 1.0}, 'center_fraction'),
        ([[0.0]], {'alphas': []}, 'expected one or more alphas, found none'),
        ([[0.0]], {'alphas': [0.0]}, r'inside \(0, 1\)'),
        ([[0.0]], {'alphas': [np.nan]}, r'inside \(0, 1\)'),
        ([[0.0]], {'alphas': [1 - 1e-16]}, r'inside \(0, 1\)'),
        ([[0.0]], {'alphas': [0.1, 0.1]}, 'expected each alpha once'),
        ([[0.0]], {'modulation': 'Tfunc'}, "modulation: expected one of .*, found 'Tfunc'"),
        ([[0.0]], {'quantile': 'linear'}, "quantile: expected one of .*, found 'linear'"),
        ([[0.0]], {'quantile': 'published'}, 'at least one calibration curve'),
        (
            [[0.0], [1.0]],
            {'quantile': 'published', 'modulation': 'std'},
            "expected two or more center curves for the modulation 'std', found one",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores, options, message):
    defaults = {'max_steps': 8, 'generator': np.random.default_rng(0)}
    with pytest.raises(CalibrationError, match=message):
        calibrate(scores, **{**defaults, **options})


def test_every_success_has_its_name_and_task():
    with pytest.raises(CalibrationError, match=r'expected 1 episodes, .*, found 2'):
        Successes([[0.0]], episodes=['a', 'b'])
    with pytest.raises(CalibrationError, match=r'expected 2 tasks, .*, found 1'):
        Successes([[0.0], [1.0]], tasks=['a'])


@pytest.mark.parametrize(
    ('center', 'calibration', 'message'),
    [
        (np.zeros((0, 3)), np.zeros((2, 3)), 'n1 >= 1'),
        (np.zeros((2, 3)), np.zeros((2, 4)), r'calibration_curves: expected shape \(n, 3\)'),
        (np.zeros(3), np.zeros((2, 3)), r'center_curves: expected shape \(n, T\)'),
        (
            np.zeros((2, 3)),
            np.full((2, 3), np.nan),
            'calibration_curves, row 0, step 0: .* found nan',
        ),
    ],
)
def test_curves_that_do_not_fit_are_refused(center, calibration, message):
    with pytest.raises(CalibrationError, match=message):
        functional_band(center, calibration)
