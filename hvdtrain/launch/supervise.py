"""Start a job again after a crash, from its last checkpoint."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from hvdtrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Preempted,
    ResourceError,
    TrainingError,
    exit_codes,
)
from hvdtrain.launch.job import Ended
from hvdtrain.signals import StopSignals

SAME_AGAIN = (ConfigError, DataError, CheckpointError, TrainingError)
"""Another attempt would end in the same way."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
"""The wait before a restart doubles with each attempt that brought no new checkpoint."""


@dataclass(frozen=True)
class Supervised:
    """One job that may be started several times."""

    start: Callable[[Callable[[], bool]], Ended]
    """Run one attempt and wait for its end, given what tells whether a signal to stop has come meanwhile.
    Raises ResourceError, CommError."""
    max_restarts: int
    """Restarts in succession without a new checkpoint between them."""
    newest: Callable[[], str | None]
    """The name of the newest checkpoint of the run; None if there is none."""
    tell: Callable[[str], None]
    """Shows the user one line, and keeps it with the run."""

    def run(self) -> int:
        """Start attempts until one ends well, is stopped, or ends in a way that would repeat.

        Returns the exit code of the last attempt; Preempted's if a signal came between two.
        """
        failures, attempt = 0, 0
        with StopSignals() as stop:
            while True:
                if stop.requested:
                    return Preempted.exit_code
                attempt += 1
                before, began = self.newest(), time.monotonic()
                ended = self.start(lambda: stop.requested)
                if ended.recalled and ended.code == Preempted.exit_code and not ended.signalled:
                    self.tell(f"attempt {attempt} stopped in order, to go on with more hosts")
                    continue
                if ended.signalled or not _worth_another(ended.code, first=attempt == 1):
                    return ended.code
                failures = 1 if self.newest() != before else failures + 1
                took = f"attempt {attempt} ended after {time.monotonic() - began:.0f} s with {_text(ended.code)}"
                if failures > self.max_restarts:
                    if self.max_restarts:
                        self.tell(
                            f"{took}: no restart is left of --max-restarts {self.max_restarts}"
                        )
                    return ended.code
                wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1))
                self.tell(f"{took}: starting again in {wait_s:.0f} s, from the last checkpoint")
                if not _waited(wait_s, stop):
                    self.tell("stopped before the next attempt; resume it with --resume")


def _worth_another(code: int, *, first: bool) -> bool:
    """Whether another attempt may end better.

    A port, a disk or a directory that cannot be used is no reason for one, unless it may be a process
    of the attempt before that still holds it.
    """
    if code == ResourceError.exit_code:
        return not first
    return code not in (0, Preempted.exit_code, *(kind.exit_code for kind in SAME_AGAIN))


def _text(code: int) -> str:
    """An exit code in words."""
    if code in exit_codes():
        return f"exit code {code} ({exit_codes()[code]})"
    with contextlib.suppress(ValueError):
        return f"exit code {code} ({Signals(code - 128).name})"
    return f"exit code {code}"


def _waited(seconds: float, stop: StopSignals) -> bool:
    """Wait; False as soon as a stop signal has come."""
    until = time.monotonic() + seconds
    while not stop.requested and time.monotonic() < until:
        time.sleep(0.1)
    return not stop.requested


def keep_note(events: Path, text: str) -> None:
    """Append a note to the log of a run that no rank writes now; nothing if that is impossible."""
    line = json.dumps({"time": round(time.time(), 3), "kind": "note", "text": text}).encode()
    with contextlib.suppress(OSError), events.open("r+b") as file:
        if file.seek(0, 2) > 0:
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")
