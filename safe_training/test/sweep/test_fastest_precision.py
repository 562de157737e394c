# SPDX-License-Identifier: Apache-2.0
"""The number format of a sweep is the faster one, and finding it takes no half minute."""

import pytest

from safe_training.sweep import run


@pytest.mark.parametrize(
    ('ratios', 'chosen', 'sizes'),
    [
        ({256: 200.0}, 'float32', [256]),
        ({256: 0.1}, 'bfloat16', [256]),
        ({256: 1.5, 1024: 0.4}, 'bfloat16', [256, 1024]),
        ({256: 0.8, 1024: 3.0}, 'float32', [256, 1024]),
    ],
)
def test_large_matrices_are_multiplied_only_if_small_ones_do_not_decide(
    monkeypatch, ratios, chosen, sizes
):
    asked = []

    def seconds(name, device, size):
        asked.append(size)
        return ratios[size] if name == 'bfloat16' else 1.0

    monkeypatch.setattr(run, '_seconds', seconds)
    assert run.fastest_precision('cpu') == chosen
    assert list(dict.fromkeys(asked)) == sizes


def test_it_multiplies_on_this_machine():
    assert run._seconds('float32', 'cpu', 64) > 0
    assert run.fastest_precision('cpu') in ('float32', 'bfloat16')
