# SPDX-License-Identifier: Apache-2.0
"""What a hostile case is: files to read, made from good ones that are small."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rollout_factory import make_rollout
from shared_files import DATA

#: Touched by every program that a hostile file holds; never there unless one was executed.
CANARY = Path(os.environ.get('TMPDIR', '/tmp')) / f'safe_training_was_executed_{os.getpid()}'
COMMAND = f'touch {CANARY}'
#: A module that no hostile file may get imported; the test puts it on the path.
CANARY_MODULE = 'safe_training_canary'


class Bad(NamedTuple):
    """What to read, and the name that a refusal must contain."""

    path: Path
    names: str
    verb: str = 'convert'


class Good(NamedTuple):
    """Good files, to be copied and damaged."""

    dump: Path
    archive: Path
    set: Path
    mcap: Path
    bag: Path
    db3: Path
    detector: Path


Case = Callable[[Path, Good], Bad]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__.replace('_', '-')] = function
    return function


def cases(make: Callable[[Path, Good, object], Bad], **variants: object) -> None:
    for name, variant in variants.items():

        def one(folder: Path, good: Good, variant: object = variant) -> Bad:
            return make(folder, good, variant)

        CASES[f'{make.__name__}-{name}'.replace('_', '-')] = one


def make_good(folder: Path) -> Good:
    """Make one small good source of each kind."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from safe_monitor_node.bands.band import Band
    from safe_monitor_node.calibrated_detector import CalibratedDetector
    from safe_monitor_node.detectors import make_detector
    from safe_training.recordings.untrusted.cdr import STEP, full_definition, step_to_cdr, type_hash
    from safe_training.recordings.write_bag import write_bag
    from vla_feature_bridge.pooling import FeatureSpec
    from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

    dump = folder / 'dump'
    dump.mkdir(parents=True)
    for name in ('task0--ep0--succ0', 'task0--ep1--succ1'):
        for suffix in ('csv', 'pkl'):
            shutil.copy(DATA / 'openvla_dump' / f'{name}.{suffix}', dump)
    spec = FeatureSpec('fea', 8)
    rng = np.random.default_rng(0)
    rollouts = [
        make_rollout(
            n,
            features=rng.normal(size=(2, 8)).astype(np.float32),
            task='task',
            success=bool(n % 2),
            episode_id=f'e{n}',
            feature_name='fea',
            actions=rng.normal(size=(2, 1, 2, 3)).astype(np.float32),
            stamps=np.arange(2) * 10**8 + 10**18 + n * 10**10,
        )
        for n in range(2)
    ]
    with RolloutSetWriter(folder / 'set', feature=spec) as writer:
        for rollout in rollouts:
            writer.add(rollout)
    write_bag(folder / 'run.mcap', rollouts, spec)
    write_bag(folder / 'run.bag', rollouts, spec)
    with Writer(folder / 'db3', version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
        connection = bag.add_connection(
            '/vla/policy_step', STEP, msgdef=full_definition(STEP), rihs01=type_hash(STEP)
        )
        for rollout in rollouts:
            for t in range(2):
                bag.write(connection, t, step_to_cdr(rollout.step(t)))
    band = Band(np.array([0.1]), np.full((1, 2), 1.0), 'functional_constant', 20)
    detector = make_detector('clock').fit(rollouts)
    CalibratedDetector(detector, spec, band, 0.1).save(folder / 'detector')
    return Good(
        dump,
        DATA / 'miniature_disturbed.npz',
        folder / 'set',
        folder / 'run.mcap',
        folder / 'run.bag',
        folder / 'db3' / 'db3.db3',
        folder / 'detector',
    )
