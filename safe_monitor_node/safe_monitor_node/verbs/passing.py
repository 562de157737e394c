# SPDX-License-Identifier: Apache-2.0
"""A verb that passes all its arguments to another command line."""

from __future__ import annotations

import argparse


def take_all_words(parser: argparse.ArgumentParser) -> None:
    """Make a parser store all arguments in ``args.words``, also ``--help`` and other options.

    The other command line has its own parser, which explains and checks the options.
    """
    # Without prefix characters, no argument is parsed as an option.
    parser.prefix_chars = ''
    parser.add_argument('words', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
