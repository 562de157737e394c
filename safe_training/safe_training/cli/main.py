# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m safe_training VERB``.

Exit status: 0 on success; 1 on failure, with the reason on standard error; 2 on wrong usage.

Only the module of the requested verb is imported. Slow imports (PyTorch, scikit-learn, matplotlib)
happen only when the verb runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.cli.renamed import renamed_option, renamed_verb
from vla_feature_bridge.errors import SafeError


class Verb(NamedTuple):
    """Module of a verb, and a one-line description."""

    module: str
    summary: str


class VerbModule(Protocol):
    """Interface of the module of a verb."""

    DESCRIPTION: str
    EXAMPLE: str

    def add_arguments(self, parser: VerbParser) -> None:
        """Add the options of the verb, without slow imports."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the verb and return the exit status."""


VERBS = {
    'info': Verb('info', 'describe a dump, archive, rollout set or detector folder'),
    'convert': Verb('convert', 'convert any source to a rollout set or a rosbag2 recording'),
    'label': Verb('label', 'set the outcomes of episodes of a recording or a rollout set'),
    'fit': Verb('fit', 'fit a detector and calibrate its band'),
    'calibrate': Verb('calibrate', 'give new tasks thresholds from a few successes of each task'),
    'evaluate': Verb('evaluate', 'fit, calibrate and judge detectors over many task splits'),
    'judge': Verb('judge', 'judge a detector folder on a set: scores, alarms and tables'),
    'compare-bands': Verb(
        'compare_bands', 'compare promised and realised false-alarm rates of each kind of band'
    ),
    'figures': Verb('figures', 'draw feature maps, score curves, operating points, alarm times'),
    'overlay': Verb('overlay', "draw score, band and alarm into the rollouts' videos"),
    'report': Verb('report', 'write one self-contained HTML page about a detector on a set'),
    'sweep': Verb('sweep', 'fit and evaluate a grid of configurations'),
    'table': Verb('table', "make the paper's Table 1 and the robust table"),
}


_ANOTHER_DISK = 'free space on this disk, or write to another disk'
#: Advice for errors of the operating system.
_ADVICE = {
    errno.ENOENT: 'check the path',
    errno.ENOSPC: _ANOTHER_DISK,
    errno.EDQUOT: _ANOTHER_DISK,
    errno.EFBIG: 'allow larger files with: ulimit -f unlimited, or write to another disk',
    errno.EROFS: 'write to a folder on another disk, because this disk is read-only',
    errno.EACCES: 'change the permissions, or use another path',
    errno.EPERM: 'change the permissions, or use another path',
    errno.EMFILE: 'allow more open files with: ulimit -n 1024',
    errno.ENAMETOOLONG: 'use a shorter name',
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words[0] if words and words[0] in VERBS else ''
    program = f'safe_training {verb}'.strip()
    try:
        return _run(verb, words[1:]) if verb else _run_without_verb(words)
    except UsageError as error:
        return _failed(program, error, 2)
    except SystemExit as leaving:  # argparse has already printed the help or the error
        return int(leaving.code or 0)
    except SafeError as error:
        return _failed(program, error, 1)
    except OSError as error:
        return _failed(program, _file_error(error), 1)
    except KeyboardInterrupt:
        return _failed(program, 'interrupted', 1)


def _run(verb: str, words: Sequence[str]) -> int:
    if (message := renamed_option(verb, words)) is not None:
        raise UsageError(message)
    return verb_module(verb).run(parser_of(verb).parse(words))


def _run_without_verb(words: Sequence[str]) -> int:
    if words and (message := renamed_verb(words[0])) is not None:
        raise UsageError(message)
    parser_of_verbs().parse_args(words)
    return 0


def verb_module(verb: str) -> VerbModule:
    """Import the module of a verb."""
    return cast(VerbModule, importlib.import_module(f'safe_training.cli.{VERBS[verb].module}'))


def parser_of(verb: str) -> VerbParser:
    """Return the parser of one verb."""
    module = verb_module(verb)
    parser = VerbParser(
        prog=f'safe_training {verb}', description=module.DESCRIPTION, epilog=module.EXAMPLE
    )
    module.add_arguments(parser)
    return parser


def parser_of_verbs() -> argparse.ArgumentParser:
    """Return the parser for the names of the verbs. It does not parse their options."""
    verbs = '\n'.join(f'  {name:<15}{verb.summary}' for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog='safe_training',
        usage='safe_training VERB ...',
        description=f'Build and judge failure detectors for robot policies.\n\nverbs:\n{verbs}',
        epilog='`python -m safe_training VERB --help` explains a verb.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('verb', metavar='VERB', choices=tuple(VERBS), help=argparse.SUPPRESS)
    return parser


def _file_error(error: OSError) -> str:
    """Return the error of the operating system as `FILE: reason; advice`."""
    if not error.errno:
        return str(error)
    # The texts of other libraries contain the number and the reason twice.
    known = error.errno in _ADVICE
    reason = os.strerror(error.errno) if known else error.strerror or str(error)
    where = f'{error.filename}: ' if error.filename else ''
    return f'{where}{reason}' + (f'; {_ADVICE[error.errno]}' if known else '')


def _failed(program: str, reason: object, status: int) -> int:
    """Print the reason of a failure on standard error. Return the exit status."""
    print(f'{program}: {reason}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
