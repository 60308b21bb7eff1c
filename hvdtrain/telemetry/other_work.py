"""Notice that other programs take the cores of a rank whose compute threads wait for each other."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Set
from pathlib import Path

import torch

MUCH = 0.25
"""Cores' worth of other work from which a warning is due."""
SHORTEST_S = 5.0
"""Time over which other work is measured: a moment of it is no reason for a warning."""


class OtherWork:
    """What other programs use of the cores that this process may run on, by the kernel's counts.

    An operation of the network ends when its last thread ends, so one busy core delays the threads on
    all others. Only a run of one process that computes on the CPU with several threads is `watched`:
    among ranks, a slow one is named as a straggler.
    """

    def __init__(
        self,
        watched: bool,
        stat: Path = Path("/proc/stat"),
        clock: Callable[[], float] = time.monotonic,
        own_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._watched, self._stat, self._clock, self._own_s = watched, stat, clock, own_s
        self._cores: Set[int] = os.sched_getaffinity(0)
        self._before = self._read()

    def note(self) -> str | None:
        """A warning, at most once; None while there is no reason for it, or too little was seen."""
        if not self._watched or self._clock() - self._before[0] < SHORTEST_S:
            return None
        before, self._before = self._before, self._read()
        passed, busy, own = (now - then for now, then in zip(self._before, before, strict=True))
        others = (busy - own) / passed
        if others < MUCH:
            return None
        self._watched = False
        return (
            f"other programs use {others:.1f} of the {len(self._cores)} cores of this run, and its "
            "compute threads wait for each other: end them, or set train.compute_threads=1"
        )

    def _read(self) -> tuple[float, float, float]:
        """Now, seconds that the cores were not idle, and CPU seconds of this process."""
        busy = 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in self._stat.read_text().splitlines():
                name, *counts = line.split()
                if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in self._cores:
                    # Source: proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal
                    ticks = [int(count) for count in counts[:8]]
                    busy += sum(ticks) - ticks[3] - ticks[4]
        return self._clock(), busy / os.sysconf("SC_CLK_TCK"), self._own_s()


def watch_for(ranks: int, device: torch.device) -> OtherWork:
    """Watch a run of `ranks` on `device`."""
    return OtherWork(device.type == "cpu" and ranks == 1 and torch.get_num_threads() > 1)
