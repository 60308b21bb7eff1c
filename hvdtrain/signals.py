"""Stop after a checkpoint: a signal sets a flag, and the ranks agree on it at the next report."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REPEAT_S = 3.0
"""Signals within this time count as one: launchers repeat a signal that the ranks already have, and
Slurm signals a batch script and all processes it started."""


class StopSignals:
    """While active, SIGTERM, SIGUSR1 or SIGINT sets `requested`; a later second one kills."""

    def __init__(self) -> None:
        self.requested = False
        self._first_s = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first_s = True, now
        elif now - self._first_s > REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def ignore_repeats() -> None:
    """Ignore all stop signals: the process is ending, and a repeated one must not change its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
