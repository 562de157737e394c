# SPDX-License-Identifier: Apache-2.0
"""A live policy and its recordings call the same quantity by the same name, and pool it alike."""

import pytest

from safe_training.recordings.sources import READERS
from vla_feature_bridge.step import NO_FEATURE
from vla_feature_bridge.taps import load_preset, preset_names

RECORDED = {name: pooling for reader in READERS for name, pooling in reader.default_pooling.items()}
#: Features of policies whose recordings no reader knows.
ONLY_LIVE = {'lerobot_act': 'pre_action', 'lerobot_diffusion': 'pre_noise'}


@pytest.mark.parametrize('name', preset_names())
def test_a_preset_pools_as_the_reader_of_the_same_feature(name):
    preset = load_preset(name)
    if not preset.module:
        assert str(preset.spec) == NO_FEATURE
    elif name in ONLY_LIVE:
        assert preset.feature == ONLY_LIVE[name]
        assert preset.feature not in RECORDED
    else:
        assert preset.pooling == tuple(RECORDED[preset.feature])


def test_the_features_are_those_of_the_readers():
    live = {load_preset(name).feature for name in preset_names() if name not in ONLY_LIVE}
    assert live - {''} == {'pre_velocity', 'pre_logits', 'hidden_states'}
