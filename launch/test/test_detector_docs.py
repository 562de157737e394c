# SPDX-License-Identifier: Apache-2.0
"""The reference page of detectors is made from their docstrings, and is complete."""

import inspect
from pathlib import Path

import pytest

from safe_bringup import detector_docs
from safe_monitor_node.detectors import DETECTORS, ENTRIES

PAGE = Path(__file__).parents[2] / 'docs' / 'reference' / 'detectors.md'
every_detector = pytest.mark.parametrize('name', sorted(DETECTORS))


def test_the_page_of_detectors_is_not_stale(capsys):
    assert detector_docs.main([]) == 0
    written = PAGE.read_text()
    assert written == capsys.readouterr().out, (
        'make it again: python -m safe_bringup.detector_docs docs/reference/detectors.md'
    )


@every_detector
def test_every_parameter_of_a_detector_is_documented(name):
    documented = detector_docs.parameter_meanings(DETECTORS[name])
    for parameter in inspect.signature(DETECTORS[name]).parameters:
        values, meaning = documented[parameter]
        assert values
        assert meaning.endswith('.')


@every_detector
def test_nothing_is_documented_that_is_no_parameter(name):
    documented = detector_docs.parameter_meanings(DETECTORS[name])
    assert set(documented) == set(inspect.signature(DETECTORS[name]).parameters)


def test_every_group_is_explained():
    assert {entry.group for entry in ENTRIES.values()} == set(detector_docs.GROUPS)


def test_a_bar_cannot_break_the_table():
    assert detector_docs.table([('a', 'b'), ('|x|', 'y')]).splitlines()[-1] == r'| \|x\| | y |'
