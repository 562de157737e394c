# SPDX-License-Identifier: Apache-2.0
"""Reads recordings of pi0-FAST by openpi on the Franka (DROID): several roots, one protocol.

The protocol is as published (Gu et al., SAFE, arXiv 2506.09937). Tasks are numbered by their sorted
descriptions over all roots. Only episodes with the standard length of their task are kept. Then
random episodes of each task are removed to balance the success rate and to limit the number of
rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.openpi import find_policy
from safe_training.recordings.readers.openpi_episodes import (
    OpenpiEpisode,
    find_roots,
    has_env_names_of_droid,
    is_root,
    list_root,
)
from safe_training.recordings.readers.pi0_fast import Pi0FastSource

#: Standard length [inferences] of the tasks whose standard length is not their longest episode.
STANDARD_LENGTH = {'close the drawer': 25}
SUCCESS_RATE = (0.5, 0.5)
MAX_ROLLOUTS = 60
_SEED = 0


class Pi0FastDroidSource(Pi0FastSource):
    """Roots of pi0-FAST on the Franka; ``all_episodes`` keeps every episode."""

    kind = 'pi0_fast_droid'
    looks_for = 'folders with env_records/*--meta.pkl and policy_records/*meta.pkl (openpi, DROID)'

    @staticmethod
    def detect(path: Path) -> str | None:
        roots = find_roots(path)
        if not roots or (is_root(path) and not has_env_names_of_droid(path)):
            return None
        if find_policy(roots[0]) != 'pi0_fast':
            return None
        return f'contains {len(roots)} roots with env_records and policy_records'

    def _list(self) -> tuple[list[OpenpiEpisode], list[str]]:
        episodes: list[OpenpiEpisode] = []
        unmatched: list[str] = []
        for root in find_roots(self.path, self.notes):
            try:
                found, wrong = list_root(root)
            except DumpError as error:
                if not self.options.skip_bad:
                    raise
                found, wrong = [], [str(error)]
            place = root.relative_to(self.path).as_posix()
            prefix = '' if place == '.' else f'{place}/'
            episodes += [
                replace(e, name=f'{prefix}task{e.task_id}--ep{e.episode_index}') for e in found
            ]
            unmatched += wrong
        episodes = _renumber_tasks(episodes)
        if not self.options.all_episodes:
            episodes = self._filter(episodes)
        return _renumber_episodes(episodes), unmatched

    def _filter(self, episodes: list[OpenpiEpisode]) -> list[OpenpiEpisode]:
        standard = [e for e in episodes if e.inferences == _standard_length(e, episodes)]
        kept = balanced(
            [e.task_id for e in standard],
            [e.success for e in standard],
            *SUCCESS_RATE,
            MAX_ROLLOUTS,
            np.random.RandomState(_SEED),
        )
        if len(kept) < len(episodes):
            self.notes.append(
                f'the published protocol keeps {len(kept)} of {len(episodes)} episodes: '
                f'{len(episodes) - len(standard)} episodes do not have the standard length of '
                f'their task, and {len(standard) - len(kept)} episodes are left out to balance the '
                f'success rates (at most {MAX_ROLLOUTS} episodes for each task); --all-episodes '
                'keeps all episodes'
            )
        return [standard[index] for index in kept]


def _renumber_tasks(episodes: list[OpenpiEpisode]) -> list[OpenpiEpisode]:
    numbers = {
        text: number for number, text in enumerate(sorted({e.description for e in episodes}))
    }
    return [replace(episode, task_id=numbers[episode.description]) for episode in episodes]


def _renumber_episodes(episodes: list[OpenpiEpisode]) -> list[OpenpiEpisode]:
    """Return the episodes with new numbers.

    In each task, the number is the position of the episode when the episodes are sorted by the path
    of their video, as in the published protocol.
    """
    by_task: dict[int, list[tuple[str, str]]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task_id, []).append((episode.mp4_path, episode.name))
    rank = {
        (task, key): number
        for task, keys in by_task.items()
        for number, key in enumerate(sorted(keys))
    }
    return [replace(e, episode_index=rank[e.task_id, (e.mp4_path, e.name)]) for e in episodes]


def _standard_length(episode: OpenpiEpisode, episodes: Sequence[OpenpiEpisode]) -> int:
    if episode.description in STANDARD_LENGTH:
        return STANDARD_LENGTH[episode.description]
    return max(e.inferences for e in episodes if e.task_id == episode.task_id)


def balanced(
    tasks: Sequence[int],
    success: Sequence[bool],
    lowest: float,
    highest: float,
    most: int | None,
    random: np.random.RandomState,
) -> list[int]:
    """Return the rollouts to keep, so that the success rate of each task is in [lowest, highest].

    Parameters
    ----------
    tasks, success : sequence, length N
    lowest, highest : float
        The smallest and largest success rate of a task.
    most : int or None
        The largest number of rollouts of a task; None: no limit.
    random : RandomState
        Generator that selects the removed rollouts. It must be the legacy NumPy generator, which
        gives the published subset.

    Returns
    -------
    list of int
        Indices of the rollouts that are kept, ascending.
    """
    dropped: set[int] = set()
    for task in sorted(set(tasks)):
        members = [index for index, other in enumerate(tasks) if other == task]
        groups = {
            outcome: [index for index in members if bool(success[index]) is outcome]
            for outcome in (False, True)
        }

        def drop(outcome: bool, count: int, groups: dict[bool, list[int]] = groups) -> None:
            if count <= 0:
                return
            chosen = set(random.choice(groups[outcome], count, replace=False).tolist())
            groups[outcome] = [index for index in groups[outcome] if index not in chosen]
            dropped.update(chosen)

        total, succeeded = len(members), len(groups[True])
        if succeeded / total < lowest:
            drop(False, min(len(groups[False]), math.ceil(total - succeeded / lowest)))
        elif succeeded / total > highest:
            surplus = math.ceil((succeeded - highest * total) / (1 - highest))
            drop(True, min(succeeded, surplus))
        failed, succeeded = len(groups[False]), len(groups[True])
        extra = 0 if most is None else failed + succeeded - most
        if extra > 0:
            from_success = min(succeeded, round(extra * succeeded / (failed + succeeded)))
            from_failure = min(failed, extra - from_success)
            drop(True, extra - from_failure)
            drop(False, from_failure)
    return [index for index in range(len(tasks)) if index not in dropped]
