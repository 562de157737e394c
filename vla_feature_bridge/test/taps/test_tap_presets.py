# SPDX-License-Identifier: Apache-2.0
"""The presets of the package, and what is refused in a file of a user."""

import sys
from dataclasses import fields

import pytest
import yaml
from flow_policy import FlowPolicy
from torch import nn

from vla_feature_bridge.taps import Preset, TapError, find_preset, load_preset, preset_names
from vla_feature_bridge.taps.preset import default_of

every_preset = pytest.mark.parametrize('name', preset_names())


def test_the_presets_are_those_that_the_documentation_promises():
    assert preset_names() == [
        'black_box',
        'groot_n1_6',
        'lerobot_act',
        'lerobot_diffusion',
        'lerobot_groot',
        'lerobot_pi0',
        'lerobot_pi05',
        'lerobot_pi0_fast',
        'lerobot_smolvla',
        'openpi_pi0',
        'openpi_pi05',
        'openvla',
        'openvla_generate',
    ]


@every_preset
def test_a_preset_has_the_name_of_its_file(name):
    preset = load_preset(name)
    assert preset.name == name
    assert preset.title
    assert preset.spec.pooled, 'the default pooling gives one vector'


@every_preset
def test_a_preset_that_is_written_and_read_is_the_same(name, tmp_path):
    preset = load_preset(name)
    values = {}
    for entry in fields(preset):
        value = getattr(preset, entry.name)
        if value != default_of(entry.name):
            if entry.name == 'pooling':
                value = [f'{axis}={command}' for axis, command in value]
            values[entry.name] = list(value) if isinstance(value, tuple) else value
    file = tmp_path / 'copy.yml'
    file.write_text(yaml.safe_dump(values))
    assert load_preset(file) == load_preset(str(file)) == preset


def text_of(**changes):
    values = {
        'name': 'mine',
        'module': 'model.head',
        'calls': 'config.steps',
        'axes': ['denoise', 'horizon'],
        'ends': 'infer',
        **changes,
    }
    return yaml.safe_dump({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (text_of(modul='x'), "found 'modul'; nearest: module"),
        (text_of(Calls=5), "found 'Calls'; nearest: calls"),
        ('{name: a, 5: b}', "found '5'|found 5"),
        (text_of(name=None), 'the key name'),
        (text_of(name=''), 'name: expected a name'),
        (text_of(name=5), 'name: expected a text of one line, found 5'),
        (text_of(title='two\nlines'), 'title: expected a text of one line'),
        (text_of(module='model..head'), 'module: expected a path of attributes'),
        (text_of(module='model[0]'), 'module: expected a path'),
        (text_of(calls=0), 'calls: expected a number from 1'),
        (text_of(calls=True), 'calls: expected a number from 1'),
        (text_of(calls=2.5), 'calls: expected a number from 1'),
        (text_of(calls='__import__("os")'), 'calls: expected a number'),
        (text_of(keep='[:, 0]'), r'keep: expected all or \[:, -1\] or'),
        (text_of(keep='x.mean(1)'), 'keep: expected all or'),
        (text_of(axes='denoise'), 'axes: expected a list of names'),
        (text_of(axes=['a', 'a']), 'axes: expected different names'),
        (text_of(axes=['a b']), 'axes: expected a list of names'),
        (text_of(axes=[]), 'axes: expected the axis of the calls'),
        (text_of(keep='[:, -1]'), 'axes: expected the axis of the calls and 0 axes of positions'),
        (text_of(keep='channels_first', axes=['a']), 'and 1 axes of positions'),
        (text_of(keep='[:, -action_horizon:]'), 'action_horizon: expected a source'),
        (text_of(action_horizon=5), 'action_horizon: expected a source with keep'),
        (text_of(pooling='horizon=mean'), 'pooling: expected a list of AXIS=COMMAND'),
        (text_of(pooling=['horizon']), 'expected AXIS=COMMAND'),
        (text_of(pooling=['horizon=mean']), 'names each of the axes'),
        (text_of(pooling=['horizon=mean', 'denoise=max']), "found 'max'"),
        (text_of(actions=['horizon', 'batch']), 'actions: expected the last names of'),
        (text_of(actions=['action', 'horizon', 'batch', 'x']), 'actions: expected the last names'),
        (text_of(ends='calls', actions=['action']), 'actions: expected none'),
        (text_of(calls='actions'), r'actions: expected axes'),
        (text_of(calls='tokens'), 'token_ids: expected a source'),
        (text_of(calls=['tokens', 5], token_ids='returned'), 'calls: expected a number or a path'),
        (text_of(calls='tokens', token_ids='returned', ends='calls'), 'calls: expected a number'),
        (text_of(token_ids=['returned', 'model.sample']), 'token_ids: expected `returned` alone'),
        (text_of(end_token='|'), 'end_token: expected also tokenizer and token_ids'),
        (text_of(token_logits='yes'), 'token_logits: expected true or false'),
        (text_of(vocabulary='slow'), 'vocabulary: expected all or fast'),
        (text_of(verified='yes'), 'verified: expected run or read'),
        (text_of(argument=-1), 'argument: expected a position from 0'),
        (text_of(argument='a.b'), 'argument: expected a position from 0'),
        (text_of(versions='1.0'), 'versions: expected a list of texts'),
        (text_of(module=None), 'axes: expected none without a module'),
        (text_of(module=None, axes=None, ends=None), 'ends: expected a method'),
        ('[1, 2]', 'expected keys and values of a preset, found list'),
        ('', 'expected keys and values of a preset, found NoneType'),
        ('name: [', 'expected YAML, found text that is not valid'),
        ('!!python/object/apply:os.system [true]', 'expected YAML, found text that is not valid'),
        ('&a [*a]', 'expected keys and values'),
        ('name: ' + '[' * 5000, 'expected YAML|expected a text'),
        ('name: ' + 'x' * 70000, 'at most 65536 bytes, found a larger file'),
        ('name: \x01', 'expected YAML'),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, message, tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(text)
    with pytest.raises(TapError, match=message) as caught:
        load_preset(file)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_bytes(b'\xff\xfe name')
    with pytest.raises(TapError, match='expected UTF-8 text'):
        load_preset(file)
    folder = tmp_path / 'folder.yaml'
    folder.mkdir()
    with pytest.raises(TapError, match='expected a readable file, found Is a directory'):
        load_preset(folder)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(TapError, match=r'nearest: lerobot_smolvla'):
        load_preset('smolvla')
    with pytest.raises(TapError, match=r'one of black_box, .*; nearest: openvla'):
        load_preset('openvlaa')


def test_every_field_of_a_preset_is_described():
    for entry in fields(Preset):
        assert entry.metadata['kind']
        assert entry.metadata['doc'].endswith('.')


def test_a_preset_is_found_by_the_class_of_the_policy_or_of_its_base():
    class PI0Policy(nn.Module):
        pass

    class MyPolicy(PI0Policy):
        pass

    assert find_preset(MyPolicy()).name == 'lerobot_pi0'
    with pytest.raises(TapError, match='FlowPolicy: expected a class that a preset names'):
        find_preset(FlowPolicy())


def test_without_pyyaml_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'yaml', None)
    with pytest.raises(TapError, match=r'expected the package PyYAML.*pip install'):
        load_preset('openvla')
