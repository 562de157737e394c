# SPDX-License-Identifier: Apache-2.0
"""A rollout set, a detector that was fitted on it, and a way to run commands."""

import pytest
from small_sets import TINY, make_set

from safe_training.cli.main import main


@pytest.fixture(scope='module')
def rollouts(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp('sets') / 'rollouts')


@pytest.fixture(scope='module')
def folder(rollouts, tmp_path_factory):
    out = tmp_path_factory.mktemp('detectors') / 'mlp'
    arguments = ('fit', rollouts, '--detector', 'safe_mlp', '--out', out, '--alpha', 0.3, *TINY)
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture
def run(capsys):
    """Run one command; returns exit status, standard output and standard error."""

    def ran(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert 'Traceback' not in said.err
        return status, said.out, said.err

    return ran
