# SPDX-License-Identifier: Apache-2.0
"""The reference page of presets is made from their files and their schema, and is complete."""

import re
from dataclasses import fields
from pathlib import Path

import yaml

from safe_bringup import preset_docs
from vla_feature_bridge.taps import Preset, load_preset, preset_names

TOP = Path(__file__).parents[2]
TAPS = TOP / 'vla_feature_bridge' / 'vla_feature_bridge' / 'taps'


def test_the_page_of_presets_is_not_stale(capsys):
    assert preset_docs.main([]) == 0
    written = (TOP / 'docs' / 'reference' / 'presets.md').read_text()
    assert written == capsys.readouterr().out, (
        'make it again: python -m safe_bringup.preset_docs docs/reference/presets.md'
    )


def test_the_page_says_what_each_preset_does():
    page = preset_docs.page()
    for name in preset_names():
        preset = load_preset(name)
        (row,) = re.findall(rf'^\| `{name}`: .*$', page, flags=re.MULTILINE)
        for part in (preset.title, preset.module, preset.ends, str(preset.spec)):
            assert part in row


def test_the_page_has_every_key_of_a_preset():
    page = preset_docs.schema_table()
    for entry in fields(Preset):
        (row,) = re.findall(rf'^\| `{entry.name}` \|.*$', page, flags=re.MULTILINE)
        assert entry.metadata['doc'].replace('|', '\\|') in row


def test_the_preset_of_the_page_is_one(tmp_path):
    (block,) = re.findall(r'```yaml\n(.*?)```', preset_docs.SCHEMA, re.DOTALL)
    file = tmp_path / 'mine.yaml'
    file.write_text(block)
    preset = load_preset(file)
    assert preset.name == yaml.safe_load(block)['name']
    assert str(preset.spec) == 'pre_velocity[horizon=mean,denoise=mean]'


def test_every_kind_of_problem_that_the_code_notes_is_explained():
    files = [*TAPS.glob('*.py'), TAPS.parent / 'deferred.py']
    sources = '\n'.join(file.read_text() for file in files)
    noted = set(re.findall(r"(?:\.note|[._]report)\(\s*'(\w+)'", sources))
    assert len(noted) > 10
    assert noted == {kind for kind, _, _ in preset_docs.PROBLEM_KINDS}
