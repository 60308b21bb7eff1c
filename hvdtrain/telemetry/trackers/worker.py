"""The process of one tracker: takes reports from standard input, sends them, and says what fails.

Run as `python -m hvdtrain.telemetry.trackers.worker NAME`. In: lines of JSON, first what the run is. Out:
lines of JSON, each a text for the user, at the end null. It imports neither torch nor Horovod.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

MAX_WAITING = 10_000
"""Reports kept while the tracker cannot be reached; then the oldest are dropped."""
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0
"""Between two attempts to reach it; each wait is twice as long as the one before."""
ORPHAN_S = 60.0
"""Longest life after that of training, which ends this process unless it was killed."""
TRACKERS = {
    "wandb": ("hvdtrain.telemetry.trackers.wandb_run", "WandbRun"),
    "mlflow": ("hvdtrain.telemetry.trackers.mlflow_run", "MlflowRun"),
    "kubeflow": ("hvdtrain.telemetry.trackers.kubeflow", "KubeflowStatus"),
}
"""Module and class by name."""
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
MAX_TEXT = 300
QUIET = {
    # A request that fails is repeated by us, later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # Nothing about the use of the libraries goes to those who make them.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Settings of the libraries, unless the environment has others."""

Status = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class About:
    """What the run is."""

    run: str
    """Its name: that of the run directory."""
    root: str
    """The run directory."""
    place: str
    """The project or experiment."""
    config: dict[str, Any]
    version: str
    """Of hvdtrain."""


@dataclass(frozen=True)
class Record:
    """The numbers of one report."""

    kind: str
    time: float
    """Unix time of the report."""
    step: int | None
    """Updates since the run began."""
    values: dict[str, float]
    """By `kind/field`."""


class Tracker(Protocol):
    """What a tracker does; every method may raise, and is called again later."""

    def __init__(self, about: About, tell: Callable[[str], None]) -> None:
        """Import the library; nothing is sent yet."""

    def open(self) -> None:
        """Begin the run, or go on with the one whose id is in the run directory."""

    def log(self, record: Record) -> None:
        """Send one record."""

    def finish(self, status: Status, page: Path | None) -> None:
        """Send `page`, and say how the attempt ended."""


class Inbox:
    """Records that are still to be sent, filled by a thread."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._records: deque[Record] = deque()
        self._changed = threading.Condition()
        self.ended = threading.Event()
        self.dropped = 0
        self.page: Path | None = None
        self.status: Status = "failed"
        first = json.loads(next(self._lines))
        self.about = About(**{key: value for key, value in first.items() if key != "kind"})
        threading.Thread(target=self._fill, daemon=True).start()

    def __len__(self) -> int:
        return len(self._records)

    def first(self) -> Record | None:
        """The oldest, once there is one; None if no more follow. It stays until `done`."""
        with self._changed:
            self._changed.wait_for(lambda: self._records or self.ended.is_set())
            return self._records[0] if self._records else None

    def done(self, record: Record) -> None:
        """It was sent."""
        with self._changed:
            if self._records and self._records[0] is record:
                self._records.popleft()

    def _fill(self) -> None:
        with contextlib.suppress(ValueError):  # a line that training did not finish when it crashed
            for line in self._lines:
                message = json.loads(line)
                if message["kind"] == "close":
                    self.page = Path(message["page"]) if message["page"] else None
                    break
                self._take(Record(**message))
        with self._changed:
            self.ended.set()
            self._changed.notify()

    def _take(self, record: Record) -> None:
        ends: dict[str, Status] = {"stop": "stopped", "end": "complete"}
        self.status = ends.get(record.kind, self.status)
        if not record.values:
            return
        with self._changed:
            self._records.append(record)
            if len(self._records) > MAX_WAITING:
                self._records.popleft()
                self.dropped += 1
            self._changed.notify()


def send_all(tracker: Tracker, inbox: Inbox, tell: Callable[[str], None]) -> None:
    """Send records until no more follow. While the tracker fails they wait; the first fault is told."""
    opened = failed = False
    wait_s = FIRST_WAIT_S
    while True:
        try:
            if not opened:
                tracker.open()
                opened = True
            record = inbox.first()
            if record is None:
                tracker.finish(inbox.status, inbox.page)
                break
            tracker.log(record)
        except Exception as error:  # noqa: BLE001 - training goes on whatever happens here
            if inbox.ended.is_set():
                tell(f"{reason(error, os.environ)}: {_missing(inbox, opened)}")
                return
            if not failed:
                tell(f"{reason(error, os.environ)}; training goes on, and it is tried again")
            failed = True
            inbox.ended.wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            continue
        inbox.done(record)
        wait_s = FIRST_WAIT_S
    if inbox.dropped:
        tell(f"{inbox.dropped:,} reports had to wait for too long, and are missing there")


def _missing(inbox: Inbox, opened: bool) -> str:
    if not opened:
        return "nothing of this attempt is there"
    if count := len(inbox) + inbox.dropped:
        return f"the last {count:,} reports of this attempt are missing there"
    return "its end is not noted there"


def reason(error: BaseException, env: Mapping[str, str]) -> str:
    """The first line of an error, without what looks like a secret."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"//[^/@\s]+@", "//", text)
    for name, value in env.items():
        if SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "***")
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _end_with(parent: int) -> None:
    """End all that the library has started, some time after the process `parent` has gone."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(ORPHAN_S)
    os.killpg(os.getpid(), signal.SIGKILL)


def main(name: str) -> None:
    """Serve until the input ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Libraries print on standard output, and read from standard input.
    answers, lines = os.fdopen(os.dup(1), "wb", buffering=0), os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    with contextlib.suppress(OSError):
        os.nice(10)  # training comes first
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # the end of training ends this process

    def tell(text: str | None) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(text).encode() + b"\n")

    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    inbox = Inbox(lines)
    module, kind = TRACKERS[name]
    try:
        tracker: Tracker = getattr(import_module(module), kind)(inbox.about, tell)
    except Exception as error:  # noqa: BLE001
        tell(f"cannot be used: {reason(error, os.environ)}; training goes on without it")
    else:
        send_all(tracker, inbox, tell)
    tell(None)
    os._exit(0)  # without what the library does at an exit: all that is wanted was done


if __name__ == "__main__":
    main(sys.argv[1])
