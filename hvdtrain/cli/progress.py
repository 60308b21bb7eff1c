"""Signs of life of the commands that run in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hvdtrain import activity

if TYPE_CHECKING:  # it takes a while to import
    from rich.console import Console

Count = Callable[[int, int], None]
"""Called with the amount done and the total, from any thread."""


@contextlib.contextmanager
def doing(stage: str) -> Iterator[None]:
    """Show at least every two seconds, on standard error, that `stage` is going on."""
    activity.enter(stage)
    with activity.showing():
        yield


@contextlib.contextmanager
def counting(stage: str, unit: str) -> Iterator[Count]:
    """Show the dataset being listed, `stage` and how much of it is done, then the last files.

    On standard error: as a bar on a terminal, as a line at least every two seconds elsewhere.
    `unit`: images, shards, or bytes, which are shown in MB. Call the result with the amounts.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console, stage, unit) as count:
            yield count
        return
    size = 10**6 if unit == "bytes" else 1
    entered = False

    def count_in_lines(done: int, total: int) -> None:
        nonlocal entered
        if done >= total:
            activity.enter(f"{stage}: finishing")
            return
        if not entered:
            entered = True
            activity.enter(stage, -(-total // size), "MB" if unit == "bytes" else unit)
        activity.step(done // size)

    with doing("listing the dataset"):
        yield count_in_lines


@contextlib.contextmanager
def _bar(console: Console, stage: str, unit: str) -> Iterator[Count]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("listing the dataset", total=None)

        def count(done: int, total: int) -> None:
            now = stage if done < total else f"{stage}: finishing"
            bar.update(task, description=now, completed=done, total=total)

        yield count
