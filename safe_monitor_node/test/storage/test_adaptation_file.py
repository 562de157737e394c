# SPDX-License-Identifier: Apache-2.0
"""The updates of a monitor on disk: they are restored, or refused with advice."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from band_factory import constant_band

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.storage.adaptation_file import (
    AdaptationFile,
    AdaptationFileError,
    read_adaptation,
    write_adaptation,
)
from safe_monitor_node.storage.checksum import with_checksum
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.pooling import FeatureSpec

BAND = constant_band(range(30), (0.1, 0.2), 4)


def make_loaded(sha256='ab' * 32):
    detector = make_detector('action_norm')
    detector.load_state({}, 4)
    return CalibratedDetector(detector, FeatureSpec('states', 4), BAND, 0.1, {}, sha256)


def updated(count=20, alpha=0.1):
    adaptation = AdaptiveBand(BAND, alpha, 0.02)
    for value in range(count):
        adaptation.observe('', 2.0 * value + 1 / 3, value > 14)
    return adaptation


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'updates.json'


def test_what_is_written_is_read_to_the_last_bit(path):
    first, second = updated(), updated(0)
    write_adaptation(path, make_loaded(), first)
    read_adaptation(path, make_loaded(), second)
    assert second.state() == first.state()
    np.testing.assert_array_equal(second.thresholds()[0].upper, first.thresholds()[0].upper)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_the_checksum_that_the_file_belongs_to_is_that_of_the_folder(tmp_path, path):
    folder = make_loaded().save(tmp_path / 'detector')
    again = load_detector(folder)
    description = json.loads((folder / 'detector.json').read_text())
    assert again.weights_sha256 == description['weights_sha256']
    write_adaptation(path, again, updated())
    read_adaptation(path, load_detector(folder), updated(0))


@pytest.mark.parametrize(
    ('loaded', 'alpha', 'message'),
    [
        (make_loaded('cd' * 32), 0.1, 'the weights_sha256 cdcd.* of the detector folder'),
        (make_loaded(), 0.2, r'the alpha 0\.2 of the monitor, found the alpha 0\.1'),
    ],
)
def test_updates_made_elsewhere_are_refused(path, loaded, alpha, message):
    write_adaptation(path, make_loaded(), updated())
    adaptation = updated(0, alpha)
    with pytest.raises(AdaptationFileError, match=message + '.*move the file away') as caught:
        read_adaptation(path, loaded, adaptation)
    assert str(path) in str(caught.value)
    assert adaptation.of('').successes == 0


def test_one_changed_byte_anywhere_is_found(path):
    write_adaptation(path, make_loaded(), updated(3))
    intact = path.read_bytes()
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(AdaptationFileError, match=r'updates\.json'):
            read_adaptation(path, make_loaded(), updated(0))
    path.write_bytes(intact[:-5])
    with pytest.raises(AdaptationFileError, match=r'not valid JSON.*move the file away'):
        read_adaptation(path, make_loaded(), updated(0))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'not valid JSON'),
        ('[]', "expected the format 'safe_adaptation', found 'list'"),
        ('{"format": "safe_detector"}', "found 'safe_detector'; give another"),
        (
            '{"format": "safe_adaptation", "version": 3}',
            'expected version 2 of the format, found 3',
        ),
        ('[' * 100000, 'not valid JSON'),
    ],
)
def test_other_files_are_refused(path, content, message):
    path.write_text(content)
    with pytest.raises(AdaptationFileError, match=message):
        read_adaptation(path, make_loaded(), updated(0))


@pytest.mark.parametrize(
    'bands',
    [
        None,
        3,
        [3],
        [],
        [{'task': 'pour'}],
        [{'task': ''}],
        [{'task': '', 'level': 'x', 'successes': 1, 'false_alarms': 0, 'observed': []}],
        [{'task': '', 'level': 0.1, 'successes': 0, 'false_alarms': 1, 'observed': []}],
        [{'task': '', 'level': 0.1, 'successes': 1, 'false_alarms': 0, 'observed': [None]}],
        [{'task': '', 'level': 0.1, 'successes': 1, 'false_alarms': 0, 'observed': [10**400]}],
    ],
)
def test_nonsense_with_a_right_checksum_is_refused(path, bands):
    write_adaptation(path, make_loaded(), updated())
    content = {**json.loads(path.read_text()), 'bands': bands}
    content.pop('sha256')
    path.write_text(with_checksum(content))
    with pytest.raises(AdaptationFileError, match=r'updates\.json: .*move the file away'):
        read_adaptation(path, make_loaded(), updated(0))


def test_a_file_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(AdaptationFileError, match=r'absent/updates\.json: .*existing folder'):
        write_adaptation(tmp_path / 'absent' / 'updates.json', make_loaded(), updated())
    (tmp_path / 'folder').mkdir()
    with pytest.raises(AdaptationFileError, match='cannot be written'):
        write_adaptation(tmp_path / 'folder', make_loaded(), updated())
    assert [found.name for found in tmp_path.iterdir()] == ['folder']
    with pytest.raises(AdaptationFileError, match=r'folder: expected .* cannot be read'):
        AdaptationFile(tmp_path / 'folder', make_loaded(), updated(0))


def test_the_file_follows_the_updates_and_costs_nothing_in_between(path):
    loaded, adaptation = make_loaded(), updated(0)
    file = AdaptationFile(path, loaded, adaptation)
    assert path.exists(), 'whether it can be written shows at once'
    before = path.stat().st_mtime_ns
    file.keep()
    assert path.stat().st_mtime_ns == before
    adaptation.observe('', 3.0, True)
    file.keep()
    second = updated(0)
    AdaptationFile(path, loaded, second)
    assert second.state() == adaptation.state()
    assert second.of('').successes == 1


def test_a_failed_write_is_tried_again(path):
    adaptation = updated(0)
    file = AdaptationFile(path, make_loaded(), adaptation)
    adaptation.observe('', 3.0, True)
    path.unlink()
    path.mkdir()
    with pytest.raises(AdaptationFileError):
        file.keep()
    path.rmdir()
    file.keep()
    assert path.is_file()


def test_another_detector_leaves_the_file_alone_and_the_same_one_starts_it_anew(path):
    loaded, adaptation = make_loaded(), updated(0)
    file = AdaptationFile(path, loaded, adaptation)
    adaptation.observe('', 3.0, True)
    file.keep()
    other = dataclasses.replace(loaded, weights_sha256='cd' * 32)
    assert not file.belongs_to(other, updated(0))
    assert not file.belongs_to(loaded, updated(0, alpha=0.2))
    again = updated(0)
    assert file.belongs_to(make_loaded(), again)
    assert not file.keeps(again)
    file.start_anew(again)
    file.keep()
    assert file.keeps(again)
    assert json.loads(path.read_text())['bands'][0]['successes'] == 0
