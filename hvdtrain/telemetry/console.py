"""Progress on rank 0: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hvdtrain.launch.variables import launched
from hvdtrain.report.text import duration

PLAIN_INTERVAL_S = 5.0
"""Shortest time between two plain progress lines."""


def open_console() -> Bar | Plain:
    """A bar if a person watches standard output, plain lines otherwise."""
    return Bar() if _watched() else Plain()


def _watched() -> bool:
    """mpirun gives ranks a terminal of its own, so ask what its own output is, too.

    TTY_COMPATIBLE=1 or 0 (a convention that rich follows, too) settles it.
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


def train_text(values: dict[str, Any]) -> str:
    """One line of progress."""
    parts = [
        f"epoch {values['epoch']:6.2f}/{values['epochs']}",
        *([f"{duration(values['eta_s'])} left"] if "eta_s" in values else []),
        *([f"phase {values['phase'] + 1}"] if "phase" in values else []),
        f"{values['image_size']} px",
        f"loss {values['loss']:.4f}",
        f"top-1 {values['top1']:.4f}",
        f"lr {values['lr']:.4g}",
        f"{values['images_per_second']:,.0f} images/s",
    ]
    if values.get("efficiency"):
        parts.append(f"efficiency {values['efficiency']:.0%}")
    if values.get("gradient_noise_scale"):
        parts.append(f"noise scale {values['gradient_noise_scale']:,.0f}")
    if cause := values.get("cause"):
        parts.append(f"lost to {cause} {values[f'lost_{cause}_ratio']:.0%}")
        if values.get("straggler") is not None:
            parts.append(f"by rank {values['straggler']}")
    elif values["data_wait_ratio"] >= 0.05:
        parts.append(f"waits for data {values['data_wait_ratio']:.0%}")
    return "  ".join(parts)


def eval_text(values: dict[str, Any]) -> str:
    """One line for an evaluation."""
    text = f"epoch {values['epoch']:6.2f}  evaluated {values['images']:,} images"
    return (
        f"{text}: top-1 {values['top1']:.4f}  top-5 {values['top5']:.4f}  loss {values['loss']:.4f}"
    )


class Plain:
    """Lines for a log file: every evaluation, and progress every few seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Print one report, or leave it out if the last one is too fresh."""
        if kind == "train" and time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL_S
            self._print(train_text(values))
        elif kind == "eval":
            self._print(eval_text(values))
        elif kind == "note":
            self._print(values["text"])

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, text: str) -> None:
        print(text, flush=True)


class Bar:
    """A progress bar over the whole run, evaluations as lines above it."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=Console(soft_wrap=False),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=1.0)
        self._progress.start()

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Move the bar, or print a line above it."""
        if kind == "train":
            done = values["epoch"] / values["epochs"]
            self._progress.update(self._task, completed=done, description=train_text(values))
        elif kind == "eval":
            self._progress.console.print(eval_text(values), highlight=False, soft_wrap=True)
        elif kind == "note":
            self._progress.console.print(
                values["text"], highlight=False, markup=False, soft_wrap=True
            )

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()
