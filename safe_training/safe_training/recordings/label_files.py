# SPDX-License-Identifier: Apache-2.0
"""Finds the labels and the custom data of a recording, for every path to the recording.

A recording is a folder with ``metadata.yaml``, or one storage file that no such folder lists. Links
are followed first. The labels of a recording ``REC`` are in ``REC.labels.csv``. Labels that were
stored under another path of the recording count too: the name of a link, or of a storage file in
the folder. If an episode has two different labels, both are refused, because it is not known which
label is right.

Custom data is data that messages cannot contain. ``metadata.yaml`` has priority, then the storage
files: ``ros2 bag reindex`` writes a ``metadata.yaml`` without custom data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import Label, read_labels, write_labels
from safe_training.recordings.untrusted.bag import METADATA, SUFFIXES, Bag, open_bag
from vla_feature_bridge.atomic import locked

_ENDING = '.labels.csv'
#: Number of label files without a recording that are compared with a recording.
_MOST_ORPHANS = 32


def recording_of(path: Path) -> Path:
    """Return the recording of a path: links are followed, and a storage file gives its folder."""
    real = Path(os.path.realpath(path))
    if real.is_file() and (real.parent / METADATA).is_file():
        try:
            listed = open_bag(real.parent).files
        except DumpError:
            return real
        if real in (Path(os.path.realpath(file)) for file in listed):
            return real.parent
    return real


def labels_file(path: Path) -> Path:
    """Return the csv file for new labels of a recording."""
    return _beside(recording_of(path))


def label_files(path: Path) -> list[Path]:
    """Return the existing csv files with labels of the recording of a path."""
    real, recording = Path(os.path.realpath(path)), recording_of(path)
    places = [recording, real, Path(os.path.abspath(path))]
    if real.is_file():
        places.append(real.parent)
    elif real.is_dir():
        places += sorted(
            f for f in real.iterdir() if f.name.removesuffix('.zstd').endswith(SUFFIXES)
        )
    files = (Path(os.path.realpath(_beside(place))) for place in places)
    return [file for file in dict.fromkeys(files) if file.exists()]


def _beside(recording: Path) -> Path:
    return recording.with_name(recording.name + _ENDING)


def labels_of(
    path: Path, episodes: Iterable[str], *, incomplete: bool = False
) -> tuple[dict[str, tuple[Label, Path]], list[str]]:
    """Return the labels of a recording, each with the file that holds it.

    Parameters
    ----------
    path : Path
        The recording.
    episodes : iterable of str
        Names of its episodes.
    incomplete : bool
        True if a part of the recording is lost. In this case, labels of other episodes are not an
        error.

    Returns
    -------
    labels : dict of str to (Label, Path)
    notes : list of str
        Labels that are not used, and label files that may belong to this recording.

    Raises
    ------
    DumpError
        A file has a label of an unknown episode, or two files have different labels of one episode.
    """
    known = set(episodes)
    found: dict[str, tuple[Label, Path]] = {}
    notes: list[str] = []
    files = label_files(path)
    for file in files:
        others = []
        for name, label in read_labels(file).items():
            if name not in known:
                others.append(name)
                continue
            first = found.setdefault(name, (label, file))
            if first[0] != label:
                raise DumpError(
                    where=f'{file}: episode {name!r}',
                    expected=f'{_text(first[0])}, as in {first[1]}',
                    found=_text(label),
                    advice='correct the wrong file, or move it to another folder',
                )
        if others and not incomplete and not _may_name_others(path, file):
            raise DumpError(
                where=str(file),
                expected=f'names of episodes of {path.name}',
                found=repr(others[0]),
                advice='correct the name, or move the file to another folder if the file '
                'belongs to another recording',
            )
        if others:
            reason = (
                'these episodes are in a lost part of the recording, or in another file'
                if incomplete
                else 'they belong to another file of the recording'
            )
            notes.append(
                f'{file} has labels of {len(others)} episodes that are not in {path.name}; {reason}'
            )
    return found, notes if files else _orphans(path, known)


def _text(label: Label) -> str:
    step = '' if label.failure_step is None else f' from step {label.failure_step}'
    return f'the outcome {label.outcome}{step}'


def _may_name_others(path: Path, file: Path) -> bool:
    """Return True if a file has labels of a whole folder, and the path is one of its files."""
    real = Path(os.path.realpath(path))
    return real.is_file() and file == Path(os.path.realpath(_beside(real.parent)))


def _orphans(path: Path, known: set[str]) -> list[str]:
    """Return a note for each label file that has no recording and has labels of these episodes."""
    recording = recording_of(path)
    try:
        files = sorted(recording.parent.glob(f'*{_ENDING}'))[:_MOST_ORPHANS]
    except OSError:
        return []
    notes = []
    for file in files:
        if file.with_name(file.name.removesuffix(_ENDING)).exists():
            continue
        try:
            names = set(read_labels(file))
        except DumpError:
            continue
        if names and names <= known:
            notes.append(
                f'{file} has labels of episodes with the same names, but no recording has its '
                'name; the labels are not used. If this recording was renamed, rename the file '
                f'to {_beside(recording).name}'
            )
    return notes


def store_labels(path: Path, labels: Mapping[str, Label]) -> None:
    """Store labels in the file that has a label of the episode, otherwise in its own file."""
    left = dict(labels)
    # Two processes that label at the same time must not lose labels.
    with locked(labels_file(path).parent, wait=True):
        for file in label_files(path):
            held = {name: left.pop(name) for name in read_labels(file) if name in left}
            if held:
                write_labels(file, held)
        if left:
            write_labels(labels_file(path), left)


def custom_data(bag: Bag, key: str) -> str | None:
    """Return the custom data of a recording under a key; None if the recording has none."""
    recording = recording_of(bag.path)
    if not recording.is_dir():
        return bag.custom.get(key)
    whole = bag if bag.path.is_dir() else open_bag(recording)
    if key in whole.custom:
        return whole.custom[key]
    if key in bag.custom:
        return bag.custom[key]
    # convert does not compress whole files, and unpacking them twice would take a long time.
    files = [file for file in bag.files if file.suffix != '.zstd']
    inside = (_stored_in(file, key) for file in files)
    return next((text for text in inside if text is not None), None)


def _stored_in(file: Path, key: str) -> str | None:
    try:
        return open_bag(file).custom.get(key)
    except DumpError:
        return None  # Only the metadata is damaged, or reading the messages gives the error.
