# SPDX-License-Identifier: Apache-2.0
"""A verb that passes all its words on to another command line."""

from __future__ import annotations

import argparse


def take_all_words(parser: argparse.ArgumentParser) -> None:
    """Make a parser put all words into ``args.words``, also ``--help`` and other options.

    The other command line has its own parser, which explains and checks them.
    """
    # Without prefix characters, no word is an option.
    parser.prefix_chars = ''
    parser.add_argument('words', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
