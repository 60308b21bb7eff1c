"""How long the parts of a step take, by the device's clock, without waiting for the device."""

from __future__ import annotations

import time
from collections import deque

import torch


class Stopwatch:
    """Measures one part of the step; a lap may be interrupted and continued.

    On a GPU laps are timed by events in the stream, so a lap is known shortly after its end;
    `total_s` and `laps` cover the known ones.
    """

    def __init__(self, device: torch.device, *, keep_laps: bool = False) -> None:
        self._device = device
        self._keep_laps = keep_laps
        self._began = 0.0
        self._lap_s = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._pauses: deque[bool] = deque()
        self._total_s = 0.0
        self._laps: list[float] = []

    def start(self) -> None:
        """Begin a lap, or continue a paused one."""
        if self._device.type == "cuda":
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)
        else:
            self._began = time.perf_counter()

    def stop(self, *, pause: bool = False) -> None:
        """End the lap, or pause it."""
        if self._device.type == "cuda":
            self._events[-1][1].record()
            self._pauses.append(pause)
            self._poll()
        else:
            self._add(time.perf_counter() - self._began, pause)

    @property
    def total_s(self) -> float:
        """Seconds of all known laps."""
        self._poll()
        return self._total_s

    def laps(self) -> list[float]:
        """Seconds of each lap since the last call, oldest first; empty unless `keep_laps`."""
        self._poll()
        laps, self._laps = self._laps, []
        return laps

    def _poll(self) -> None:
        """Read the events that have completed, so that they do not pile up."""
        while self._pauses and self._events[0][1].query():
            began, ended = self._events.popleft()
            self._add(began.elapsed_time(ended) / 1000, self._pauses.popleft())

    def _add(self, seconds: float, pause: bool = False) -> None:
        self._lap_s += seconds
        if pause:
            return
        self._total_s += self._lap_s
        if self._keep_laps:
            self._laps.append(self._lap_s)
        self._lap_s = 0.0


class StepClock:
    """The parts of a step on one rank, in seconds since the start of the run."""

    def __init__(self, device: torch.device) -> None:
        self.forward = Stopwatch(device)
        """Forward passes and losses."""
        self.backward = Stopwatch(device)
        """Backward passes; gradients are sent meanwhile."""
        self.waiting = Stopwatch(device, keep_laps=True)
        """From the end of backward until all gradients have arrived, less the time of updates
        made meanwhile: exposed communication."""
        self.flight = Stopwatch(device)
        """From the first gradients sent until all are summed."""
