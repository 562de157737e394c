# SPDX-License-Identifier: Apache-2.0
"""States that are pooled in the call have the features of the whole tensor, bit for bit."""

import numpy as np
import pytest
import torch

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.taps import Preset
from vla_feature_bridge.taps.states import States

COMMANDS = ('mean', 'first', 'last', '0.4', 'first&last', 'concat', 'concat-3', 'concat-1::2')


class Elsewhere(torch.Tensor):
    """A tensor of another class, as that of another device: it is copied and pooled at the end."""


def preset(axes=('denoise', 'horizon'), pooling=('horizon=mean', 'denoise=mean'), **changes):
    return Preset.from_dict(
        {
            'name': 'p',
            'module': 'head',
            'calls': 4,
            'axes': list(axes),
            'pooling': list(pooling),
            **changes,
        },
        'test',
    )


def states_of(made, shape, dtype=torch.float32, calls=4, seed=0):
    """Return states in one buffer that the policy writes again and again, and copies of them."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.empty((1, *shape), dtype=dtype)
    whole = [torch.randn((1, *shape), generator=generator).to(dtype) for _ in range(calls)]
    for state in whole:
        buffer.copy_(state)
        assert made.add(buffer)
    buffer.fill_(torch.nan)
    return torch.cat(whole).float().numpy()


@pytest.mark.parametrize('last', COMMANDS)
@pytest.mark.parametrize('first', COMMANDS)
def test_every_pooling_of_the_positions_and_then_of_the_calls(first, last):
    wanted = preset(pooling=(f'horizon={first}', f'denoise={last}'))
    made = States(wanted)
    raw = states_of(made, (50, 24))
    features, shape = made.features(4)
    spec = FeatureSpec('p', 0, ('denoise', 'horizon'), wanted.pooling)
    np.testing.assert_array_equal(features, spec.apply(raw), strict=True)
    assert shape == raw.shape


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', [(50, 1024), (7, 1), (1, 5), (33, 129)])
def test_other_dtypes_and_shapes(dtype, shape):
    made = States(preset())
    raw = states_of(made, shape, dtype)
    features, _ = made.features(4)
    np.testing.assert_array_equal(features, preset().spec.apply(raw), strict=True)
    assert made.dtype == str(dtype).removeprefix('torch.')


@pytest.mark.parametrize(
    ('changes', 'shape'),
    [
        ({'keep': 'channels_first'}, (24, 50)),
        ({'axes': ('denoise', 'camera', 'patch'), 'pooling': ('patch=mean', 'camera=concat',
                                                              'denoise=last')}, (2, 9, 24)),
        ({'axes': ('denoise', 'camera', 'patch'), 'pooling': ('camera=mean', 'patch=first&last',
                                                              'denoise=mean')}, (2, 9, 24)),
        # The calls are not pooled last: the states are copied.
        ({'pooling': ('denoise=mean', 'horizon=mean')}, (50, 24)),
    ],
)  # fmt: skip
def test_other_layouts(changes, shape):
    wanted = preset(**changes)
    made = States(wanted)
    raw = states_of(made, shape)
    if wanted.keep == 'channels_first':
        raw = np.swapaxes(raw, -1, -2)
    features, found = made.features(4)
    np.testing.assert_array_equal(features, wanted.spec.apply(raw), strict=True)
    assert found == raw.shape


def test_one_call_has_no_axis_of_calls():
    wanted = preset(axes=('horizon',), pooling=('horizon=mean',), calls=1)
    made = States(wanted)
    (raw,) = states_of(made, (50, 24), calls=1)
    features, shape = made.features(1)
    np.testing.assert_array_equal(features, wanted.spec.apply(raw), strict=True)
    assert shape == (50, 24)


def test_a_tensor_of_another_class_is_copied_with_the_same_result():
    state = torch.randn(1, 50, 24)
    plain, other = States(preset()), States(preset())
    for number in range(4):
        plain.add(state * number)
        other.add((state * number).as_subclass(Elsewhere))
    assert plain.features(4)[1] == other.features(4)[1] == (4, 50, 24)
    np.testing.assert_array_equal(plain.features(4)[0], other.features(4)[0])
    assert plain.dtype == other.dtype == 'float32'


@pytest.mark.parametrize('kinds', [(torch.Tensor, Elsewhere), (Elsewhere, torch.Tensor)])
def test_two_kinds_in_one_inference_do_not_mix(kinds):
    made = States(preset())
    first, second = (torch.randn(1, 50, 24).as_subclass(kind) for kind in kinds)
    assert made.add(first)
    assert not made.add(second)
    assert len(made) == 1


@pytest.mark.parametrize('other', [torch.randn(1, 49, 24), torch.randn(1, 50, 24).double()])
def test_another_shape_or_dtype_in_one_inference_is_refused(other):
    made = States(preset())
    assert made.add(torch.randn(1, 50, 24))
    assert not made.add(other)
    made.clear()
    assert len(made) == 0
    assert made.dtype == ''
    assert made.add(other), 'in the next inference'


def test_missing_states_are_an_error_and_no_features():
    made = States(preset())
    made.add(torch.randn(1, 50, 24))
    with pytest.raises(ValueError, match='expected 4 states, found 1'):
        made.features(4)


def test_features_of_one_inference_stay_in_the_next():
    made = States(preset(pooling=('horizon=last', 'denoise=last')))
    first = states_of(made, (50, 24))
    features, _ = made.features(4)
    made.clear()
    states_of(made, (50, 24), seed=1)
    np.testing.assert_array_equal(features, first[-1, -1])
