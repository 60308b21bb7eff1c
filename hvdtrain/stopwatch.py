"""Seconds that parts of a step take, by the clock of the device, without ever waiting for it."""

from __future__ import annotations

import time
from collections import deque

import torch


class Stopwatch:
    """Laps of one part of the step. On a GPU they are taken by events in the stream, so a lap is
    known a little after it ended; `total_s` and `laps` hold those that are known."""

    def __init__(self, device: torch.device, *, keep_laps: bool = False) -> None:
        self._device = device
        self._keep_laps = keep_laps
        self._began = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._total_s = 0.0
        self._laps: list[float] = []

    def start(self) -> None:
        """Begin a lap."""
        if self._device.type == "cuda":
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)
        else:
            self._began = time.perf_counter()

    def stop(self) -> None:
        """End the lap that was begun last."""
        if self._device.type == "cuda":
            self._events[-1][1].record()
            self._poll()
        else:
            self._add(time.perf_counter() - self._began)

    @property
    def total_s(self) -> float:
        """Seconds of all known laps."""
        self._poll()
        return self._total_s

    def laps(self) -> list[float]:
        """Seconds of the laps since the last call, oldest first, if they are kept."""
        self._poll()
        laps, self._laps = self._laps, []
        return laps

    def _poll(self) -> None:
        """Take in the laps that have ended, so that none pile up."""
        while self._events and self._events[0][1].query():
            began, ended = self._events.popleft()
            self._add(began.elapsed_time(ended) / 1000)

    def _add(self, seconds: float) -> None:
        self._total_s += seconds
        if self._keep_laps:
            self._laps.append(seconds)


class StepClock:
    """The parts of a step on one rank, in seconds since the start of the run."""

    def __init__(self, device: torch.device) -> None:
        self.forward = Stopwatch(device)
        """Forward passes and losses."""
        self.backward = Stopwatch(device)
        """Backward passes; gradients are sent meanwhile."""
        self.waiting = Stopwatch(device, keep_laps=True)
        """From the end of backward until all gradients are there: exposed communication."""
        self.flight = Stopwatch(device)
        """From the first gradients handed to the network until all are back."""
