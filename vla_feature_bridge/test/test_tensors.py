# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries become NumPy arrays, and NaN is found wherever it is."""

import ml_dtypes
import numpy as np
import pytest
import torch

from vla_feature_bridge.tensors import FLOATS, as_array, first_not_finite


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_a_tensor_keeps_its_numbers_and_dtype(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype).T
    array = as_array(tensor)
    assert array.dtype.name == str(dtype).removeprefix('torch.')
    np.testing.assert_array_equal(array.astype(np.float64), np.arange(12.0).reshape(3, 4).T)


def test_a_tensor_of_a_graph_and_a_scalar_are_arrays():
    assert as_array(torch.ones(2, requires_grad=True) * 2).tolist() == [2, 2]
    assert as_array(torch.tensor(1.5, dtype=torch.bfloat16)).shape == ()
    assert as_array([1, 2]).tolist() == [1, 2]


def test_an_array_is_not_copied():
    array = np.zeros(3, ml_dtypes.bfloat16)
    assert as_array(array) is array
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    as_array(tensor)[0] = 1
    assert tensor[0] == 1


@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_the_first_step_that_is_not_finite_is_found(dtype, bad):
    array = np.ones((700, 20, 30), dtype)
    assert first_not_finite(array) is None
    array[500, 3, 4] = bad
    array[600, 0, 0] = bad
    assert first_not_finite(array) == 500
    assert first_not_finite(array[500, 3]) == 4


def test_nothing_is_finite():
    assert first_not_finite(np.zeros((0, 3))) is None
    assert first_not_finite(np.zeros((3, 0))) is None
