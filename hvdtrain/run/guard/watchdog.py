"""Ends a rank that makes no progress, and says what it was at.

A thread of every rank counts its own ticks since the last sign of progress (`hvdtrain.activity`): a
stage, a step, or a batch. A process that is suspended ticks as little as it works, so it is not
ended when it goes on. The thread can run because whatever the trainer may wait for (collectives,
DALI, reading, torch) releases Python's lock meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from hvdtrain.activity import Activity, present
from hvdtrain.errors import StallError
from hvdtrain.paths import STAMP
from hvdtrain.run.guard.stall_files import StallFiles, bounded
from hvdtrain.run.guard.standing import Standing, standing
from hvdtrain.signals import noticed
from hvdtrain.streams import print_error

FIRST = 6
"""Set-up stages and the first step of an attempt get this many times `train.stall_timeout`: listing
millions of images or choosing kernels takes minutes."""
TICK_S = (0.05, 1.0)
"""Shortest and longest time between two looks; in between a twentieth of the limit."""
TURN_S = (0.5, 5.0)
"""The same of the time that a rank leaves to another to speak first."""


class Ranks(Protocol):
    """What is needed of a job's ranks; see `hvdtrain.comm.ranks`."""

    rank: int

    def gather_text(self, text: str) -> list[str]: ...


class Watchdog:
    """Watches the thread that makes it; `end` ends the process with an exit code."""

    def __init__(
        self,
        timeout_s: float,
        rank: int,
        activity: Activity,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.timeout_s, self.rank = timeout_s, rank
        self.files: StallFiles | None = None
        """Where the stacks go; None as long as the run directory is not known."""
        self.images: Callable[[], str] = str
        """What the next batch of images waits for."""
        self.tick_s = min(max(timeout_s / 20, TICK_S[0]), TICK_S[1])
        self._turn_s = min(max(timeout_s / 20, TURN_S[0]), TURN_S[1])
        self._activity, self._end = activity, end
        self._watched = threading.get_ident()
        self._beats, self._idle_s = activity.beats, 0.0
        self._written: Path | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def limit_s(self) -> float:
        """Longest time without progress, at this point of the attempt."""
        return self.timeout_s * (1 if self._activity.stepped else FIRST)

    def tick(self) -> None:
        """Look once; ends the process if the time is over."""
        if self._beats != self._activity.beats:
            self._beats, self._idle_s = self._activity.beats, 0.0
            if self._written is not None:
                self._forget()
            return
        before, self._idle_s = self._idle_s, self._idle_s + self.tick_s
        if before < self.limit_s / 2 <= self._idle_s:
            self._write(self._standing())
        over = self._idle_s - self.limit_s
        if over < 0:
            return
        if before < self.limit_s:
            noticed()  # one that came with the end of a suspension
        elif noticed():
            self._end(StallError.exit_code)  # another rank has told it
        now = self._standing()
        if over >= self._turns(now) * self._turn_s:
            self._tell(now)
            self._end(StallError.exit_code)

    def _run(self) -> None:
        while not self._ended.wait(self.tick_s):
            self.tick()

    def _standing(self) -> Standing:
        frame = sys._current_frames().get(self._watched)
        return standing(frame, bounded(self.images, 1.0) or "")

    def _turns(self, now: Standing) -> int:
        """How many turns others may speak first: the culprit speaks before those that wait for it,
        and a lower rank, whose end makes the launcher end the others, before a higher one."""
        later = 3 if now.for_ranks else 0
        return later + min(self.rank, 3)

    def _write(self, now: Standing, *, told: bool = False) -> None:
        files = self.files or StallFiles(
            Path(tempfile.gettempdir()) / f"hvdtrain-stall-{os.getpid()}", []
        )
        frame = sys._current_frames().get(self._watched)
        self._written = bounded(
            lambda: files.write(self.rank, now, self._watched, frame, told=told)
        )

    def _forget(self) -> None:
        """There is progress again: nobody needs the stacks."""
        files, self._written = self.files, None
        if files is not None:
            bounded(lambda: files.remove(self.rank))

    def _tell(self, now: Standing) -> None:
        doing, files = now.doing, self.files
        if files is not None and bounded(lambda: files.told(self.rank)):
            return  # this rank was stopped, and goes on as the launcher ends it
        self._write(now, told=True)
        if now.for_ranks and files is not None:
            doing = bounded(lambda: files.others(self.rank)) or doing
        setting = "train.stall_timeout"
        if not self._activity.stepped:
            setting = f"{FIRST} × {setting}, before the first step"
        stacks = f"its stacks are in {self._written}" if self._written else "no stacks were written"
        text = (
            f"rank {self.rank} on {socket.gethostname()}: no progress for {self.limit_s:g} s ({setting}) "
            f"at {self._activity.place()}: {doing}; {stacks}; go on with --resume auto, and if it "
            "was only slow, with a longer train.stall_timeout"
        )
        bounded(lambda: print_error(text))


_watchdog: Watchdog | None = None


@contextlib.contextmanager
def watching(timeout_s: float, rank: int) -> Iterator[None]:
    """Watch this thread until the end of the context; `timeout_s` 0: do not.

    Inside of another such context, that one goes on, with these values.
    """
    global _watchdog
    outer = _watchdog
    if outer is not None:
        outer.rank = rank
        yield
        return
    if timeout_s == 0:
        yield
        return
    activity = present()
    activity.stepped = False
    _watchdog = Watchdog(timeout_s, rank, activity)
    _watchdog.start()
    try:
        yield
    finally:
        _watchdog.stop()
        _watchdog = None


def leave_stacks_in(folder: Path, ranks: Ranks) -> None:
    """Have the stacks of stalled ranks written below `folder`; every rank must call it."""
    own = f"{socket.gethostname()}\n{_unused(folder) if ranks.rank == 0 else ''}"
    texts = [text.split("\n") for text in ranks.gather_text(own)]
    if _watchdog is not None:
        _watchdog.files = StallFiles(folder / texts[0][1], [host for host, _ in texts])


def _unused(folder: Path) -> str:
    """The time, as the name of a new folder in `folder`, also where the clock was set back."""
    stamp, number = time.strftime(STAMP), 1
    name = stamp
    while (folder / name).exists():
        number += 1
        name = f"{stamp}-{number}"
    return name


def ask_about_images(doing: Callable[[], str]) -> None:
    """Have `doing` say what the next batch of images waits for."""
    if _watchdog is not None:
        _watchdog.images = doing
