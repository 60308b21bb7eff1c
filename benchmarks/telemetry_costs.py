"""Time of telemetry's Python code, part by part, and of the collective of a report."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import memory_run, random_batch

from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.config.schema import Config
from hvdtrain.engine.calibrate import WorkerSpeed
from hvdtrain.run.efficiency import Efficiency
from hvdtrain.telemetry.meter import BadCounts, Meter
from hvdtrain.telemetry.reports import Train


class Many(Solo):
    """Rank 0 of `size` ranks without the others: `gather` repeats this rank's row."""

    def __init__(self, size: int) -> None:
        self.size = size

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """This rank's row, repeated: [size, n]."""
        return row.expand(self.size, -1)


def python_costs(cfg: Config, ranks: int, rounds: int) -> dict[str, float]:
    """Microseconds of each part on one rank of `ranks`, medians over `rounds` reports."""
    phase = cfg.phases[0]
    batch = random_batch(phase.batch_per_worker, phase.image_size, 10, channels_last=True)
    costs: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        costs.setdefault(name, []).append(1e6 * (time.perf_counter() - began))
        return result

    with memory_run(cfg, Solo(), batch, 1) as alone:
        comm = Many(ranks)
        run = dataclasses.replace(alone, comm=comm, hosts=["localhost"] * ranks)
        exporter = run.sinks.exporter
        assert exporter is not None
        efficiency = Efficiency(run)
        efficiency._baselines[efficiency._key] = WorkerSpeed(100.0, 0.01)
        meter, sums, clock = (
            Meter(run.state.settings.device),
            torch.ones(4),
            run.state.reducer.clock,
        )
        nothing = torch.zeros(0, dtype=torch.float64)
        own = {field.name for field in dataclasses.fields(Train)} - {"measured", "scaling"}
        settings: dict[str, Any] = dict.fromkeys(own, 1)
        for _ in range(rounds):
            for _ in range(cfg.train.log_every):
                clock.waiting._add(0.01)
                timed("step: meter.add", lambda: meter.add(sums, 0.0))
                timed(
                    "step: sinks.observe_step",
                    lambda: run.sinks.observe_step(0.1, 128, 0.0, run.state.reducer),
                )
            interval = timed(
                "report: meter.drain",
                lambda: meter.drain(comm, clock.waiting, False, BadCounts(0, 0), nothing),
            )
            scaling = timed("report: efficiency.add", lambda i=interval: efficiency.add(i))
            report = Train(**settings, measured=interval.measured, scaling=scaling)
            timed("report: sinks.write", lambda r=report: run.sinks.write(r))
            timed(
                "report: sinks.observe_interval",
                lambda i=interval: run.sinks.observe_interval(i, efficiency.lost),
            )
            timed("scrape: page", exporter._page)
    return {name: statistics.median(found) for name, found in costs.items()}


def per_step(costs: dict[str, float], log_every: int) -> float:
    """Microseconds per step: its own work, and its share of the work of a report."""
    own = sum(cost for name, cost in costs.items() if name.startswith("step"))
    report = sum(cost for name, cost in costs.items() if name.startswith("report"))
    return own + report / log_every


def collective_us(comm: Comm, log_every: int) -> float:
    """Median microseconds of the one collective of a report, when no rank is late."""
    row = torch.zeros(11 + 3 * log_every, dtype=torch.float64)
    times = []
    for _ in range(101):
        began = time.perf_counter()
        comm.gather(row, "meter")
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)
