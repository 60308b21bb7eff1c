"""Progress on rank 0: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import IO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hvdtrain import activity
from hvdtrain.report.text import duration, efficiency_text, views_text
from hvdtrain.streams import Output, cursor_is_hidden
from hvdtrain.telemetry.reports import Eval, Measured, Note, Report, Train

SOON = 1.2
"""A plain progress line is left out if the next report will be there in time for a sign of life, at
this multiple of the time between the last two reports."""
WIDEST_BAR, NARROW_BAR, LEAST_BAR = 24, 10, 4
"""Characters of the bar: it shrinks to NARROW_BAR before a part is left out, and further, or vanishes
below LEAST_BAR, before one of NEEDED is."""
OPTIONAL = ("scaling", "noise", "px", "phase", "lr", "top1", "speed", "loss")
NEEDED = ("epoch", "left")
"""Parts of the line that are left out where the terminal is too narrow, in this order."""

Part = tuple[str, str]
"""Name, as in OPTIONAL and NEEDED, and text."""


def open_console(lost: Callable[[str], None]) -> Bar | Plain:
    """A bar if a person sees standard output, plain lines otherwise.

    `lost` gets the reason if nobody reads the output any more.
    """
    output = Output(lost)
    return Bar(output) if activity.watched(os.environ) else Plain(output)


def train_text(report: Train) -> str:
    """One line of progress."""
    return "  ".join(text for _name, text in train_parts(report))


def train_parts(report: Train) -> list[Part]:
    """The same by parts, in their order."""
    measured, scaling = report.measured, report.scaling
    left = f"{duration(report.eta_s)} left" if report.eta_s is not None else "time left unknown"
    parts = [
        ("epoch", f"epoch {report.epoch:6.2f}/{report.epochs}"),
        ("left", left),
        ("phase", f"phase {report.phase + 1}"),
        ("px", f"{report.image_size} px"),
        *_results(measured),
        ("lr", f"lr {report.lr:.4g}"),
        ("speed", f"{measured.images_per_second:,.0f} images/s"),
    ]
    if scaling.efficiency:
        parts.append(("scaling", f"efficiency {efficiency_text(scaling.efficiency)}"))
    if report.gradient_noise_scale:
        parts.append(("noise", f"noise scale {report.gradient_noise_scale:,.0f}"))
    if scaling.cause is not None:
        parts.append(("scaling", f"lost to {scaling.cause} {scaling.lost[scaling.cause]:.0%}"))
        if scaling.straggler is not None:
            parts.append(("scaling", f"by rank {scaling.straggler}"))
    elif measured.data_wait_ratio >= 0.05:
        parts.append(("scaling", f"waits for data {measured.data_wait_ratio:.0%}"))
    return parts


def _results(measured: Measured) -> list[Part]:
    if measured.loss is None or measured.top1 is None:
        return [("loss", "no loss: every image was masked as bad")]
    return [("loss", f"loss {measured.loss:.4f}"), ("top1", f"top-1 {measured.top1:.4f}")]


def eval_text(report: Eval) -> str:
    """One line for an evaluation."""
    return (
        f"epoch {report.epoch:6.2f}  evaluated {report.images:,} images"
        f"{views_text(report.views)}: "
        f"top-1 {report.top1:.4f}  top-5 {report.top5:.4f}  loss {report.loss:.4f}"
    )


def bar_line(progress: float, parts: list[Part], width: int, *, ascii_only: bool = False) -> str:
    """Bar, percentage and parts in at most `width` characters.

    The bar shrinks and parts are left out in the order of OPTIONAL and NEEDED. Percentage and
    activity stay; the end of the activity is cut off if need be.
    """
    order, share, line = OPTIONAL + NEEDED, f"{progress:>4.0%}", ""
    for left_out in range(len(order) + 1):
        texts = [text for name, text in parts if name not in order[:left_out]]
        line = "  ".join([share, *texts])
        room = width - len(line) - 2
        if room >= (NARROW_BAR if left_out < len(OPTIONAL) else -2):
            return _bar(progress, min(room, WIDEST_BAR), ascii_only) + line
    return line[:width]


def _bar(progress: float, width: int, ascii_only: bool) -> str:
    if width < LEAST_BAR:
        return ""
    done = round(min(max(progress, 0.0), 1.0) * width)
    full, empty = ("#", ".") if ascii_only else ("━", "╌")
    return full * done + empty * (width - done) + "  "


class Plain:
    """Lines for a log file: every evaluation, and progress every few seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._reported = -math.inf

    def write(self, report: Report) -> None:
        """Print one report; of those about training only as many as signs of life are due.

        Otherwise each would stand beside a line of `activity` that says the same.
        """
        if isinstance(report, Train):
            now = time.monotonic()
            between_s, self._reported = now - self._reported, now
            if activity.due_in() <= SOON * between_s:
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
        activity.shown()


class Bar:
    """A line that shows progress and what is being done, evaluations as lines above it."""

    def __init__(self, output: Output) -> None:
        activity.silence()
        self._report: Train | None = None
        self._console = Console(file=cast("IO[str]", output), soft_wrap=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._line,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        cursor_is_hidden(True)
        self._live.start()

    def write(self, report: Report) -> None:
        """Move the bar, or print a line above it."""
        if isinstance(report, Train):
            self._report = report
        elif isinstance(report, Eval):
            self._console.print(eval_text(report), highlight=False, soft_wrap=True)
        elif isinstance(report, Note):
            self._console.print(report.text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        self._live.stop()
        cursor_is_hidden(False)

    def _line(self) -> Text:
        """The present line; called from a thread, twice a second."""
        parts = [("activity", activity.text())]
        progress = 0.0
        if self._report is not None:
            progress = self._report.progress
            parts = train_parts(self._report)[:2] + parts + train_parts(self._report)[2:]
        # One column stays free: some terminals break a line that fills the last one.
        width = self._console.width - 1
        line = bar_line(progress, parts, width, ascii_only=self._console.options.ascii_only)
        return Text(line, no_wrap=True, overflow="crop")
