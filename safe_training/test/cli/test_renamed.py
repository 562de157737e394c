# SPDX-License-Identifier: Apache-2.0
"""Words of version 0.1: each is refused with status 2, and the error names the new word."""

import re

import pytest

from safe_training.cli import renamed
from safe_training.cli.main import VERBS, main, parser_of

OLD = [(verb, old, new) for verb, words in renamed.OPTIONS.items() for old, new in words.items()]


@pytest.mark.parametrize(('verb', 'old', 'new'), OLD, ids=lambda word: word.replace(' ', '='))
@pytest.mark.parametrize('form', ['{0} {1}', '{0}={1}'])
def test_an_old_option_names_the_new_one(verb, old, new, form, capsys):
    option, _, value = old.partition(' ')
    words = form.format(option, value or '1').split(' ')
    assert main([verb, 'set', *words]) == 2
    said = capsys.readouterr()
    assert said.out == ''
    if new.startswith('--'):
        what = 'was renamed in version 0.2'
    else:
        what = 'is not an option of this verb since version 0.2'
    assert said.err == f'safe_training {verb}: {old} {what}; use {new}\n'


@pytest.mark.parametrize('verb', ['judge', 'figures', 'overlay', 'report'])
def test_the_folder_has_the_position_after_the_set(verb, capsys):
    assert main([verb, 'set', '--folder', 'detector']) == 2
    assert f'use `{verb} SET FOLDER`' in capsys.readouterr().err
    positions = [action.dest for action in parser_of(verb)._get_positional_actions()]
    assert positions == ['set', 'folder']


@pytest.mark.parametrize(('old', 'new'), renamed.VERBS.items())
def test_an_old_verb_names_the_new_one(old, new, capsys):
    assert main([old, 'set', '--detector', 'clock']) == 2
    assert f'{old} was renamed in version 0.2; use {new}' in capsys.readouterr().err
    assert old not in VERBS


@pytest.mark.parametrize(('verb', 'old', 'new'), OLD, ids=lambda word: word.replace(' ', '='))
def test_the_new_word_is_there_and_the_old_one_is_not(verb, old, new):
    if new.startswith('--'):
        option, _, value = new.partition(' ')
        action = parser_of(verb)._option_string_actions[option]
        assert not value or value in action.choices
    else:
        found = re.match(r'`([a-z]+) SET FOLDER', new)
        assert found and found[1] in VERBS
    option, _, value = old.partition(' ')
    there = parser_of(verb)._option_string_actions
    assert value not in there[option].choices if value else option not in there


def test_words_behind_two_dashes_and_values_are_no_options(capsys):
    assert renamed.renamed_option('fit', ['set', '--', '--seed']) is None
    assert renamed.renamed_option('fit', ['set', '--out', 'adaptive']) is None
    assert renamed.renamed_option('figures', ['set', '--seed', '1']) is None
