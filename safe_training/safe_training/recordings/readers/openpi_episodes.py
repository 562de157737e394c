# SPDX-License-Identifier: Apache-2.0
"""Finds the episodes of an openpi dump, and the policy records of each episode."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safe_training.recordings.errors import COPY_AGAIN, COPY_OR_LEAVE_OUT, RENAMED, DumpError
from safe_training.recordings.readers.listing import list_names, natural_key, walk
from safe_training.recordings.readers.plain_values import number_text, whole_number
from safe_training.recordings.readers.plain_values import plain_text as plain_value
from safe_training.recordings.readers.step_features import shape_text
from safe_training.recordings.untrusted.pickle_file import load_pickle

ENV_RECORDS = 'env_records'
POLICY_RECORDS = 'policy_records'

_POLICY_NAME = re.compile(
    r'step_(\d{1,12})--.*--task_(\d{1,9})--ep_(\d{1,9})--t_(\d{1,9})--meta\.pkl', re.DOTALL
)
_ENV_NAME = re.compile(r'task(\d{1,9})--ep(\d{1,9})--succ([01])(?:--meta)?\.pkl')
_MAX_INFERENCES = 1_000_000
_NOT_AN_ENV_RECORD = f'the file is not an env record of openpi: {COPY_OR_LEAVE_OUT}'


@dataclass(frozen=True)
class OpenpiEpisode:
    """One episode: the content of its env record, and its policy records.

    Attributes
    ----------
    root, env_file : Path
    records : tuple of str
        Names of the policy records, in order.
    ordered_only : bool
        True if the records are assigned by their order, because their names do not contain the
        episode.
    """

    root: Path
    env_file: Path
    name: str
    task_id: int
    episode_index: int
    success: bool
    description: str
    suite: str
    inferences: int
    exec_horizon: int
    mp4_path: str
    video: str = ''
    records: tuple[str, ...] = ()
    ordered_only: bool = False

    @property
    def recorded(self) -> tuple[int, int]:
        """The numbers of task and episode that the recorder gave."""
        return self.task_id, self.episode_index


def is_root(path: Path) -> bool:
    """Return True if a folder is a root of openpi."""
    return (path / ENV_RECORDS).is_dir() and (path / POLICY_RECORDS).is_dir()


def find_roots(path: Path, notes: list[str] | None = None) -> list[Path]:
    """Return the roots in a folder: the folder itself, or roots up to two levels below it.

    ``notes`` gets a message for each link that is not followed.
    """
    if not path.is_dir():
        return []
    if is_root(path):
        return [path]
    records = (ENV_RECORDS, POLICY_RECORDS)
    found = [place for place, _ in walk(path, records, notes, depth=2) if is_root(place)]
    return sorted(found, key=lambda root: natural_key(root.relative_to(path).as_posix()))


def has_env_names_of_droid(root: Path) -> bool:
    """Return True if the env records of a root have the names of Franka/DROID recordings."""
    names = list_names(root / ENV_RECORDS, '.pkl')
    return bool(names) and all(name.endswith('--meta.pkl') for name in names)


def read_dict(file: Path) -> dict[Any, Any]:
    """Return a pickle that must be a dict; raises DumpError if it is anything else."""
    record = load_pickle(file)
    if type(record) is not dict:
        raise DumpError(
            where=str(file),
            expected='a dict with the values of an openpi record',
            found=shape_text(record),
            advice=f'the file is not a record of openpi: {COPY_OR_LEAVE_OUT}',
        )
    return record


# -- env records


def read_env_record(root: Path, name: str) -> OpenpiEpisode:
    """Return one episode from its env record, without its policy records.

    Raises
    ------
    DumpError
        A field is missing, has the wrong type, or contradicts the file name.
    """
    file = root / ENV_RECORDS / name
    record = read_dict(file)
    index_key = 'episode_idx' if 'episode_idx' in record else 'eposide_idx'
    needed = (
        'task_id',
        'task_description',
        index_key,
        'episode_success',
        'model_infer_times',
        'replan_steps',
    )
    missing = [key for key in needed if key not in record]
    if missing:
        raise DumpError(
            where=str(file),
            expected=f'the keys {", ".join(missing)}',
            found=f'{len(record)} keys: {", ".join(str(key)[:40] for key in list(record)[:12])}'
            + (', ...' if len(record) > 12 else ''),
            advice=_NOT_AN_ENV_RECORD,
        )
    success = _integer(file, record, 'episode_success', 0, 1)
    episode = OpenpiEpisode(
        root=root,
        env_file=file,
        name='',
        task_id=_integer(file, record, 'task_id', 0, 10**9),
        episode_index=_integer(file, record, index_key, 0, 10**9),
        success=bool(success),
        description=_text(file, record, 'task_description'),
        suite=_text(file, record, 'task_suite_name'),
        inferences=_integer(file, record, 'model_infer_times', 0, _MAX_INFERENCES),
        exec_horizon=_integer(file, record, 'replan_steps', 1, 10**6),
        mp4_path=_text(file, record, 'mp4_path'),
    )
    if match := _ENV_NAME.fullmatch(name):
        said = (episode.task_id, episode.episode_index, success)
        for key, named, found in zip(
            ('task_id', index_key, 'episode_success'), map(int, match.groups()), said, strict=True
        ):
            if named != found:
                raise DumpError(
                    where=str(file),
                    expected=f'{key} {named}, as in the file name',
                    found=str(found),
                    advice=RENAMED,
                )
    return episode


def _integer(file: Path, record: Mapping[Any, Any], key: str, low: int, high: int) -> int:
    value = whole_number(record[key])
    if value is None or not low <= value <= high:
        raise DumpError(
            where=str(file),
            expected=f'{key} as an integer from {low} to {high}',
            found=number_text(record[key]) or shape_text(record[key]),
            advice=_NOT_AN_ENV_RECORD,
        )
    return value


def _text(file: Path, record: Mapping[Any, Any], key: str) -> str:
    value = plain_value(record.get(key, ''))
    if value is None:
        raise DumpError(
            where=str(file),
            expected=f'{key} as text',
            found=shape_text(record[key]),
            advice=_NOT_AN_ENV_RECORD,
        )
    return value


# -- which policy records belong to which episode


def list_root(root: Path) -> tuple[list[OpenpiEpisode], list[str]]:
    """Return the episodes of one root with their policy records.

    Returns
    -------
    episodes : list of OpenpiEpisode
        In natural order of their env records.
    unmatched : list of str
        One message for each record that does not belong to a complete episode.

    Raises
    ------
    DumpError
        The records cannot be assigned to episodes. Therefore no episode of the root is reliable.
    """
    episodes: list[OpenpiEpisode] = []
    unmatched: list[str] = []
    for name in list_names(root / ENV_RECORDS, '.pkl'):
        try:
            episodes.append(read_env_record(root, name))
        except DumpError as error:
            unmatched.append(str(error))
    names = list_names(root / POLICY_RECORDS, '.pkl')
    unmatched += [
        f'{root / POLICY_RECORDS / name}: expected a file name that ends in meta.pkl, found '
        f'{name}; rename the file, or move the file to another folder'
        for name in names
        if not name.endswith('meta.pkl')
    ]
    names = [name for name in names if name.endswith('meta.pkl')]
    matches = [_POLICY_NAME.fullmatch(name) for name in names]
    if names and all(matches):
        episodes, more = _match_by_name(root, episodes, [m for m in matches if m])
    elif not any(matches):
        episodes, more = _match_by_order(root, episodes, names, unmatched), []
    else:
        plain = next(name for name, match in zip(names, matches, strict=True) if not match)
        raise DumpError(
            where=str(root / POLICY_RECORDS / plain),
            expected='a file name with task, episode and step, like the names of the other records',
            found='a file name without the numbers of task, episode and step',
            advice='records of two recordings may be mixed: move the records of one recording to '
            'another folder',
        )
    episodes, twice = _without_duplicates(episodes)
    videos = set(list_names(root / ENV_RECORDS, '.mp4'))
    return [replace(e, video=_video(e, videos)) for e in episodes], unmatched + more + twice


def _match_by_order(
    root: Path, episodes: list[OpenpiEpisode], names: list[str], unmatched: list[str]
) -> list[OpenpiEpisode]:
    if unmatched:
        problem = unmatched[0].rpartition('; ')[0] or unmatched[0]
        raise DumpError(
            f'{problem}; the names of the policy records do not contain the episode, therefore '
            f'all episodes need this file: {COPY_AGAIN}'
        )
    total = sum(episode.inferences for episode in episodes)
    if total != len(names):
        raise DumpError(
            where=str(root / POLICY_RECORDS),
            expected=f'{total} policy records, the sum of model_infer_times of {len(episodes)} '
            'episodes',
            found=f'{len(names)} policy records',
            advice='the file names do not contain the episode, therefore no record can be used: '
            'copy the folder from its source again',
        )
    matched = []
    start = 0
    for episode in episodes:
        stop = start + episode.inferences
        matched.append(replace(episode, records=tuple(names[start:stop]), ordered_only=True))
        start = stop
    return matched


def _match_by_name(
    root: Path, episodes: list[OpenpiEpisode], matches: list[re.Match[str]]
) -> tuple[list[OpenpiEpisode], list[str]]:
    groups: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    for match in matches:
        step, task, index, time = map(int, match.groups())
        groups.setdefault((task, index), []).append((step, time, match.string))
    matched = []
    problems = []
    used = set()
    for episode in episodes:
        key = _group_of(episode, episodes, groups)
        used.add(key)
        records = sorted(groups.get(key, []))
        times = [time for _, time, _ in records]
        if len(records) != episode.inferences:
            problems.append(
                f'{episode.env_file}: expected {episode.inferences} policy records of task '
                f'{key[0]}, episode {key[1]} in {root / POLICY_RECORDS} (the number in '
                f'model_infer_times), found {len(records)} policy records; {COPY_OR_LEAVE_OUT}'
            )
        elif any(later <= earlier for earlier, later in itertools.pairwise(times)):
            problems.append(
                f'{episode.env_file}: expected policy records in which the time t_ increases with '
                f'the number step_, found a different order in {records[0][2]} and the next '
                'records; records of two runs may be mixed: move the records of one run to another '
                'folder, or leave the episode out with --skip-bad'
            )
        else:
            matched.append(replace(episode, records=tuple(name for _, _, name in records)))
    problems += [
        f'{root / POLICY_RECORDS / min(records)[2]}: expected an env record of task {key[0]}, '
        f'episode {key[1]} in {ENV_RECORDS}, found no env record for these {len(records)} policy '
        'records; copy the env record from its source, or move the policy records to another folder'
        for key, records in sorted(groups.items())
        if key not in used
    ]
    return matched, problems


def _group_of(
    episode: OpenpiEpisode, episodes: Iterable[OpenpiEpisode], groups: Iterable[tuple[int, int]]
) -> tuple[int, int]:
    """Return the numbers under which the policy records of an episode are named.

    They are task and episode, or the episode alone if its number is unique: in a Franka/DROID
    recording with one task in each root, env and policy records may number the task differently.
    """
    if episode.recorded in groups:
        return episode.recorded
    same_number = [key for key in groups if key[1] == episode.episode_index]
    rivals = [other for other in episodes if other.episode_index == episode.episode_index]
    if len(same_number) == 1 and len(rivals) == 1:
        return same_number[0]
    return episode.recorded


def _without_duplicates(
    episodes: list[OpenpiEpisode],
) -> tuple[list[OpenpiEpisode], list[str]]:
    """Exclude every episode that exists twice, because it is not known which copy is correct."""
    by_number: dict[tuple[int, int], list[OpenpiEpisode]] = {}
    for episode in episodes:
        by_number.setdefault(episode.recorded, []).append(episode)
    messages = [
        f'{group[1].env_file}: expected each episode once, found task {key[0]}, episode '
        f'{key[1]} also in {group[0].env_file.name}; move the wrong file to another folder'
        for key, group in by_number.items()
        if len(group) > 1
    ]
    return [e for e in episodes if len(by_number[e.recorded]) == 1], messages


def _video(episode: OpenpiEpisode, videos: set[str]) -> str:
    """Return the video of an episode, relative to the root; empty if there is none."""
    stem = episode.env_file.name.removesuffix('.pkl').removesuffix('--meta')
    candidates = [f'{stem}.mp4', episode.mp4_path.replace('\\', '/').rsplit('/', 1)[-1]]
    candidates += sorted(v for v in videos if v.startswith(stem) and 'external_left' in v)
    found = next((name for name in candidates if name in videos), '')
    return f'{ENV_RECORDS}/{found}' if found else ''


def no_inference(episode: OpenpiEpisode) -> DumpError:
    """Return the error of an episode without a policy record."""
    return DumpError(
        where=str(episode.env_file),
        expected='at least one inference',
        found='no inference',
        advice='leave the episode out with --skip-bad',
    )


def plain_text(text: str) -> str:
    """Return the words of a text in lower case, to compare prompts with task descriptions."""
    return ' '.join(re.findall(r'\w+', text.replace('_', ' ').casefold()))
