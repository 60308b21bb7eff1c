"""What happened since the last report, as sums that merge over steps and ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from hvdtrain.comm import Comm
from hvdtrain.step import SUMS


class Meter:
    """Collects steps on one rank; `drain` merges all ranks in one collective.

    Nothing here waits for the device before `drain`.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._began = clock()
        self._steps = 0
        self._waits = (0.0, 0.0)

    def start(self, data_wait_s: float, comm_wait_s: float) -> None:
        """Begin an interval now; the arguments are running totals of this rank."""
        self._sums.zero_()
        self._steps = 0
        self._began = self._clock()
        self._waits = (data_wait_s, comm_wait_s)

    def add(self, sums: torch.Tensor) -> None:
        """One step's SUMS [4] of this rank."""
        self._sums += sums
        self._steps += 1

    def drain(
        self,
        comm: Comm,
        data_wait_s: float,
        comm_wait_s: float,
        stop: bool,
        bad: tuple[int, int],
        more: torch.Tensor,
    ) -> tuple[dict[str, Any], bool, list[float]]:
        """Values over all ranks since `start`, whether any rank wants to stop, and `more`, float64
        and of equal length on all ranks, summed.

        loss (mean per image), top1 and top5 (0–1), images_per_second (all ranks), step_seconds
        (mean), data_wait_ratio and comm_wait_ratio (share of the interval, mean over ranks),
        bad_samples and bad_unlisted (sums of `bad`, see `BadSamples.counts`).
        """
        local = self._sums.tolist()
        elapsed = self._clock() - self._began
        waits = [data_wait_s - self._waits[0], comm_wait_s - self._waits[1]]
        own = torch.tensor([*local, *waits, elapsed, float(stop), *bad], dtype=torch.float64)
        summed = comm.sum_(torch.cat([own, more]), "meter").tolist()
        values, rest = summed[: len(own)], summed[len(own) :]
        loss, top1, top5, count, data_wait, comm_wait, seconds, stops, masked, unlisted = values
        steps = max(1, self._steps)
        self.start(data_wait_s, comm_wait_s)
        images = max(1.0, count)
        report = {
            "loss": loss / images,
            "top1": top1 / images,
            "top5": top5 / images,
            "samples": count,
            "seconds": seconds / comm.size,
            "images_per_second": count * comm.size / seconds,
            "step_seconds": seconds / comm.size / steps,
            "data_wait_ratio": data_wait / seconds,
            "comm_wait_ratio": comm_wait / seconds,
            "bad_samples": masked,
            "bad_unlisted": unlisted,
        }
        return report, stops > 0, rest
