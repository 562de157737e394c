# SPDX-License-Identifier: Apache-2.0
"""Settings of the tap of LeRobot's programs: variables of the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.wire.address import default_address, parse_address

#: Programs that only train: their policies do not move a robot.
_TRAINING = ('lerobot-train', 'lerobot_train.py')


@dataclass(frozen=True)
class LerobotSettings:
    """The settings in the environment variables.

    Attributes
    ----------
    enabled : bool
        ``SAFE_TAP``: 0 attaches no tap, 1 attaches a tap in every program. Default: a tap in every
        program except ``lerobot-train``.
    address : str
        ``SAFE_BRIDGE``: address of the bridge; default: the bridge of this user on this machine.
    source : str
        ``SAFE_SOURCE``: name of this process at the bridge.
    task : str
        ``SAFE_TASK``: name of the task of all episodes; default: the instruction.
    preset : str
        ``SAFE_PRESET``: ``auto``, the name of a preset or the path of its YAML file.
    exec_horizon : int or None
        ``SAFE_EXEC_HORIZON``: number of actions that are executed before the next inference;
        default: the number in the configuration of the policy.
    wait : float
        ``SAFE_WAIT``: how long a program waits for a monitor when it has loaded a policy [s];
        default: 5. With 0, the program does not wait.
    """

    enabled: bool = True
    address: str = ''
    source: str = ''
    task: str = ''
    preset: str = 'auto'
    exec_horizon: int | None = None
    wait: float = 5.0

    @classmethod
    def read(
        cls, environment: Mapping[str, str] | None = None, program: str | None = None
    ) -> LerobotSettings:
        """Return the settings of the environment of this process.

        Parameters
        ----------
        environment : mapping, optional
            Instead of ``os.environ``.
        program : str, optional
            Path of the program instead of ``sys.argv[0]``.

        Raises
        ------
        SafeError
            A variable has a wrong value.
        """
        given = os.environ if environment is None else environment
        program = Path(sys.argv[0] if program is None else program).name
        switch = given.get('SAFE_TAP', '')
        if switch not in ('', '0', '1'):
            raise _wrong('SAFE_TAP', ('0', '1', 'no value'), switch)
        horizon = given.get('SAFE_EXEC_HORIZON', '')
        if horizon and not (horizon.isdecimal() and int(horizon) > 0):
            raise _wrong('SAFE_EXEC_HORIZON', ('a positive integer',), horizon)
        address = given.get('SAFE_BRIDGE') or default_address()
        parse_address(address)
        return cls(
            enabled=switch == '1' or (switch == '' and program not in _TRAINING),
            address=address,
            source=given.get('SAFE_SOURCE', ''),
            task=given.get('SAFE_TASK', ''),
            preset=given.get('SAFE_PRESET') or 'auto',
            exec_horizon=int(horizon) if horizon else None,
            wait=_seconds(given.get('SAFE_WAIT') or '5'),
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise _wrong('SAFE_WAIT', ('a number of seconds from 0 to 3600',), text)
    return seconds


def _wrong(name: str, expected: Sequence[str], found: str) -> TapError:
    return TapError(
        where=f'variable {name} of the environment',
        expected=' or '.join(expected),
        found=repr(found),
        advice=f'correct it, or unset it: unset {name}',
    )
