"""Measures the training steps of all ranks from one report to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.step import SUMS
from hvdtrain.engine.stopwatch import Stopwatch
from hvdtrain.telemetry.hardware import LinkUse
from hvdtrain.telemetry.reports import Measured


class BadCounts(NamedTuple):
    """Bad images masked since the last report."""

    masked: int
    unlisted: int
    """What the ranks have to exchange: those that the run's list does not have yet, and other news."""
    retried: int = 0
    """Reads that were tried again."""


class _Sums(NamedTuple):
    """What is summed over ranks for a report."""

    loss: float
    top1: float
    top5: float
    images: float
    seconds: float
    stops: float
    """Ranks that were asked to stop."""
    masked: float
    unlisted: float
    retried: float
    machines: float
    """Machines whose network use is known."""
    sent_bytes: float


@dataclass(frozen=True)
class Interval:
    """The steps since the last report; the same on all ranks."""

    measured: Measured
    bad: BadCounts
    """Sums over ranks."""
    stopping: bool
    """Whether some rank was asked to stop."""
    more: list[list[float]]
    """Sums over ranks of the vectors `more` that were given to `drain`."""
    step_s: np.ndarray
    """[ranks, steps]: seconds from the end of the update before to the end of this one."""
    data_s: np.ndarray
    """[ranks, steps]: the part of `step_s` spent waiting for images."""
    wait_s: np.ndarray
    """[ranks, steps]: the part of `step_s` spent waiting for gradients after the backward pass."""
    link_speeds: np.ndarray
    """[ranks]: bytes/s of the machine's busiest interface, on one rank of every machine whose
    kernel knows it; else 0."""
    resent: np.ndarray
    """[ranks]: share of TCP segments that the machine sent again, on the same ranks."""

    @property
    def link_bytes_per_s(self) -> float | None:
        """Speed of the slowest link; None if no kernel knows the speed of its link."""
        return min((speed for speed in self.link_speeds.tolist() if speed > 0), default=None)


class Meter:
    """Measures steps on one rank; `drain` gathers those of all ranks in one collective.

    Nothing here waits for the device, except `drain`.
    """

    def __init__(
        self,
        device: torch.device,
        link: LinkUse | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """One rank of every machine has a `link`."""
        self._clock = clock
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._link = link
        self._step_s: list[float] = []
        self._data_s: list[float] = []
        self.start(0.0)

    def start(self, data_wait_s: float) -> None:
        """Begin a step now; `data_wait_s`: seconds that this rank has waited for images so far."""
        self._now = self._clock()
        self._waited_s = data_wait_s

    @property
    def steps(self) -> int:
        """Steps since the last `drain`."""
        return len(self._step_s)

    @property
    def seconds(self) -> float:
        """Time of these steps on this rank."""
        return sum(self._step_s)

    def leave_out(self, seconds: float) -> None:
        """Leave these seconds of the current step out, since they were not training."""
        self._now += seconds

    def add(self, sums: torch.Tensor, data_wait_s: float) -> float:
        """End a step with SUMS [4] of this rank, and begin the next; returns its seconds."""
        began, waited_s = self._now, self._waited_s
        self.start(data_wait_s)
        self._sums += sums
        self._step_s.append(self._now - began)
        self._data_s.append(data_wait_s - waited_s)
        return self._step_s[-1]

    def drain(
        self, comm: Comm, waiting: Stopwatch, stop: bool, bad: BadCounts, *more: torch.Tensor
    ) -> Interval:
        """All ranks' steps since the last call: at least one, and the same number on all ranks.

        `waiting` has a lap for each step that waited for gradients, `bad` is from
        `BadSamples.counts`, `more` are float64 vectors, equally long on all ranks.
        """
        loss, top1, top5, images = self._sums.tolist()  # waits for the device: all laps are known
        now = self._clock()
        self._step_s[-1] += now - self._now
        self._now = now
        steps = len(self._step_s)
        laps = waiting.laps()[-steps:]
        waits = laps if len(laps) == steps else [0.0] * steps
        sent, speed, resent = self._link.take() if self._link else (0.0, 0.0, 0.0)
        mine = _Sums(
            loss=loss,
            top1=top1,
            top5=top5,
            images=images,
            seconds=sum(self._step_s),
            stops=float(stop),
            masked=bad.masked,
            unlisted=bad.unlisted,
            retried=bad.retried,
            machines=float(self._link is not None),
            sent_bytes=sent,
        )
        times = [speed, resent, *self._step_s, *self._data_s, *waits]
        vectors = [vector.tolist() for vector in more]
        row = torch.tensor([*mine, *chain(*vectors), *times], dtype=torch.float64)
        rows = comm.gather(row, "meter").numpy()
        rest = rows[:, len(row) - len(times) :]
        summed = iter(rows[:, : len(row) - len(times)].sum(axis=0).tolist())
        sums = _Sums(*islice(summed, len(mine)))
        step_s, data_s, wait_s = rest[:, 2:].reshape(comm.size, 3, steps).swapaxes(0, 1)
        self._sums.zero_()
        self._step_s.clear()
        self._data_s.clear()
        return Interval(
            measured=_measured(sums, comm.size, data_s, wait_s),
            bad=BadCounts(round(sums.masked), round(sums.unlisted), round(sums.retried)),
            stopping=sums.stops > 0,
            more=[list(islice(summed, len(vector))) for vector in vectors],
            step_s=step_s,
            data_s=data_s,
            wait_s=wait_s,
            link_speeds=rest[:, 0],
            resent=rest[:, 1],
        )


def _measured(sums: _Sums, ranks: int, data_s: np.ndarray, wait_s: np.ndarray) -> Measured:
    """Means and ratios; `data_s` and `wait_s` are [ranks, steps]."""
    images, seconds = sums.images, sums.seconds / ranks
    return Measured(
        loss=sums.loss / images if images else None,
        top1=sums.top1 / images if images else None,
        top5=sums.top5 / images if images else None,
        samples=images,
        seconds=seconds,
        images_per_second=images * ranks / sums.seconds,
        step_seconds=seconds / data_s.shape[1],
        network_bytes_per_second=sums.sent_bytes / max(1, sums.machines) / seconds,
        data_wait_ratio=float(data_s.sum()) / sums.seconds,
        comm_wait_ratio=float(wait_s.sum()) / sums.seconds,
        bad_samples=sums.masked,
        read_retries=sums.retried,
    )
