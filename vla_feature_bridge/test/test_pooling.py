# SPDX-License-Identifier: Apache-2.0
"""Pooling commands against the published vectors, and what they refuse."""

import json

import ml_dtypes
import numpy as np
import pytest
from shared_files import golden_arrays

from vla_feature_bridge.pooling import FeatureSpec, PoolingError, check_command, parse_pooling, pool

GOLDEN = golden_arrays('pooling')


@pytest.mark.parametrize('case', ['c0', 'c1'])
def test_golden_commands(case):
    array = GOLDEN[f'{case}/in/A']
    for i, command in enumerate(json.loads(str(GOLDEN[f'{case}/in/commands']))):
        np.testing.assert_allclose(
            pool(array, str(command)),
            GOLDEN[f'{case}/out/cmd{i}'],
            rtol=0,
            atol=1e-6,
            err_msg=str(command),
        )


def test_golden_two_axes_in_the_stated_order():
    array = GOLDEN['pi0/in/A']
    for i, (horizon, denoise) in enumerate(json.loads(str(GOLDEN['pi0/in/horizon_diff_commands']))):
        expected = GOLDEN[f'pi0/out/combo{i}']
        spec = FeatureSpec(
            'pre_velocity',
            dim=expected.shape[-1],
            axes=('denoise', 'horizon'),
            pooling=(('horizon', str(horizon)), ('denoise', str(denoise))),
        )
        np.testing.assert_allclose(spec.apply(array), expected, rtol=0, atol=1e-6)


def test_bfloat16_is_averaged_in_float32_unlike_the_published_code():
    """Defect D33: the published mean is computed in the stored dtype; its error is up to 0.04."""
    exact = GOLDEN['bf16mean/out/exact_float32']
    published = GOLDEN['bf16mean/out/reference_bf16']
    stored = GOLDEN['bf16mean/in/A_as_float32'].astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(pool(stored, 'mean'), exact, rtol=0, atol=1e-6)
    assert np.abs(published - exact).max() == pytest.approx(0.043, abs=0.0005)


def test_names_for_relative_indices_and_counts():
    array = np.arange(5 * 2).reshape(5, 2)
    np.testing.assert_array_equal(pool(array, 'first'), array[0])
    np.testing.assert_array_equal(pool(array, 'last'), array[-1])
    np.testing.assert_array_equal(pool(array, 'first&last'), pool(array, 'concat-2'))
    np.testing.assert_array_equal(pool(array, 'first&last'), [0, 1, 8, 9])


def test_axis_order_matters_for_concatenation():
    array = np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    a = FeatureSpec('f', 24, ('x', 'y'), (('x', 'concat'), ('y', 'concat'))).apply(array)
    b = FeatureSpec('f', 24, ('x', 'y'), (('y', 'concat'), ('x', 'concat'))).apply(array)
    assert sorted(a) == sorted(b)
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(b, array.reshape(-1))


def test_a_whole_rollout_keeps_its_time_axis():
    raw = np.random.default_rng(0).normal(size=(6, 7, 4)).astype(np.float32)
    spec = FeatureSpec('hidden_states', 4, ('token',), (('token', 'last'),))
    np.testing.assert_array_equal(spec.apply(raw), raw[:, -1])
    np.testing.assert_array_equal(spec.apply(raw[2]), raw[2, -1])


@pytest.mark.parametrize(
    'command',
    ['', 'median', '1.5', '-0.1', 'nan', 'concat-1', 'concat-x', 'concat-::0', 'first&first'],
)
def test_unknown_commands_are_refused_with_the_list(command):
    with pytest.raises(PoolingError, match='pooling command'):
        check_command(command)


def test_selecting_nothing_or_an_empty_axis_is_refused():
    with pytest.raises(PoolingError, match='expected at least one selected position'):
        pool(np.zeros((3, 2)), 'concat-3:')
    with pytest.raises(PoolingError, match='expected at least one position on axis -2'):
        pool(np.zeros((0, 2)), 'mean')


def test_specification_checks_axes_and_width():
    with pytest.raises(PoolingError, match='each of the axes'):
        FeatureSpec('f', 4, ('token',), (('horizon', 'mean'),))
    with pytest.raises(PoolingError, match='expected a pooled width of 4, found 8'):
        FeatureSpec('f', 4, ('token',), (('token', 'mean'),)).apply(np.zeros((7, 8)))
    with pytest.raises(PoolingError, match='expected a feature specification'):
        FeatureSpec.from_dict({'name': 'f'})
    spec = FeatureSpec('f', 4, ('token',), (('token', 'mean'),))
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert str(spec) == 'f[token=mean]'


def test_command_line_pooling():
    assert parse_pooling(['horizon=mean', 'denoise=last']) == (
        ('horizon', 'mean'),
        ('denoise', 'last'),
    )
    with pytest.raises(PoolingError, match='AXIS=COMMAND'):
        parse_pooling(['mean'])
