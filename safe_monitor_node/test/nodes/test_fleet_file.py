# SPDX-License-Identifier: Apache-2.0
"""The file that lists the robots of a fleet: what it gives, and what it refuses, and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safe_monitor_node.nodes.fleet_file import FleetFileError, Robot, read_robots

TOP = Path(__file__).parents[3]
EXAMPLE = TOP / 'launch/fleet/robots.yaml'
PAGE = TOP / 'docs/how-to/many_robots.md'


@pytest.fixture
def read(tmp_path):
    def reader(text, within='/'):
        file = tmp_path / 'robots.yaml'
        file.write_text(text, encoding='utf-8')
        return read_robots(str(file), within)

    return reader


def test_parameters_of_a_robot_override_the_common_ones(read):
    text = """
parameters:
  detector_folder: /d
  alpha: 0.2
  alarm_policy: ['WARNING: SLOW']
robots:
  - namespace: arm_left
  - namespace: /lab/arm
    parameters: {alpha: 0, use_sim_time: true, end_grace: 1}
"""
    common = {'detector_folder': '/d', 'alpha': 0.2, 'alarm_policy': ['WARNING: SLOW']}
    left, other = read(text, '/hall')
    assert left == Robot('/hall/arm_left', common)
    assert other == Robot(
        '/lab/arm', {**common, 'alpha': 0.0, 'use_sim_time': True, 'end_grace': 1.0}
    )
    assert type(other.parameters['alpha']) is float, 'a whole number is a double where one is due'


def test_the_example_can_be_used():
    left, right = read_robots(str(EXAMPLE))
    assert left == Robot('/arm_left', {'detector_folder': 'signal_probe'})
    assert right.parameters == {'detector_folder': 'signal_probe', 'alarm_advice': 'slow'}


def test_the_page_shows_a_file_that_can_be_used_and_a_true_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    (block,) = re.findall(r'^```yaml\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    Path('my_robots.yaml').write_text(block)
    left, right = read_robots('my_robots.yaml')
    assert left.parameters == {'detector_folder': '/home/lab/detectors/lstm'}
    assert right.parameters['alarm_advice'] == 'slow'
    Path('my_robots.yaml').write_text(block.replace('alarm_advice', 'alarm_advise'))
    with pytest.raises(FleetFileError) as caught:
        read_robots('my_robots.yaml')
    quoted = ' '.join(text.replace('\n> ', ' ').split())
    assert f'`fleet: {caught.value}`' in quoted


ROBOT = 'robots: [{namespace: a}]'
WRONG = {
    'no robots': ('parameters: {}', 'robots: expected a list of one or more robots, found nothing'),
    'empty list': ('robots: []', 'robots: expected a list of one or more robots'),
    'a text': ('robots', "expected the keys parameters and robots, found 'robots'"),
    'nothing': ('', 'expected the keys parameters and robots, found nothing'),
    'other key': ('robot: 1', "found the key 'robot'"),
    'a name alone': ('robots: [arm]', r'robots\[0\]: expected the keys namespace and parameters'),
    'key of a robot': (
        'robots: [{namespace: a, alpha: 0.1}]',
        r"robots\[0\]: .*found the key 'alpha'; write parameters of the monitor below",
    ),
    'no namespace': ('robots: [{parameters: {}}]', r'robots\[0\]: namespace: expected a namespace'),
    'a number': ('robots: [{namespace: 7}]', 'found 7'),
    'a digit': ('robots: [{namespace: 7a}]', "found '7a'"),
    'a space': ('robots: [{namespace: arm 1}]', "found 'arm 1'"),
    'a hole': ('robots: [{namespace: a//b}]', "found 'a//b'"),
    'a long name': (
        f'robots: [{{namespace: {"a" * 150}}}]',
        r'robots\[0\]: namespace: expected at most 150 characters, .* found 151 characters',
    ),
    'root': ('robots: [{namespace: /}]', "found '/'"),
    'twice': (
        'robots: [{namespace: a}, {namespace: b}, {namespace: /a}]',
        r"robots\[2\]: expected a namespace of its own, found '/a', which robots\[0\] has",
    ),
    'one file for two': (
        'parameters: {adaptation_file: /f}\nrobots: [{namespace: a}, {namespace: b}]',
        r"robots\[1\]: expected an adaptation_file of its own, found '/f'",
    ),
    'one file by two paths': (
        'robots: [{namespace: a, parameters: {adaptation_file: /f}},'
        ' {namespace: b, parameters: {adaptation_file: /x/../f}}]',
        r"robots\[1\]: expected an adaptation_file of its own, found '/f'",
    ),
    'key twice': (
        'robots:\n- namespace: a\n  parameters:\n    alpha: 0.1\n    alpha: 0.2',
        "line 5: expected each key once, found 'alpha' a second time",
    ),
    'misspelt': (
        'robots: [{namespace: a, parameters: {alhpa: 0.1}}]',
        r"robots\[0\] \(a\): parameters: .* found 'alhpa'; the nearest name is 'alpha'",
    ),
    'unknown': (f'parameters: {{xyzzy: 1}}\n{ROBOT}', "found 'xyzzy'; see docs/reference"),
    'old name': (f'parameters: {{adaptation_rate: 0.1}}\n{ROBOT}', "write 'adaptation_step'"),
    'threads': (f'parameters: {{threads: 2}}\n{ROBOT}', 'set the parameter threads of the fleet'),
    'type': (
        f'parameters: {{alpha: high}}\n{ROBOT}',
        "parameters: alpha: expected a value of type double .*, found 'high'; the parameter means",
    ),
    'a flag': (f'parameters: {{alarm_k: true}}\n{ROBOT}', 'alarm_k: expected a value of type int'),
    'range': (f'parameters: {{alpha: 1.5}}\n{ROBOT}', r'type double \(0 to 0.99\), found 1.5'),
    'NaN': (f'parameters: {{alpha: .nan}}\n{ROBOT}', 'found nan'),
    'choice': (f'parameters: {{latch: ever}}\n{ROBOT}', "'episode', 'reset'.*found 'ever'"),
    'empty text list': (f'parameters: {{more_detectors: []}}\n{ROBOT}', r'found \[\]'),
    'list': (f'parameters: [alpha]\n{ROBOT}', 'expected names and values of parameters'),
    'broken': ('robots: [', 'expected YAML, found while parsing'),
    'a list as a key': ('? [a, b]\n: c', 'expected YAML, found .*unhashable key'),
    'no such day': ('robots: [{namespace: 2026-13-45}]', 'expected YAML, found month must be'),
    'too many digits': (f'robots: {"9" * 5000}', 'expected YAML, found .*4300'),
    'too large': (
        f'parameters: {{alpha: {"9" * 400}}}\n{ROBOT}',
        'alpha: expected a value of type',
    ),
    'itself': ('robots: &a [*a]', r'robots\[0\]: expected the keys namespace'),
    'a tag': ('robots: !!python/object:os.system {}', 'expected YAML, found could not determine'),
}


@pytest.mark.parametrize(('text', 'message'), WRONG.values(), ids=WRONG)
def test_what_no_monitor_could_use_is_refused(read, text, message):
    with pytest.raises(FleetFileError, match=message) as caught:
        read(text)
    assert 'robots.yaml' in str(caught.value)
    assert caught.value.advice


@pytest.mark.timeout(20)
def test_aliases_of_aliases_take_no_time(read):
    last = '[x, x, x, x, x, x, x, x, x]'
    lines = [f'    - &a0 {last}']
    lines += [f'    - &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' for n in range(1, 12)]
    with pytest.raises(FleetFileError, match=r'robots\[0\]: namespace: expected .*, found \['):
        read('\n'.join(['robots:', '- namespace:', *lines]))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(FleetFileError, match='parameter robots_file: expected a file'):
        read_robots('')
    with pytest.raises(FleetFileError, match=r'none\.yaml: .*found No such file'):
        read_robots(str(tmp_path / 'none.yaml'))
    with pytest.raises(FleetFileError, match='found Is a directory'):
        read_robots(str(tmp_path))
    binary = tmp_path / 'binary.yaml'
    binary.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(FleetFileError, match='expected UTF-8 text'):
        read_robots(str(binary))
    binary.write_bytes(b'#' * 1_000_001)
    with pytest.raises(FleetFileError, match='at most 1000000 bytes'):
        read_robots(str(binary))
