"""Where reports go: console, JSON lines, Prometheus and others. A sink is `write(report)`."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.config.trackers import require_trackers
from hvdtrain.engine.reducer import Reducer
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.streams import print_error_line
from hvdtrain.telemetry.console import open_console
from hvdtrain.telemetry.live import Live
from hvdtrain.telemetry.lost_time import LostTime
from hvdtrain.telemetry.meter import Interval
from hvdtrain.telemetry.outputs import Pushgateway, TensorBoard, TextFile
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Note, Report, json_text
from hvdtrain.telemetry.trackers.all import trackers


class Sink(Protocol):
    """A place for reports."""

    def write(self, report: Report) -> None:
        """Take one report."""

    def close(self) -> None:
        """Finish; no report follows."""


class JsonLines:
    """`events.jsonl`: one JSON object per report, with its time and kind.

    A full disk does not end the run: one note tells, and lines are written again once there is room.
    Times go on steadily from the start of the attempt, whatever happens to the clock of the machine.
    """

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path, self._note = path, note
        try:
            self._file = path.open("ab", buffering=0)
            self._torn = _torn(path)
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written: {error.strerror}") from None
        self._lost = 0
        self._epoch_s = time.time() - time.monotonic()

    def write(self, report: Report) -> None:
        """Append one line."""
        record = {
            "time": round(self._epoch_s + time.monotonic(), 3),
            "kind": report.kind,
            **report.values(),
        }
        line = json_text(record).encode() + b"\n"
        try:
            self._reopen_if_removed()
            self._append(b"\n" + line if self._torn else line)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                self._note(
                    f"warning: {self._path}: cannot be written: {error.strerror}; training goes on, "
                    "and reports are missing there"
                )

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _reopen_if_removed(self) -> None:
        """Begin the file anew once its folder is there again."""
        if os.fstat(self._file.fileno()).st_nlink == 0 and self._path.parent.is_dir():
            self._file.close()
            self._file, self._torn = self._path.open("ab", buffering=0), False

    def _append(self, line: bytes) -> None:
        """Write all of it; a disk that is nearly full takes a part, which stays a torn line."""
        written = self._file.write(line) or 0
        self._torn = written < len(line) and (self._torn or written > 0)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _torn(path: Path) -> bool:
    """Whether the file ends within a line, as after a crash."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class Sinks:
    """All sinks of one rank. Every rank exports metrics; only rank 0 has a console and a log."""

    def __init__(self, cfg: Config, comm: Comm, paths: RunPaths, hosts: list[str]) -> None:
        """`hosts` [ranks]."""
        first = comm.rank == 0
        if first:
            require_trackers(cfg.metrics, os.environ)
        live = Live(paths.name, cfg.model.name, hosts) if first and cfg.metrics.enabled else None
        self.exporter = Exporter(cfg, comm, live) if cfg.metrics.enabled else None
        self._sinks: list[Sink] = [self.exporter] if self.exporter else []
        self._rank, metrics = comm.rank, cfg.metrics
        if self.exporter and metrics.textfile_dir is not None:
            labels = {"run": paths.name, "rank": str(comm.rank)}
            folder = Path(metrics.textfile_dir)
            self._sinks.append(TextFile(folder, self.exporter.registry, labels, self.note))
        if first and metrics.pushgateway is not None:
            self._sinks.append(Pushgateway(metrics.pushgateway, paths.name, self.note))
        if first and metrics.tensorboard:
            self._sinks.append(TensorBoard(paths.tensorboard, self.note))
        if first:
            self._sinks += trackers(cfg, paths, self.note)
        self._console = open_console(self._console_lost) if first else None
        if self._console:
            self._sinks += [JsonLines(paths.events, self.note), self._console]

    def write(self, report: Report) -> None:
        """Give one report to every sink."""
        for sink in self._sinks:
            sink.write(report)

    def say(self, text: str) -> None:
        """Show a line on the console only; it is of no use in the log."""
        if self._console:
            self._console.write(Note(text))

    def tell(self, text: str) -> None:
        """Show a line on the console from any rank; with the rank's number on others than rank 0."""
        if self._console:
            self.say(text)
        else:
            print_error_line(f"rank {self._rank}: {text}")

    def observe_step(self, seconds: float, samples: int, data_s: float, reducer: Reducer) -> None:
        """Count one update in the metrics."""
        if self.exporter:
            self.exporter.observe_step(seconds, samples, data_s, reducer)

    def observe_interval(self, interval: Interval, lost: LostTime | None) -> None:
        """Give the steps of all ranks since the last report to the metrics endpoint and the live
        page; `lost` is None with one rank."""
        if self.exporter:
            self.exporter.observe_interval(interval, lost)

    def observe_bad(self, reason: str) -> None:
        """Count one training image masked on this rank in the metrics."""
        if self.exporter:
            self.exporter.bad_samples[reason].inc()

    def observe_retries(self, count: int) -> None:
        """Count reads that this rank has tried again in the metrics."""
        if self.exporter:
            self.exporter.read_retries.inc(count)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()

    def _console_lost(self, reason: str) -> None:
        """The reader of standard output has gone, for example `| head`."""
        text = f"warning: standard output is gone ({reason}): training goes on without it"
        print_error_line(text)
        self.note(text)

    def note(self, text: str) -> None:
        """Report what this rank alone knows; only rank 0 has a console."""
        if self._rank == 0:
            self.write(Note(text))
        else:
            self.tell(text)
