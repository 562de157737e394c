# SPDX-License-Identifier: Apache-2.0
"""The recordings of the demo: finds, converts and selects them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rich.console import Console

from safe_training.cli.progress import progress_bar
from safe_training.recordings.convert import convert
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout_set.reader import RolloutSet

DUMP = 'openvla_dump'
POOLED = 'miniature_disturbed.npz'


class DemoError(SafeError):
    """The demo cannot run; the message contains the name of the missing file."""


def data_folder() -> Path:
    """Return the folder of recorded rollouts.

    It is ``SAFE_DEMO_DATA`` if this variable is set, otherwise the folder in the source checkout,
    otherwise the folder that the package has installed.

    Raises
    ------
    DemoError
        The last of these folders has no recordings.
    """
    named = os.environ.get('SAFE_DEMO_DATA')
    folders = [Path(named)] if named else [_checkout_folder(), *_installed_folder()]
    for folder in folders:
        if (folder / POOLED).is_file():
            return folder
    raise DemoError(
        where=str(folders[-1]),
        expected=f'the file {POOLED}',
        found='no such file',
        advice='build safe_bringup from a checkout of the whole repository, or set SAFE_DEMO_DATA '
        'to the folder test/data of a checkout',
    )


def _checkout_folder() -> Path:
    return Path(__file__).resolve().parents[2] / 'test' / 'data'


def _installed_folder() -> list[Path]:
    """Return the folder in the installed package; empty if the package is not installed."""
    try:
        return [Path(get_package_share_directory('safe_bringup')) / 'data']
    except PackageNotFoundError:
        return []


def convert_recordings(out: Path, console: Console) -> RolloutSet:
    """Convert the dump and the pooled archive of the demo. Return the pooled set."""
    data = data_folder()
    for source, name in ((DUMP, 'openvla_rollouts'), (POOLED, 'rollouts')):
        with progress_bar(f'convert {source}') as progress:
            done = convert(
                data / source,
                out / name,
                overwrite=True,
                progress=lambda n, total: progress(n, total, ''),
            )
        console.print(
            f'{source} ({done["kind"]}) -> {out / name}: {done["rollouts"]} rollouts, '
            f'{done["steps"]} steps'
        )
    return RolloutSet.open(out / 'rollouts')


def choose_episodes(
    rollouts: RolloutSet, tasks: Sequence[str], count: int, without: Collection[str] = ()
) -> list[int]:
    """Return indices of rollouts: one of each task, then the next of each task, in recorded order.

    The outcome of a rollout is not used.
    """
    members = [
        [
            i
            for i, task in enumerate(rollouts.tasks)
            if task == name and rollouts.episode_ids[i] not in without
        ]
        for name in tasks
    ]
    turns = [
        index
        for turn in range(max(map(len, members)))
        for m in members
        if turn < len(m)
        for index in [m[turn]]
    ]
    return turns[:count]
