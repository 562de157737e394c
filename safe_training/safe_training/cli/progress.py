# SPDX-License-Identifier: Apache-2.0
"""Progress of long work on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vla_feature_bridge.progress import Progress as ProgressFunction


@contextmanager
def progress_bar(description: str, *, quiet: bool = False) -> Iterator[ProgressFunction]:
    """Show a bar on standard error while the block runs; yields the function that moves it."""
    if quiet:
        yield lambda done, total, note: None
        return
    # Import rich only here, because importing it takes as long as reading a small archive.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=None, note='')

        def update(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update
