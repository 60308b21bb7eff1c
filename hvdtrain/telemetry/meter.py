"""What happened since the last report, on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.step import SUMS
from hvdtrain.engine.stopwatch import Stopwatch
from hvdtrain.telemetry.hardware import LinkUse


@dataclass(frozen=True)
class Interval:
    """The steps since the last report; equal on all ranks."""

    values: dict[str, Any]
    """loss (mean per image), top1 and top5 (0-1), samples (all ranks), images_per_second (all
    ranks), seconds and step_seconds (means over ranks), network_bytes_per_second (sent by the
    busiest interface, mean over machines), data_wait_ratio and comm_wait_ratio (share
    of the interval, mean over ranks), bad_samples and bad_unlisted (sums)."""
    stopping: bool
    """Whether any rank wants to stop."""
    more: list[float]
    """Sums over ranks of what was handed to `drain`."""
    step_s: np.ndarray
    """[ranks, steps]: seconds from the end of the update before to the end of this one."""
    data_s: np.ndarray
    """[ranks, steps]: of these, waiting for images."""
    wait_s: np.ndarray
    """[ranks, steps]: of these, waiting for gradients after the backward pass."""
    link_speeds: np.ndarray
    """[ranks]: bytes/s of the machine's busiest interface, told by one rank of every machine where
    its kernel knows; else 0."""
    resent: np.ndarray
    """[ranks]: share of TCP segments that the machine sent again, told by the same ranks."""

    @property
    def link_bytes_per_s(self) -> float | None:
        """Speed of the slowest link; None where no kernel knows one."""
        return min((speed for speed in self.link_speeds.tolist() if speed > 0), default=None)


class Meter:
    """Collects steps on one rank; `drain` gathers all ranks in one collective.

    Nothing here waits for the device before `drain`.
    """

    def __init__(
        self,
        device: torch.device,
        link: LinkUse | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`link` on one rank of every machine."""
        self._clock = clock
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._link = link
        self._step_s: list[float] = []
        self._data_s: list[float] = []
        self.start(0.0)

    def start(self, data_wait_s: float) -> None:
        """Begin a step now; `data_wait_s`: seconds this rank has waited for images so far."""
        self._now = self._clock()
        self._waited_s = data_wait_s

    def leave_out(self, seconds: float) -> None:
        """Time within the step that was begun, which is not of training."""
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
        self,
        comm: Comm,
        waiting: Stopwatch,
        stop: bool,
        bad: tuple[int, int],
        more: torch.Tensor,
    ) -> Interval:
        """All ranks since the last call; every rank has made at least one step, and as many.

        `waiting` has a lap for each step that waited for gradients, `bad` is from
        `BadSamples.counts`, `more` float64 and of equal length on all ranks.
        """
        local = self._sums.tolist()  # waits for the device, so all laps are known
        now = self._clock()
        self._step_s[-1] += now - self._now
        self._now = now
        elapsed, steps = sum(self._step_s), len(self._step_s)
        laps = waiting.laps()[-steps:]
        waits = laps if len(laps) == steps else [0.0] * steps
        sent, speed, resent = self._link.take() if self._link else (0.0, 0.0, 0.0)
        machine = [float(self._link is not None), sent]
        sums = torch.tensor([*local, elapsed, float(stop), *bad, *machine], dtype=torch.float64)
        times = torch.tensor(
            [speed, resent, *self._step_s, *self._data_s, *waits], dtype=torch.float64
        )
        rows = comm.gather(torch.cat([sums, more, times]), "meter").numpy()
        summed = rows[:, : len(sums) + len(more)].sum(axis=0).tolist()
        rest = rows[:, len(sums) + len(more) :]
        by_step = rest[:, 2:].reshape(comm.size, 3, steps)
        loss, top1, top5, count, seconds, stops, masked, unlisted, machines, sent = summed[
            : len(sums)
        ]
        self._sums.zero_()
        self._step_s.clear()
        self._data_s.clear()
        images = max(1.0, count)
        values = {
            "loss": loss / images,
            "top1": top1 / images,
            "top5": top5 / images,
            "samples": count,
            "seconds": seconds / comm.size,
            "images_per_second": count * comm.size / seconds,
            "step_seconds": seconds / comm.size / steps,
            "network_bytes_per_second": sent / max(1, machines) / (seconds / comm.size),
            "data_wait_ratio": float(by_step[:, 1].sum()) / seconds,
            "comm_wait_ratio": float(by_step[:, 2].sum()) / seconds,
            "bad_samples": masked,
            "bad_unlisted": unlisted,
        }
        more_sums = summed[len(sums) :]
        return Interval(values, stops > 0, more_sums, *by_step.swapaxes(0, 1), *rest[:, :2].T)
