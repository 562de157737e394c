# SPDX-License-Identifier: Apache-2.0
"""The manifest of a results folder. It describes the sweep that wrote the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from safe_training.sweep.grid import Family, Grid, SweepError
from safe_training.sweep.plan import Settings
from vla_feature_bridge.atomic import replace_file
from vla_feature_bridge.rollout import Rollout

MANIFEST = 'sweep.json'
_ANOTHER = 'give another folder with --out'
# Names of protocol fields in manifests of version 0.1, and their current names.
_RENAMED = {'horizon': 'max_steps', 'calibration': 'calibrate_on', 'scheme': 'name'}


def _grid_digest(grid: Grid, family: Family) -> str:
    content = [[asdict(v) for v in grid.variants], [dict(c) for c in family.configurations]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _with_new_names(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the current field names.

    Version 0.1 used different names for the protocol.
    """
    settings = manifest.get('settings')
    if not isinstance(settings, dict) or not isinstance(settings.get('protocol'), dict):
        return manifest
    protocol = settings['protocol']
    protocol = {_RENAMED.get(name, name): value for name, value in protocol.items()}
    if protocol.get('modulation') == 'adaptive':
        protocol['modulation'] = 'max_deviation'
    return {**manifest, 'settings': {**settings, 'protocol': protocol}}


@dataclass(frozen=True)
class SweepFacts:
    """Facts about a sweep in its manifest.

    Attributes
    ----------
    protocol : str
        Name of the protocol of the task splits.
    detectors : tuple of str
        Detectors of the grids; empty if the manifest does not list them.
    planned : mapping of subset to mapping of detector to list of int
        Numbers of the planned splits; the subset is '' without subsets. Manifests of older versions
        do not list them: their detectors all have the same splits.
    """

    protocol: str
    detectors: tuple[str, ...]
    planned: Mapping[str, Mapping[str, Sequence[int]]]


def read_facts(folder: Path) -> SweepFacts | None:
    """Return the facts about the sweep of a results folder; None if it has no manifest.

    Raises
    ------
    SweepError
        The manifest cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = _read(path)
        planned = {subset: dict(splits) for subset, splits in manifest['planned'].items()}
        name = manifest['settings']['protocol']['name']
        return SweepFacts(name, tuple(manifest['grids']), planned)
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise _unreadable(path, error, 'results of this sweep may be missing') from error


def _read(path: Path) -> dict[str, Any]:
    absent = {'subsets': {}, 'tasks': [], 'splits': '', 'grids': {}, 'planned': {}}
    return _with_new_names({**absent, **json.loads(path.read_text('utf-8'))})


def _unreadable(path: Path, error: Exception, advice: str) -> SweepError:
    return SweepError(
        where=str(path),
        expected='the manifest of a sweep',
        found=f'a damaged file ({error!r})',
        advice=advice,
    )


class Manifest:
    """Connects a results folder with the rollouts, the subsets and the settings of one sweep.

    Attributes
    ----------
    tasks : list of str
        Names of the tasks in sorted order, empty until they are known.

    Raises
    ------
    SweepError
        The folder holds results of another sweep, or its manifest cannot be read.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        grid: Grid,
        settings: Settings,
        splits_from: Path | None = None,
    ) -> None:
        self._path = path
        self._asked: dict[str, Any] = {
            'source': source,
            'settings': asdict(settings),
            'subsets': {subset.name: list(subset.patterns) for subset in grid.subsets},
            # Random splits are determined by the rollouts and the settings, so they are not stored.
            'splits': '' if splits_from is None else _digest(splits_from),
            'grids': {f.detector: _grid_digest(grid, f) for f in grid.families},
            'torch': torch.__version__,
        }
        self._before: dict[str, Any] | None = None
        self.tasks: list[str] = []
        if not path.exists():
            return
        try:
            self._before = _read(path)
            self.tasks = [str(task) for task in self._before['tasks']]
        except (ValueError, TypeError, OSError) as error:
            raise _unreadable(path, error, _ANOTHER) from error
        self._compare(self._asked, ('settings', 'subsets', 'splits'))
        # Results of further detectors can be added. Two different grids of the same detector are
        # refused, because a table would mix their results.
        grids = self._before['grids']
        for detector, digest in self._asked['grids'].items():
            if grids.get(detector, digest) != digest:
                raise SweepError(
                    where=str(path),
                    expected=f'the grid of {detector} that wrote the results in this folder',
                    found=f'another grid of {detector} (parameters or poolings differ)',
                    advice='give another folder with --out, or use the original grid',
                )

    def tie(self, rollouts: Sequence[Rollout]) -> None:
        """Write the manifest when the first rollouts are read. Refuse different rollouts later."""
        digest = hashlib.sha256()
        for rollout in rollouts:
            digest.update(f'{rollout.episode_id}\0{len(rollout)}\0{rollout.success}\n'.encode())
        found = {'rollouts': len(rollouts), 'digest': digest.hexdigest()}
        self.tasks = sorted({rollout.task for rollout in rollouts})
        if self._before is not None:
            self._compare(found, tuple(found))
            grids = {**self._before['grids'], **self._asked['grids']}
            if grids == self._before['grids']:
                return
            self._before = {**self._before, 'grids': grids}
        else:
            self._before = {**self._asked, **found, 'tasks': self.tasks, 'planned': {}}
        self._write()

    def add_plan(self, splits: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        """Add planned splits, by subset and detector, to the splits of earlier calls."""
        assert self._before is not None
        before = self._before['planned']
        planned = {
            subset: {
                **before.get(subset, {}),
                **{
                    name: sorted({*before.get(subset, {}).get(name, ()), *numbers})
                    for name, numbers in found.items()
                },
            }
            for subset, found in splits.items()
        }
        if planned != before:
            self._before = {**self._before, 'planned': planned}
            self._write()

    def _write(self) -> None:
        replace_file(self._path, json.dumps(self._before, indent=2) + '\n')

    def _compare(self, found: Mapping[str, Any], names: Sequence[str]) -> None:
        assert self._before is not None
        try:
            differ = [name for name in names if self._before[name] != found[name]]
        except KeyError as error:
            raise _unreadable(self._path, error, _ANOTHER) from error
        if differ:
            raise SweepError(
                where=str(self._path),
                expected='the sweep that wrote the results in this folder',
                found=f'another sweep ({", ".join(differ)} differ)',
                advice='give another folder with --out, or use the same source and options to '
                'continue',
            )
