# SPDX-License-Identifier: Apache-2.0
"""Parameters of detectors on the command line."""

import pytest

from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError


@pytest.mark.parametrize(
    ('settings', 'params'),
    [
        ([], {'safe_mlp': {}, 'clock': {}}),
        (['epochs=7'], {'safe_mlp': {'epochs': 7}, 'clock': {}}),
        (['safe_mlp.epochs=7'], {'safe_mlp': {'epochs': 7}, 'clock': {}}),
        (['epochs=7', 'epochs=9'], {'safe_mlp': {'epochs': 9}, 'clock': {}}),
        (['lambda_reg=1'], {'safe_mlp': {'lambda_reg': 1.0}, 'clock': {}}),
        (['lambda_reg=1e-3'], {'safe_mlp': {'lambda_reg': 1e-3}, 'clock': {}}),
        (['time_weighting=true'], {'safe_mlp': {'time_weighting': True}, 'clock': {}}),
        (['accumulate=sum'], {'safe_mlp': {'accumulate': 'sum'}, 'clock': {}}),
        (['accumulate="sum"'], {'safe_mlp': {'accumulate': 'sum'}, 'clock': {}}),
        (['threshold=3'], {'safe_mlp': {'threshold': 3.0}, 'clock': {}}),
        (['threshold=null'], {'safe_mlp': {'threshold': None}, 'clock': {}}),
    ],
    ids=str,
)
def test_settings_are_read(settings, params):
    found = detector_params(['safe_mlp', 'clock'], settings)
    assert found == params
    for name, value in found['safe_mlp'].items():
        assert type(value) is type(params['safe_mlp'][name])


def test_a_setting_goes_to_every_detector_that_has_it_or_to_the_one_it_names():
    names = ['safe_mlp', 'safe_lstm']
    found = detector_params(names, ['hidden=8', 'safe_lstm.hidden=16', 'history=3'])
    assert found == {'safe_mlp': {'hidden': 8}, 'safe_lstm': {'hidden': 16, 'history': 3}}


@pytest.mark.parametrize(
    'setting',
    [
        'epochs=1.5',
        'epochs=true',
        'epochs=',
        'epochs=null',
        'epochs=[1]',
        'epochs=' + '1' * 5000,
        'lambda_reg=true',
        'lambda_reg=small',
        'lambda_reg=NaN',
        'lambda_reg=Infinity',
        'lambda_reg=1' + '0' * 400,
        'threshold=high',
        'threshold=true',
        'threshold=NaN',
        'time_weighting=1',
        'time_weighting=yes',
        'accumulate=1',
        'accumulate=null',
        'accumulate={}',
    ],
    ids=lambda setting: setting[:20],
)
def test_a_value_of_another_type_is_refused(setting):
    with pytest.raises(UsageError, match='expected a value of type'):
        detector_params(['safe_mlp'], [setting])


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('hidden', 'expected NAME=VALUE'),
        ('=3', "found ''"),
        ('hiden=3', 'expected a parameter of safe_mlp (accumulate, hidden, '),
        ('safe_lstm.hidden=3', 'expected a parameter of safe_mlp'),
        ('sage_mlp.hidden=3', "a detector of this command: safe_mlp, found 'sage_mlp'"),
        ('hidden=many', "expected a value of type int, such as 256, found 'many'"),
    ],
)
def test_a_wrong_setting_is_status_2_before_anything_is_read(
    run, rollouts, setting, message, tmp_path
):
    arguments = ('--detector', 'safe_mlp', '--param', setting)
    status, said, errors = run('fit', rollouts, *arguments, '--out', tmp_path / 'detector')
    assert (status, said) == (2, '')
    assert message in errors
    assert list(tmp_path.iterdir()) == []
