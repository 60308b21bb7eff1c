"""What this process is doing, shown on standard error whenever nothing else was printed for a while.

Importing, listing, decoding and calibrating take minutes on slow disks and large datasets. Only the
process that talks to the user (rank 0) runs `showing()`; elsewhere `enter` and `step` print nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hvdtrain.launch.variables import launched
from hvdtrain.streams import clear_status, print_error_line, show_status

INTERVAL_S = 1.8
"""Longest time without a line. The promise is two seconds; the thread needs some time to wake up."""
ELAPSED_FROM_S = 1.0
"""Time after which a stage or a step shows how long it has taken."""
TAGS = ("-tag-output", "--tag-output", "-timestamp-output", "--timestamp-output")
"""Options with which mpirun writes a prefix before each line; horovodrun uses the second."""


def watched(env: Mapping[str, str], parent: Path | None = None) -> bool:
    """Whether a person sees standard output, in a terminal that can rewrite a line.

    mpirun gives its ranks a terminal in any case, so under a launcher the launcher's own output
    counts, and a prefix before each line counts against it. `parent`: the launcher's folder in
    /proc. TTY_COMPATIBLE=1 or 0 overrides this; rich follows the same convention.
    """
    if env.get("TTY_COMPATIBLE") in ("0", "1"):
        return env["TTY_COMPATIBLE"] == "1"
    if env.get("TERM") in ("dumb", "unknown"):  # cannot rewrite a line
        return False
    if not sys.stdout.isatty() or not launched(env):
        return sys.stdout.isatty()
    parent = parent or Path(f"/proc/{os.getppid()}")
    try:
        words = (parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
        output = str((parent / "fd/1").readlink())
    except OSError:
        return False
    return output.startswith(("/dev/pts/", "/dev/tty")) and not set(TAGS) & set(words)


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 hours."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


class _Now(NamedTuple):
    stage: str
    done: int
    steps: int
    """0: not known."""
    unit: str
    """What is counted; empty: steps."""
    began: float
    """When the stage, or the step after the `done` ones, began."""
    entered: float | None = None
    """When the stage began, if `text` says how much time is left."""


class Activity:
    """The present stage, its step, and when something was last shown."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = _Now("starting", 0, 0, "", clock())
        """Replaced as a whole, since several threads use it."""
        self._shown_at = clock()
        self.step_s: float | None = None
        """How long the last step of this stage took; None before its end."""
        self.beats = 0
        """Signs of progress so far: stages, steps, and parts of steps."""
        self.stepped = False
        """Whether a step of any stage is done."""

    def enter(self, stage: str, steps: int = 0, unit: str = "", *, time_left: bool = False) -> None:
        """Begin a stage, of `steps` steps, or of as many of `unit`, if their number is known.

        `time_left`: the steps take about the same time, so `text` says how much is left.
        """
        now = self._clock()
        self._now = _Now(stage, 0, steps, unit, now, now if time_left else None)
        self.step_s = None
        self.beats += 1

    def step(self, done: int) -> None:
        """The number of steps that are done."""
        now, before = self._clock(), self._now
        self.step_s = (now - before.began) / max(1, done - before.done)
        self._now = before._replace(done=done, began=now)
        self.stepped |= not self._now.unit
        self.beats += 1

    def beat(self) -> None:
        """A part of a step is done, such as a batch."""
        self.beats += 1

    def place(self) -> str:
        """Stage and what is done of it, without times."""
        stage, done, steps, unit, *_ = self._now
        amount = f"{done:,} of {steps:,} {unit}" if unit else f"step {done} of {steps}"
        return f"{stage}, after {amount}" if steps else stage

    def text(self) -> str:
        """Stage, step, the time since either began, and the time left if `enter` asked for it."""
        stage, done, steps, unit, began, entered = self._now
        elapsed = self._clock() - began
        amount = f"{done:,} of {steps:,} {unit}" if unit else f"step {done} of {steps}"
        parts = [stage] + ([amount] if steps else [])
        parts += [f"{elapsed:.0f} s"] if elapsed >= ELAPSED_FROM_S else []
        if entered is not None and done:
            left_s = (began - entered) / done * (steps - done) - elapsed
            parts.append(f"about {duration(max(0.0, left_s))} left")
        return ", ".join(parts)

    def shown(self) -> None:
        """Something was printed: the next line is due an interval later."""
        self._shown_at = self._clock()

    def due_in(self) -> float:
        """Seconds until a line is due; 0 or less if it is."""
        return self._shown_at + INTERVAL_S - self._clock()


_activity = Activity()
enter, step, beat, text = _activity.enter, _activity.step, _activity.beat, _activity.text
shown, due_in = _activity.shown, _activity.due_in
_silent = threading.Event()


def present() -> Activity:
    """The activity of this process."""
    return _activity


def silence() -> None:
    """Show nothing more here: a progress bar shows `text()` from now on."""
    _silent.set()
    clear_status()


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """Show from a thread what the process is doing, until the end of the context."""
    _silent.clear()
    _activity.shown()
    rewrite = watched(os.environ) and sys.stderr.isatty()
    thread = threading.Thread(
        target=show_until,
        args=(_silent, _activity, show_status if rewrite else _line),
        name="activity",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        silence()
        thread.join(timeout=INTERVAL_S)


def show_until(ended: threading.Event, activity: Activity, show: Callable[[str], None]) -> None:
    """Call `show` each time a line is due, until `ended` is set."""
    while not ended.wait(max(activity.due_in(), 0.01)):
        if activity.due_in() <= 0:
            activity.shown()
            show(activity.text())


def _line(text: str) -> None:
    print_error_line(f"hvdtrain: {text}")
