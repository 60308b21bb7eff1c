"""Progress on rank 0: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hvdtrain.launch.variables import launched
from hvdtrain.report.text import duration
from hvdtrain.streams import Output
from hvdtrain.telemetry.reports import Eval, Measured, Note, Report, Train

PLAIN_INTERVAL_S = 5.0
"""Shortest time between two plain progress lines."""


def open_console(lost: Callable[[str], None]) -> Bar | Plain:
    """A bar if standard output is a terminal, plain lines otherwise.

    `lost` gets the reason if nobody reads the output any more.
    """
    output = Output(lost)
    return Bar(output) if _watched() else Plain(output)


def _watched() -> bool:
    """Whether a person sees the output. mpirun gives its ranks a terminal in any case, so under a
    launcher the launcher's own output counts.

    TTY_COMPATIBLE=1 or 0 overrides this; rich follows the same convention.
    """
    if os.environ.get("TTY_COMPATIBLE") in ("0", "1"):
        return os.environ["TTY_COMPATIBLE"] == "1"
    if not sys.stdout.isatty() or not launched(os.environ):
        return sys.stdout.isatty()
    try:
        return str(Path(f"/proc/{os.getppid()}/fd/1").readlink()).startswith(
            ("/dev/pts/", "/dev/tty")
        )
    except OSError:
        return False


def train_text(report: Train) -> str:
    """One line of progress."""
    measured, scaling = report.measured, report.scaling
    parts = [
        f"epoch {report.epoch:6.2f}/{report.epochs}",
        f"{duration(report.eta_s)} left" if report.eta_s is not None else "time left unknown",
        f"phase {report.phase + 1}",
        f"{report.image_size} px",
        *_results(measured),
        f"lr {report.lr:.4g}",
        f"{measured.images_per_second:,.0f} images/s",
    ]
    if scaling.efficiency:
        parts.append(f"efficiency {scaling.efficiency:.0%}")
    if report.gradient_noise_scale:
        parts.append(f"noise scale {report.gradient_noise_scale:,.0f}")
    if scaling.cause is not None:
        parts.append(f"lost to {scaling.cause} {scaling.lost[scaling.cause]:.0%}")
        if scaling.straggler is not None:
            parts.append(f"by rank {scaling.straggler}")
    elif measured.data_wait_ratio >= 0.05:
        parts.append(f"waits for data {measured.data_wait_ratio:.0%}")
    return "  ".join(parts)


def _results(measured: Measured) -> list[str]:
    if measured.loss is None or measured.top1 is None:
        return ["no loss: every image was masked as bad"]
    return [f"loss {measured.loss:.4f}", f"top-1 {measured.top1:.4f}"]


def eval_text(report: Eval) -> str:
    """One line for an evaluation."""
    return (
        f"epoch {report.epoch:6.2f}  evaluated {report.images:,} images: "
        f"top-1 {report.top1:.4f}  top-5 {report.top5:.4f}  loss {report.loss:.4f}"
    )


class Plain:
    """Lines for a log file: every evaluation, and progress every few seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._next = 0.0

    def write(self, report: Report) -> None:
        """Print one report; progress only if the last line of progress is old enough."""
        if isinstance(report, Train) and time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL_S
            self._print(train_text(report))
        elif isinstance(report, Eval):
            self._print(eval_text(report))
        elif isinstance(report, Note):
            self._print(report.text)

    def close(self) -> None:
        """There is nothing to close."""

    def _print(self, text: str) -> None:
        self._output.write(text + "\n")
        self._output.flush()


class Bar:
    """A progress bar over the whole run, evaluations as lines above it."""

    def __init__(self, output: Output) -> None:
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=Console(file=cast("IO[str]", output), soft_wrap=False),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=1.0)
        self._progress.start()

    def write(self, report: Report) -> None:
        """Move the bar, or print a line above it."""
        console = self._progress.console
        if isinstance(report, Train):
            self._progress.update(
                self._task, completed=report.progress, description=train_text(report)
            )
        elif isinstance(report, Eval):
            console.print(eval_text(report), highlight=False, soft_wrap=True)
        elif isinstance(report, Note):
            console.print(report.text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()
