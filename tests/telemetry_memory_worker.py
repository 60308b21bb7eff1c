"""10,000 steps of telemetry without training; prints the growth of memory after the first 2,000."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.engine.calibrate import WorkerSpeed
from hvdtrain.engine.reducer import Reducer
from hvdtrain.engine.step import StepSettings
from hvdtrain.paths import RunPaths
from hvdtrain.run.efficiency import Efficiency
from hvdtrain.telemetry.meter import BadCounts, Interval, Meter
from hvdtrain.telemetry.sinks import Sinks
from tests.launch import free_port
from tests.made_reports import TRAIN


class Two(Solo):
    """Rank 0 of two equal ranks."""

    size = 2

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        return row.expand(2, -1)


def grown_bytes(folder: Path, keep: Callable[[Interval], None]) -> int:
    """Growth of Python memory in 8,000 steps after the first 2,000; `keep` gets every interval."""
    cfg = Config(name="name", phases=[Phase(epochs=1)], metrics=Metrics(port=free_port()))
    comm, paths = Two(), RunPaths(folder)
    paths.create()
    sinks = Sinks(cfg, comm, paths, ["a", "a"])
    reducer = Reducer([torch.nn.Parameter(torch.zeros(2))], comm)
    meter, clock = Meter(torch.device("cpu")), reducer.clock
    state = SimpleNamespace(settings=StepSettings(torch.device("cpu")))
    run: Any = SimpleNamespace(cfg=cfg, comm=comm, hosts=["a", "a"], paths=paths, state=state)
    efficiency = Efficiency(run)
    efficiency._baselines[efficiency._key] = WorkerSpeed(1000.0, 0.01)
    sums, more = torch.tensor([8.0, 1, 3, 4]), torch.zeros(4, dtype=torch.float64)

    def drive(steps: int) -> None:
        for step in range(steps):
            for part in (clock.forward, clock.backward, clock.flight, clock.waiting):
                part._add(0.001)
            meter.add(sums, 0.001 * step)
            sinks.observe_step(0.01, 4, 0.001 * step, reducer)
            if step % 10 == 9:
                interval = meter.drain(comm, clock.waiting, False, BadCounts(0, 0), more)
                measured, scaling = interval.measured, efficiency.add(interval)
                sinks.write(replace(TRAIN, step=step, measured=measured, scaling=scaling))
                sinks.observe_interval(interval, efficiency.lost)
                keep(interval)

    try:
        drive(2000)
        gc.collect()
        tracemalloc.start()
        drive(8000)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        sinks.close()


def main(folder: Path, leak: bool) -> None:
    kept: list[float] = []

    def keep(interval: Interval) -> None:
        if leak:
            kept.append(interval.measured.loss)

    grown = grown_bytes(folder, keep)
    assert len(RunPaths(folder).events.read_text().splitlines()) == 1000
    print(grown)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "leak")
