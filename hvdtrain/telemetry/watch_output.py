"""What a watched loop leaves behind and shows: a run directory, an endpoint on each rank, a report."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from pathlib import Path

import torch
from pydantic import ValidationError

from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.metrics import Metrics
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.paths import RunPaths, fresh_stamp
from hvdtrain.streams import print_error_line
from hvdtrain.telemetry.discovery import publish, withdraw
from hvdtrain.telemetry.live import Live
from hvdtrain.telemetry.prometheus import Exporter, Watched
from hvdtrain.telemetry.reports import End, Note, Report, Scaling, json_text
from hvdtrain.telemetry.sinks import JsonLines, Sink
from hvdtrain.versions import installed_versions

SETTINGS = (
    *("enabled", "port", "bind", "token_file", "tls_cert", "tls_key", "tls_client_ca"),
    *("insecure", "file_sd_dir"),
)
"""Of the section `metrics` of a config, those that a watched loop may be given."""


class WatchOutput:
    """The outputs of one rank: every rank serves metrics, rank 0 has the files and the live page."""

    def __init__(
        self, name: str, output: str, model: str, metrics: dict[str, object], comm: Comm
    ) -> None:
        """Every rank must call. Raises ConfigError or ResourceError on all ranks."""
        with together(comm):
            self._metrics = _checked(metrics)
            root = _new_directory(Path(output), name) if comm.rank == 0 else Path()
        self.paths = RunPaths(Path(comm.gather_text(str(root))[0]))
        self.hosts = comm.gather_text(socket.gethostname())
        """[ranks]"""
        self._comm = comm
        self._sinks: list[Sink] = []
        self.exporter: Exporter | None = None
        try:
            with together(comm):
                self._open(model)
            publish(self._metrics, comm, self.paths, self)
        except BaseException:
            self.close()
            raise

    def write(self, report: Report) -> None:
        """Give one report to every sink."""
        for sink in self._sinks:
            sink.write(report)

    def say(self, text: str) -> None:
        """Show a line on rank 0, beside what the watched program prints."""
        if self._comm.rank == 0:
            print_error_line(f"hvdtrain: {text}")

    def note(self, text: str) -> None:
        """Show a line on rank 0, and report it."""
        self.say(text)
        self.write(Note(text))

    def end(self, end: End, scaling: Scaling) -> None:
        """Report the end of the loop, the same on every rank; rank 0 writes the summary and the page,
        and shows a line. `scaling`: of the last interval."""
        self.write(end)
        if self._comm.rank == 0:
            withdraw(self._metrics, self._comm, self.paths)
            write_atomically(self.paths.summary, json_text(end.values(), indent=1).encode())
            self._write_page()
            self.say(_last_words(scaling, end))

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()

    def _open(self, model: str) -> None:
        if self._comm.rank == 0:
            self._sinks.append(JsonLines(self.paths.events, self.say))
            self._describe()
        if self._metrics.enabled:
            shown = self.paths.name
            live = Live(shown, model, self.hosts) if self._comm.rank == 0 else None
            self.exporter = Exporter(Watched(self._metrics, shown, model), self._comm, live)
            self._sinks.append(self.exporter)

    def _write_page(self) -> None:
        try:
            from hvdtrain.report.write import write_report

            write_report([self.paths.root], self.paths.report)
        except Exception as error:  # noqa: BLE001
            self.note(f"warning: no report.html: {error}")

    def _describe(self) -> None:
        environment = {
            "versions": installed_versions(),
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "world_size": self._comm.size,
            "threads_per_rank": torch.get_num_threads(),
            "command": sys.argv,
            "watched": True,
        }
        write_atomically(self.paths.environment, json.dumps(environment, indent=1).encode())


def _checked(given: dict[str, object]) -> Metrics:
    others = [key for key in given if key not in SETTINGS]
    if others:
        raise ConfigError(
            f"watch.start: metrics: {', '.join(others)}: not for a watched loop; known are "
            f"{', '.join(SETTINGS)}"
        )
    try:
        return Metrics.model_validate(given)
    except ValidationError as errors:
        found = [
            f"watch.start: metrics: {'.'.join(map(str, error['loc']))}: {error['msg']}"
            for error in errors.errors(include_url=False)
        ]
        raise ConfigError(*found) from None


def _new_directory(output: Path, name: str) -> Path:
    """`output`/`name`-TIME, made now; another program may take a name at the same moment."""
    if not name or os.sep in name or name.startswith("."):
        raise ConfigError(f"watch.start: name: expected the name of a folder, found {name!r}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        stamped = f"{name}-{fresh_stamp(output, name)}"
        for number in range(1, 1000):
            root = output / (stamped if number == 1 else f"{stamped}-{number}")
            try:
                root.mkdir()
            except FileExistsError:
                continue
            return root.absolute()
    except OSError as error:
        raise ResourceError(f"watch.start: output: {output}: {error.strerror}") from None
    raise ResourceError(f"watch.start: output: {output}: no free name for {stamped}")


def _last_words(scaling: Scaling, end: End) -> str:
    """One line at the end of a loop."""
    text = f"watched {end.steps} steps, {end.images_per_second:,.0f} samples/s"
    if end.scaling_efficiency is not None:
        text += f", efficiency {end.scaling_efficiency:.0%}"
    if scaling.explanation:
        text += f"; at last {scaling.explanation}"
    return f"{text}; report: {end.run_dir}/report.html"
