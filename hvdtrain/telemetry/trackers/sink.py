"""A tracker of experiments, in a process of its own: the sink that feeds it.

The libraries of trackers start threads and processes, wait for networks when a program ends, and catch
its output. Beside training they can do none of that: the process has its own session, is fed through a
pipe that is never waited for, and is ended when its time is up.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdtrain import activity
from hvdtrain.telemetry.reports import End, Report, Start, json_text

CLOSE_S = 30.0
"""Longest wait at the end of an attempt for what has not been sent yet."""
STOP_S = 10.0
"""The same if the run is not complete: a job that is stopped has little time."""
MAX_WAITING_BYTES = 4 * 2**20
"""Of reports that the process has not taken yet; more are dropped, and counted."""
BEAT_S = 0.2
SENT = ("train", "eval", "weights", "stop", "end")
"""Kinds of reports that go out. Notes do not: they name files and hosts."""
WORKER = "hvdtrain.telemetry.trackers.worker"


class Tracker:
    """Sends the reports of a run to one tracker; no fault of it is raised, and none delays a step.

    `name`: a key of `worker.TRACKERS`. `about`: what the run is, see `worker.About`. The process starts
    when training does: an attempt that fails before leaves no trace in the tracker.
    """

    def __init__(
        self,
        name: str,
        title: str,
        about: dict[str, Any],
        note: Callable[[str], None],
        close_s: float = CLOSE_S,
    ) -> None:
        self._name, self._title, self._about, self._note = name, title, about, note
        self._close_s = close_s
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting, self._answer = bytearray(), bytearray()
        self._dropped = 0
        self._complete = self._done = False

    def write(self, report: Report) -> None:
        """Hand one report on, as far as the process takes it at once; show what it has to tell."""
        if isinstance(report, Start) and self._process is None:
            self._start()
        if self._process is None or report.kind not in SENT:
            return
        self._complete |= isinstance(report, End)
        self._put(record(report))
        if not self._exchange():
            self._end("its process has ended: nothing more is sent")

    def close(self) -> None:
        """Have the rest sent, the report page with it, in `close_s` at most; then end the process."""
        if self._process is None:
            return
        page = Path(self._about["root"]) / "report.html"
        shown = self._complete and page.is_file()
        self._put({"kind": "close", "page": str(page) if shown else None})
        activity.enter(f"completing {self._title}")
        limit_s = self._close_s if self._complete else min(self._close_s, STOP_S)
        end = time.monotonic() + limit_s
        while (going := self._exchange()) and time.monotonic() < end:
            self._wait()
            activity.beat()  # a slow tracker is no stall of training
        late = f"not complete after {limit_s:.0f} s, and left as it is"
        self._end(late if going else "its process has ended before all was sent")

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, self._name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a signal for the ranks is not for it
            )
        except OSError as error:
            self._tell(f"cannot be started: {error.strerror}")
            return
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._put({"kind": "about", **self._about})
        self._exchange()
        self._note(f"{self._title}: the numbers of this run go to {self._about['place']}")

    def _end(self, fault: str) -> None:
        """End the process and all that its library has started. `fault` is told if it was not done."""
        process, self._process = self._process, None
        assert process is not None
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with process:  # closes the pipes
            process.wait()
        if not self._done:
            self._tell(fault)
        if self._dropped:
            self._tell(f"{self._dropped:,} reports were not taken in time, and are missing there")

    def _put(self, message: dict[str, Any]) -> None:
        line = json_text(message).encode() + b"\n"
        if len(self._waiting) + len(line) > MAX_WAITING_BYTES:
            self._dropped += 1
        else:
            self._waiting += line

    def _exchange(self) -> bool:
        """Write and read what is possible at once; False once the process has nothing to say any more."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while self._waiting:
                del self._waiting[: os.write(process.stdin.fileno(), self._waiting)]
        except BlockingIOError:
            pass
        except OSError:  # it has ended
            self._waiting.clear()
        going = True
        with contextlib.suppress(BlockingIOError):
            while going:
                piece = os.read(process.stdout.fileno(), 2**16)
                self._answer += piece
                going = bool(piece)
        self._show()
        return going

    def _show(self) -> None:
        """Tell the complete lines of the answer."""
        *lines, rest = bytes(self._answer).split(b"\n")
        self._answer = bytearray(rest)
        for line in lines:
            text = json.loads(line)
            if text is None:
                self._done = True
            else:
                self._tell(str(text))

    def _wait(self) -> None:
        """Until the process can take or tell something, or a moment has passed."""
        process = self._process
        assert process is not None
        with selectors.DefaultSelector() as selector:
            if self._waiting:
                selector.register(process.stdin, selectors.EVENT_WRITE)  # type: ignore[arg-type]
            selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            selector.select(BEAT_S)

    def _tell(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else " " for c in text)
        self._note(f"warning: {self._title}: {shown}")


def record(report: Report) -> dict[str, Any]:
    """The numbers of a report as `kind/field`, with the step they belong to; no texts leave the run."""
    values = {
        f"{report.kind}/{key}": value
        for key, value in report.values().items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    step = values.pop(f"{report.kind}/step", None)
    step = values.get(f"{report.kind}/steps") if step is None else step
    return {"kind": report.kind, "time": time.time(), "step": step, "values": values}
