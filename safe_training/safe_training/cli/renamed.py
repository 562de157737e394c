# SPDX-License-Identifier: Apache-2.0
"""Words of version 0.1 that have a new name.

There are no aliases: the error contains the new name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile

VERBS = {'calibration': '`compare-bands`, or `judge SET FOLDER --bands` for a detector folder'}
"""New words of each verb that has another name."""

_FITTING = {
    '--set': '--param',
    '--horizon': '--max-steps',
    '--calibration': '--calibrate-on',
    '--modulation adaptive': '--modulation max_deviation',
}
# Verbs that take the detector folder by its position. Version 0.1 had an option.
_WITH_FOLDER = ('judge', 'figures', 'overlay', 'report')
OPTIONS: Mapping[str, Mapping[str, str]] = {
    'convert': {'--rate': '--frequency'},
    'fit': {**_FITTING, '--seed': '--split'},
    'evaluate': {**_FITTING, '--seed': '--first-split', '--folder': '`judge SET FOLDER`'},
    **{verb: {'--folder': f'`{verb} SET FOLDER`'} for verb in _WITH_FOLDER},
    'compare-bands': {
        '--set': '--param',
        '--rate': '--adaptation-step',
        '--band adaptive': '--band max-deviation',
        '--folder': '`judge SET FOLDER --bands`',
    },
}
"""New words of each option, and of each value of an option, by verb."""


def renamed_verb(word: str) -> str | None:
    """Return the error text for a verb of version 0.1; None if the word is not such a verb."""
    return _message(f'the verb {word}', VERBS[word]) if word in VERBS else None


def renamed_option(verb: str, words: Sequence[str]) -> str | None:
    """Return the error text for the first option or value of version 0.1.

    None if all options are current.
    """
    options = takewhile(lambda word: word != '--', words)
    given = [part for word in options for part in _option_and_value(word)]
    pairs = [' '.join(pair) for pair in pairwise(given)]
    for old, new in OPTIONS.get(verb, {}).items():
        if old in given or old in pairs:
            return _message(old, new)
    return None


def _option_and_value(word: str) -> list[str]:
    return word.split('=', 1) if word.startswith('--') else [word]


def _message(old: str, new: str) -> str:
    if '`' in new and old.startswith('--'):
        return f'{old} is not an option of this verb since version 0.2; use {new}'
    return f'{old} was renamed in version 0.2; use {new}'
