"""What stalled ranks leave in the run directory: the stacks of each, by which the others know it is alive.

Nothing is written while a run goes on. A rank writes its file when half of the time is over that a
stall may take, and removes it if there is progress again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from hvdtrain.run.guard.standing import Standing, stack_lines

T = TypeVar("T")
BOUND_S = 5.0
"""Longest time for something that may hang, such as writing to a disk."""
NAMED = 4
"""Most ranks that a line names."""


@dataclass(frozen=True)
class StallFiles:
    """The files of all ranks of one attempt in `folder`."""

    folder: Path
    hosts: Sequence[str]
    """The host of every rank."""

    def of(self, rank: int) -> Path:
        """The file of a rank."""
        return self.folder / f"rank-{rank}.txt"

    def write(
        self,
        rank: int,
        standing: Standing,
        thread: int,
        frame: FrameType | None,
        *,
        told: bool = False,
    ) -> Path:
        """Write what `rank` is at, the stack of its training thread, and those of all threads.

        `told`: it ends now, and prints its line.
        """
        about = {"rank": rank, "doing": standing.doing, "for_ranks": standing.for_ranks}
        about["told"] = told
        part = self.of(rank).with_suffix(".part")
        self.folder.mkdir(parents=True, exist_ok=True)
        with part.open("w", errors="backslashreplace") as file:
            print(json.dumps(about), file=file)
            print(f"\nTraining thread, 0x{thread:016x} (most recent call first):", file=file)
            print("\n".join(stack_lines(frame)), "\n\nAll threads:", sep="", file=file)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return part.replace(self.of(rank))

    def remove(self, rank: int) -> None:
        """Remove the file of `rank`, and the folder with the last one."""
        with contextlib.suppress(OSError):
            self.of(rank).unlink(missing_ok=True)
            self.folder.rmdir()

    def told(self, rank: int) -> bool:
        """Whether another rank than `rank` has ended with a line already."""
        others = (other for other in range(len(self.hosts)) if other != rank)
        return any((self._about(other) or {}).get("told") for other in others)

    def others(self, rank: int) -> str:
        """Why `rank` waits for others: the ones that left no file, or else those that do not wait."""
        found = {other: self._read(other) for other in range(len(self.hosts)) if other != rank}
        missing = [other for other, what in found.items() if what is None]
        busy = [other for other, what in found.items() if what is not None and not what.for_ranks]
        if missing:
            return (
                f"waiting for {self._named(missing)}, of which there is no sign: stopped, or its "
                "host cannot be reached"
            )
        if busy:
            first = found[busy[0]]
            assert first is not None
            return f"waiting for {self._named(busy)}: {first.doing}"
        return (
            "waiting for the other ranks, which all wait as well: look at the network between them"
        )

    def _named(self, ranks: Sequence[int]) -> str:
        first = ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks[:NAMED])
        more = len(ranks) - NAMED
        return f"{first} and {more} more" if more > 0 else first

    def _read(self, rank: int) -> Standing | None:
        about = self._about(rank)
        if about is None:
            return None
        # There may be a sign, though not a readable one.
        return Standing(str(about.get("doing", "waiting")), bool(about.get("for_ranks", True)))

    def _about(self, rank: int) -> dict[str, Any] | None:
        """The first line of a rank's file; None without the file, empty if it cannot be read."""
        try:
            with self.of(rank).open(errors="replace") as file:
                about = json.loads(file.readline())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            return {}
        return about if isinstance(about, dict) else {}


def bounded(call: Callable[[], T], seconds: float = BOUND_S) -> T | None:
    """The result of `call`, made in a thread; None if it fails or takes longer than `seconds`."""
    results: list[T] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(call())

    thread = threading.Thread(target=run, name="watchdog-io", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
