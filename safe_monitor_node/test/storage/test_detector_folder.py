# SPDX-License-Identifier: Apache-2.0
"""The detector folder: what is saved is loaded, and everything else is refused."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rollout_factory import make_rollout
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.storage.detector_folder import (
    DESCRIPTION,
    WEIGHTS,
    DetectorFolderError,
    describe,
    is_detector_folder,
    load_detector,
    save_detector,
)
from vla_feature_bridge.pooling import FeatureSpec

WIDTH = 3
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))
PROVENANCE = {'source': 'Übung 1', 'episodes': {'train': ['a', 'b'], 'seen': []}, 'seed': 0}


def make_band():
    upper = np.array([[np.inf, np.inf], [0.75, 1 / 3]])
    return Band(np.array([0.05, 0.1]), upper, 'functional_std', 9, 4, {'note': 'by hand'})


def make_mlp(seed=0):
    detector = make_detector('safe_mlp', hidden=2, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector.set_network(detector.build(WIDTH), WIDTH)
    return detector


def calibrated(detector=None, feature=SPEC, alpha=0.1, provenance=PROVENANCE):
    return CalibratedDetector(detector or make_mlp(), feature, make_band(), alpha, provenance)


def save(folder, seed=0, **options):
    return save_detector(folder, calibrated(make_mlp(seed)), **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rewrite(folder, change=lambda content: None, weights=None):
    """Change a folder, and make its checksum fit the change."""
    content = json.loads((folder / DESCRIPTION).read_text())
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
        content['weights_sha256'] = hashlib.sha256(weights).hexdigest()
        content['weights_bytes'] = len(weights)
    change(content)
    content.pop('sha256', None)

    def text():
        return json.dumps(content, indent=2, sort_keys=True) + '\n'

    content['sha256'] = hashlib.sha256(text().encode()).hexdigest()
    (folder / DESCRIPTION).write_text(text())


def rewrite_arrays(folder, change):
    arrays = load_tensors((folder / WEIGHTS).read_bytes())
    change(arrays)
    rewrite(folder, weights=save_tensors(arrays))


def refused(folder, match, file=DESCRIPTION):
    with pytest.raises(DetectorFolderError, match=match) as caught:
        load_detector(folder)
    assert str(folder / file) in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / 'detector')


# --- what is saved is loaded


def test_a_folder_gives_back_all_that_was_saved(folder):
    loaded = load_detector(folder)
    assert loaded.detector.get_params() == make_mlp().get_params()
    for name, array in make_mlp().state().items():
        np.testing.assert_array_equal(loaded.detector.state()[name], array)
    assert loaded.feature == SPEC
    assert loaded.alpha == 0.1
    assert loaded.provenance == PROVENANCE
    assert loaded.band is not None
    assert loaded.band.meta() == make_band().meta()
    for name, array in make_band().state().items():
        np.testing.assert_array_equal(loaded.band.state()[name], array)
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_a_calibrated_detector_saves_and_loads_itself(folder, tmp_path):
    saved = calibrated().save(str(tmp_path / 'again'))
    assert saved == tmp_path / 'again'
    assert contents(saved) == contents(folder)
    again = CalibratedDetector.load(str(saved))
    assert again.provenance == PROVENANCE
    assert again.weights_sha256 == json.loads((saved / DESCRIPTION).read_text())['weights_sha256']
    with pytest.raises(DetectorFolderError, match='expected a path that does not exist, found'):
        again.save(saved)
    assert contents(again.save(saved, overwrite=True)) == contents(folder)


def test_the_action_space_is_stored(tmp_path):
    folder = replace(calibrated(), action_space='robot').save(tmp_path / 'detector')
    assert load_detector(folder).action_space == 'robot'
    assert describe(folder)['action_space'] == 'robot'


def test_a_folder_without_an_action_space_does_not_state_it(folder):
    rewrite(folder, lambda content: content.pop('action_space'))
    assert load_detector(folder).action_space == ''


@pytest.mark.parametrize('value', [None, 3, ['robot']])
def test_an_action_space_that_is_no_text_is_refused(folder, value):
    rewrite(folder, lambda content: content.update(action_space=value))
    refused(folder, "entry 'action_space': expected a text, found")


def test_a_detector_without_arrays_is_saved_too(tmp_path):
    clock = make_detector('clock')
    clock.load_state({}, WIDTH)
    loaded = load_detector(save_detector(tmp_path / 'clock', calibrated(clock)))
    rollout = make_rollout(steps=4, dim=WIDTH)
    np.testing.assert_array_equal(loaded.detector.score(rollout), np.arange(4))


def test_missing_parents_are_made(tmp_path):
    load_detector(save(tmp_path / 'of' / 'many' / 'detectors'))


def test_a_moved_or_copied_folder_still_loads(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'copy')
    shutil.rmtree(folder)
    load_detector(tmp_path / 'copy')


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    assert contents(save(tmp_path / 'again')) == contents(folder)


def test_a_folder_says_what_it_is(folder, tmp_path):
    described = json.loads(json.dumps(describe(folder), allow_nan=False))
    assert described['detector'] == 'safe_mlp'
    assert described['feature'] == 'hidden_states[token=last]'
    assert described['alphas'] == [0.05, 0.1]
    assert described['band']['steps'] == 2
    assert is_detector_folder(folder)
    assert not is_detector_folder(tmp_path)
    assert not is_detector_folder(tmp_path / 'nothing')


# --- damage


@pytest.mark.parametrize('file', [DESCRIPTION, WEIGHTS])
def test_one_flipped_byte_anywhere_is_refused(folder, file):
    path = folder / file
    intact = path.read_bytes()
    accepted = []
    for position in range(len(intact)):
        damaged = bytearray(intact)
        # A changed digit, upper case for lower case, a changed sign, bytes that are not text.
        damaged[position] ^= (0x01, 0x20, 0x06, 0x80)[position % 4]
        path.write_bytes(damaged)
        try:
            load_detector(folder)
        except DetectorFolderError as error:
            assert str(path) in str(error)
        else:
            accepted.append(position)
    assert not accepted
    path.write_bytes(intact)
    load_detector(folder)


@pytest.mark.parametrize('file', [DESCRIPTION, WEIGHTS])
def test_a_truncated_or_longer_file_is_refused(folder, file):
    path = folder / file
    intact = path.read_bytes()
    for damaged in (b'', intact[:1], intact[: len(intact) // 2], intact[:-1], intact + b'\n'):
        path.write_bytes(damaged)
        refused(folder, 'copy the folder again|expected', file)


@pytest.mark.parametrize('file', [DESCRIPTION, WEIGHTS])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    refused(folder, 'missing', file)
    (folder / file).mkdir()
    refused(folder, 'missing', file)


def test_no_folder_or_a_file_in_its_place_is_refused(folder, tmp_path):
    for path in (tmp_path / 'nothing', folder / WEIGHTS):
        with pytest.raises(DetectorFolderError, match='no such folder') as caught:
            load_detector(path)
        assert str(path) in str(caught.value)


def test_weights_of_another_fit_are_refused(folder, tmp_path):
    other = save(tmp_path / 'other', seed=1)
    shutil.copy(other / WEIGHTS, folder / WEIGHTS)
    refused(folder, 'expected the sha256', WEIGHTS)


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('[]', "expected the format 'safe_detector', found 'list'"),
        ('"safe_detector"', "found 'str'"),
        ('null', "found 'NoneType'"),
        ('{}', 'found None'),
        ('{"format": "safe_rollout_set"}', "found 'safe_rollout_set'"),
        (
            '{"format": "safe_detector", "version": 2}',
            'expected version 1 of the format, found 2; fit the detector again',
        ),
        ('{"format": "safe_detector", "version": null}', 'expected version 1'),
        ('{"format": "safe_detector", "version": 1}', 'checksum'),
        ('{"format": "safe_detector", "version": 1, "alpha": NaN}', 'checksum'),
        ('{"format": "safe_detector", "version": 1, "alpha": 1e999}', 'checksum'),
        ('{"format": "safe_detector", "version": 1, "x": ' + '[' * 900 + ']' * 900 + '}', 'check'),
        ('[' * 100_000, 'not valid JSON'),
        ('{"format": ' + '1' * 10_000 + '}', 'not valid JSON'),
        ('{"format": "safe_detector"', 'not valid JSON'),
        ('\ufeff{}', 'not valid JSON'),
        ('not JSON', 'not valid JSON'),
    ],
    ids=lambda value: value[:45] if isinstance(value, str) else '',
)
def test_a_description_that_is_none_is_refused(folder, text, match):
    (folder / DESCRIPTION).write_text(text)
    refused(folder, match)


def test_a_description_that_is_no_text_is_refused(folder):
    (folder / DESCRIPTION).write_bytes(b'\xff\xfe\x00')
    refused(folder, 'not valid JSON')


@pytest.mark.parametrize(('file', 'size'), [(DESCRIPTION, (64 << 20) + 1), (WEIGHTS, 1 << 36)])
def test_a_huge_file_is_refused_unread(folder, file, size):
    with (folder / file).open('r+b') as stream:
        stream.truncate(size)  # sparse: takes no room
    refused(folder, f'{size}', file)


def test_a_repeated_key_cannot_hide_behind_another(folder):
    path = folder / DESCRIPTION
    text = path.read_text()
    path.write_text(text.replace('"alpha": 0.1,', '"alpha": 0.05,\n  "alpha": 0.1,'))
    refused(folder, 'checksum')


# --- the checksum is right, the content wrong


def drop(key):
    return lambda content: content.pop(key)


def put(key, value):
    return lambda content: content.update({key: value})


def put_param(key, value):
    return lambda content: content['params'].update({key: value})


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (drop('params'), 'params'),
        (drop('feature'), 'feature'),
        (drop('alpha'), 'alpha'),
        (drop('band'), 'expected a band, found none.*fit the detector again'),
        (drop('provenance'), 'provenance'),
        (drop('weights_sha256'), 'sha256'),
        (drop('weights_bytes'), 'expected None bytes'),
        (put('detector', 'sage_mlp'), "a known name, found 'sage_mlp'; choose one of"),
        (put('detector', ['safe_mlp']), 'TypeError'),
        (put('detector', 'safe_lstm'), "'safe_lstm': .* found 'activation'"),
        (put('detector', 'clock'), "'clock': .* found 'accumulate'; .* no parameters"),
        (put('params', 'hidden'), 'TypeError'),
        (put('params', {}), r'expected float32 of shape \(256,\), found float32 of shape \(2,\)'),
        (put_param('hiden', 2), "found 'hiden'; choose one of: .*hidden"),
        (put_param('hidden', 3), r"'layers.0.bias': expected .* \(3,\), found .* \(2,\)"),
        (put_param('hidden', '2'), "an integer of at least 1, found '2'"),
        (put_param('hidden', 2.5), r'an integer of at least 1, found 2\.5'),
        (put_param('hidden', -2), 'at least 1'),
        (put_param('hidden', 10**9), 'expected float32 of shape'),
        (put_param('hidden', 10**30), 'wrong type or value'),
        (put_param('layers', 3), 'expected float32 of shape'),
        (put_param('layers', 10**12), r'layers: expected at most 4 .*, found 1000000000000'),
        (put_param('accumulate', 'max'), 'accumulate: expected one of none, sum, mean'),
        (put_param('activation', '__import__'), 'activation: expected one of'),
        (put('feature', {'name': 'hidden_states'}), 'expected a feature specification'),
        (put('feature', None), 'expected a feature specification'),
        (put('feature', {**SPEC.to_dict(), 'dim': 4}), r'expected float32 of shape \(2, 4\)'),
        (put('feature', {**SPEC.to_dict(), 'dim': 10**12}), 'expected float32 of shape'),
        (put('feature', {**SPEC.to_dict(), 'pooling': [['token', 'median']]}), 'median'),
        (put('alpha', 0.2), r'calibrated alphas .*, found alpha 0\.2'),
        (put('alpha', 'small'), 'ValueError'),
        (put('alpha', None), 'TypeError'),
        (put('band', None), 'expected a band, found none.*fit the detector again'),
        (put('band', 3), 'TypeError'),
        (put('band', {}), "expected an entry 'kind'"),
        (put('band', {**make_band().meta(), 'n_calibration': -1}), 'least 0, found -1'),
        (put('provenance', 'unknown'), 'ValueError'),
    ],
)  # fmt: skip
def test_a_description_with_a_right_checksum_that_does_not_fit_is_refused(folder, change, match):
    rewrite(folder, change)
    with pytest.raises(DetectorFolderError, match=match) as caught:
        load_detector(folder)
    assert str(folder) in str(caught.value)


FIRST = 'detector.layers.0.weight'


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (
            lambda a: a.update({'detector.surplus': np.zeros(2, np.float32)}),
            "'surplus': expected no such array",
        ),
        (
            lambda a: a.update({'band.lower': np.zeros(2)}),
            "only arrays of the detector and its band, found .*'band.lower'",
        ),
        (
            lambda a: a.update({'readme': np.zeros(2)}),
            "only arrays of the detector and its band, found .*'readme'",
        ),
        (lambda a: a.pop(FIRST), r"'layers.0.weight': .* \(2, 3\), found no such array"),
        (
            lambda a: a.update({FIRST: a[FIRST].T.copy()}),
            r'\(2, 3\), found float32 of shape \(3, 2\)',
        ),
        (lambda a: a.update({FIRST: a[FIRST].astype(np.float64)}), 'float32 of .*, found float64'),
        (lambda a: a.update({FIRST: a[FIRST] * np.inf}), 'NaN or infinity'),
        (lambda a: a[FIRST].__setitem__((0, 0), np.nan), 'NaN or infinity'),
        (lambda a: a.pop('band.upper'), "expected an array 'upper'"),
        (lambda a: a.update({'band.upper': a['band.upper'][:1]}), r'shape \(2, T\)'),
        (lambda a: a.update({'band.upper': a['band.upper'] * np.nan}), 'found nan at'),
        (
            lambda a: a.update({'band.upper': a['band.upper'].astype('f4')}),
            'float64, found float32',
        ),
        (lambda a: a.update({'band.upper': a['band.upper'][::-1].copy()}), 'the band is damaged'),
        (lambda a: a.update({'band.alphas': np.array([0.1, 0.05])}), 'in ascending order'),
    ],
)
def test_arrays_with_a_right_checksum_that_do_not_fit_are_refused(folder, change, match):
    rewrite_arrays(folder, change)
    with pytest.raises(DetectorFolderError, match=match) as caught:
        load_detector(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    'weights',
    [
        b'',
        b'\x00' * 8,
        b'\xff' * 64,
        (1 << 40).to_bytes(8, 'little') + b'{}',
        (2).to_bytes(8, 'little') + b'[]',
        (2).to_bytes(8, 'little') + b'{}' + b'surplus',
        b'\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94',
    ],
    ids=repr,
)
def test_weights_with_a_right_checksum_that_are_no_safetensors_are_refused(folder, weights):
    rewrite(folder, weights=weights)
    with pytest.raises(DetectorFolderError, match='safetensors'):
        load_detector(folder)


def test_arrays_that_lie_about_their_place_are_refused(folder):
    for entry in (
        {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 4]},
        {'dtype': 'F32', 'shape': [2**62, 8], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [-6], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [6], 'data_offsets': [24, 0]},
        {'dtype': 'OBJECT', 'shape': [6], 'data_offsets': [0, 24]},
    ):
        header = json.dumps({'detector.a': entry}).encode()
        rewrite(folder, weights=len(header).to_bytes(8, 'little') + header + bytes(24))
        refused(folder, 'expected a safetensors file', WEIGHTS)


# --- a folder is saved completely or not at all


class Unfit:
    """What cannot be saved, by what is wrong with it."""

    @staticmethod
    def unfitted(path, **options):
        save_detector(path, calibrated(make_detector('safe_mlp')), **options)

    @staticmethod
    def another_width(path, **options):
        other = calibrated(feature=FeatureSpec('hidden_states', 4))
        save_detector(path, other, **options)

    @staticmethod
    def another_alpha(path, **options):
        save_detector(path, calibrated(alpha=0.2), **options)

    @staticmethod
    def no_json(path, **options):
        save_detector(path, calibrated(provenance={'when': object()}), **options)

    @staticmethod
    def nan(path, **options):
        save_detector(path, calibrated(provenance={'rate': float('nan')}), **options)

    @staticmethod
    def infinite_weights(path, **options):
        detector = make_mlp()
        detector.network_.layers[0].weight.data[0, 0] = np.inf
        save_detector(path, calibrated(detector), **options)


UNFIT = [name for name in vars(Unfit) if not name.startswith('_')]


@pytest.mark.parametrize('kind', UNFIT)
def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path, kind):
    path = tmp_path / 'new' / 'detector'
    with pytest.raises(DetectorFolderError) as caught:
        getattr(Unfit, kind)(path)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('kind', UNFIT)
def test_what_cannot_be_saved_does_not_touch_what_is_there(folder, tmp_path, kind):
    before = contents(folder)
    with pytest.raises(DetectorFolderError):
        getattr(Unfit, kind)(folder, overwrite=True)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_existing_folder_is_kept_unless_asked(folder, tmp_path):
    before = contents(folder)
    with pytest.raises(DetectorFolderError, match='expected a path that does not exist, found'):
        save(folder, seed=1)
    assert contents(folder) == before
    save(folder, seed=1, overwrite=True)
    assert contents(folder) != before
    assert load_detector(folder).detector.get_params()['seed'] == 1
    assert list(tmp_path.iterdir()) == [folder]


def test_a_damaged_detector_folder_can_be_overwritten(folder):
    (folder / DESCRIPTION).write_text('damaged')
    save(folder, overwrite=True)
    load_detector(folder)


def test_anything_but_a_detector_folder_is_never_overwritten(tmp_path):
    home = tmp_path / 'home'
    home.mkdir()
    (home / 'thesis.tex').write_text('five years')
    file = tmp_path / 'file'
    file.write_text('text')
    for path in (home, file):
        with pytest.raises(
            DetectorFolderError, match='expected a detector folder to overwrite'
        ) as caught:
            save(path, overwrite=True)
        assert str(path) in str(caught.value)
    assert (home / 'thesis.tex').read_text() == 'five years'
    assert file.read_text() == 'text'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'home']


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / 'detector').mkdir()
    load_detector(save(tmp_path / 'detector', overwrite=True))


def test_a_place_that_cannot_be_written_says_so_and_keeps_everything(folder, tmp_path):
    before = contents(folder)
    with pytest.raises(OSError, match=DESCRIPTION):
        save(folder / DESCRIPTION / 'below_a_file')
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_when_the_new_folder_cannot_be_moved_in_the_old_one_comes_back(
    folder, tmp_path, monkeypatch
):
    def fail(source, target):
        raise OSError('no more room')

    before, renames = contents(folder), iter([os.rename, fail, os.rename])
    monkeypatch.setattr(os, 'rename', lambda *paths: next(renames)(*paths))
    with pytest.raises(OSError, match='no more room'):
        save(folder, seed=1, overwrite=True)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


# --- the probability map


def with_map(**changes):
    fields = {
        'quantiles': (0.0, 0.1 + 0.2, 1.0),
        'intercept': -1 / 3,
        'score_slopes': (1.0, 0.0, 0.0, 0.0),
        'time_slopes': (1.0, 0.0, 0.0, 0.0, 0.0),
        'clock_intercept': -1.0,
        'clock_slopes': (1.0, 0.0, 0.0, 0.0, 0.0),
        'base_rate': 0.25,
        'median_steps': 7.0,
        'rollouts': 40,
        'failures': 10,
        'described': 'held-out rollouts',
    }
    return replace(calibrated(), probability=ProbabilityMap(**{**fields, **changes}))


def test_a_folder_gives_back_its_probability_map(tmp_path):
    folder = save_detector(tmp_path / 'd', with_map())
    loaded = load_detector(folder)
    assert loaded.probability == with_map().probability
    assert loaded.probability_at(0.3, 2) == with_map().probability_at(0.3, 2)
    assert describe(folder)['probability'] == {
        'described': 'held-out rollouts',
        'rollouts': 40,
        'failures': 10,
        'median_steps': 7.0,
    }


def test_a_folder_without_a_map_gives_no_probability(tmp_path):
    folder = save(tmp_path / 'd')
    assert 'probability' not in json.loads((folder / DESCRIPTION).read_text())
    loaded = load_detector(folder)
    assert loaded.probability is None
    assert np.isnan(loaded.probability_at(0.3, 2))
    assert 'probability' not in describe(folder)


@pytest.mark.parametrize('damaged', [[], 'text', {}, {'quantiles': [0, 1]}])
def test_a_damaged_map_is_refused_with_the_name_of_the_file(tmp_path, damaged):
    folder = save_detector(tmp_path / 'd', with_map())
    rewrite(folder, lambda content: content.update(probability=damaged))
    with pytest.raises(DetectorFolderError, match=r'detector\.json: .*fit the detector again'):
        load_detector(folder)
