"""Extra time of a training step when all telemetry is on, compared with all of it off.

Two real ranks under mpirun train one network on one batch in memory in hvdtrain's own loop.
On: a report every 20 steps (the default) to the event file and the console (/dev/null), text files
for node_exporter, efficiency and lost time, and one metrics endpoint per rank. An HTTP client on
the same cores requests metrics every 5 seconds and the live page every 2; its work counts, too.
Off: no endpoint, and no report within the timed steps. The noise scale is off in both.

On and off take short turns with the same weights. The result is the median over rounds of
time on / time off - 1, with its 95 % confidence interval, and the microseconds of the Python code
for 2 and 256 ranks. `--memory` trains `--steps` short steps with all on instead, and prints how
much the memory of rank 0 grew after step 2,000.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from common import (
    MemoryLoaders,
    free_port,
    in_turn,
    median_ratio,
    memory_run,
    print_machine,
    print_result,
    print_table,
    random_batch,
)
from scraper import Scraper
from telemetry_costs import collective_us, per_step, python_costs

from hvdtrain.comm.agreement import Stops
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.efficiency import Efficiency
from hvdtrain.run.prepare import Run
from hvdtrain.signals import StopSignals
from hvdtrain.telemetry.bad_samples import BadSamples
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.train import train_epoch
from pipelines.loader import Batch

LOG_EVERY = 20
STEPS = 2 * LOG_EVERY
"""Timed steps of one turn."""
MEMORY_FROM = 2000  # steps after which memory is expected to be flat
CONFIG = """
name: telemetry-overhead
model: {{name: {model}, num_classes: 10}}
optimizer: {{momentum: 0.9, nesterov: true, weight_decay: 5.0e-4}}
lr: {{base: 0.0001, scaling: none, warmup: none, schedule: constant}}
phases: [{{epochs: {epochs}, image_size: {image_size}, batch_per_worker: {batch}}}]
train: {{precision: {precision}, channels_last: true, log_every: {log_every}, noise_scale_every: 0}}
metrics: {{port: {port}, enabled: {enabled}, textfile_dir: {textfile_dir}}}
"""


class WatchedLoaders(MemoryLoaders):
    """Loaders that call `each` with the number of every batch before they yield it."""

    def __init__(self, batch: Batch, each: Callable[[int], None]) -> None:
        super().__init__(batch)
        self.each = each

    def train(self, epoch: Epoch, *_: Any, **__: Any) -> Iterator[tuple[int, Batch]]:
        """Yield the planned number of batches."""
        for i, batch in super().train(epoch):
            self.each(i)
            yield i, batch


class Loop:
    """hvdtrain's loop with its own telemetry. An epoch has one step more than is timed: the report
    at its end, which cannot be turned off, comes after the timed steps."""

    def __init__(self, run: Run, epochs: Iterator[Epoch]) -> None:
        self.asked: list[float] = []
        self.batch = run.loaders.batch  # type: ignore[attr-defined]
        loaders: Any = WatchedLoaders(self.batch, lambda _: self.asked.append(time.perf_counter()))
        self.run = dataclasses.replace(run, loaders=loaders)
        self.efficiency = Efficiency(self.run)
        self.epochs = epochs

    def turn(self) -> float:
        """Milliseconds per step, mean over `STEPS` steps."""
        epoch = next(self.epochs)
        self.efficiency.enter(epoch, self.batch)
        self.asked.clear()
        stops = Stops(StopSignals(), self.run.comm)
        self.run.comm.sum_(torch.zeros(1), "start")
        train_epoch(self.run, epoch, None, self.efficiency, stops)
        return 1e3 * (self.asked[-1] - self.asked[0]) / STEPS


@contextlib.contextmanager
def without_telemetry(run: Run, cfg: Config) -> Iterator[Run]:
    """The same run (weights, optimizer, batch), with sinks that have nothing to do."""
    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as folder:
        paths = RunPaths(Path(folder))
        paths.create()
        sinks = Sinks(cfg, run.comm, paths, run.hosts)
        bad = BadSamples(cfg.data, run.comm, paths.bad_samples)
        with contextlib.closing(sinks):
            yield dataclasses.replace(run, cfg=cfg, paths=paths, sinks=sinks, bad=bad)


def scraper_of(run: Run) -> Scraper:
    """A client of all ranks on rank 0, of none on the others. Every rank must call this."""
    assert run.sinks.exporter is not None
    ports = run.comm.gather_text(str(run.sinks.exporter.endpoint.port))
    return Scraper(ports if run.comm.rank == 0 else [])


def config(args: argparse.Namespace, *, epochs: int, on: bool) -> Config:
    """Config with all telemetry on, or all of it off."""
    settings = vars(args) | {"epochs": epochs, "enabled": str(on).lower()}
    settings["textfile_dir"] = os.environ.get("BENCHMARK_TEXTFILES", "null") if on else "null"
    port = os.environ.get("BENCHMARK_PORT", "19400")
    log_every = LOG_EVERY if on else 10**9
    return parse_config(CONFIG.format(port=port, log_every=log_every, **settings))


def compare(args: argparse.Namespace, comm: Comm) -> dict[str, Any]:
    """Measure ms per step of both loops in each round on this rank, and count answered scrapes."""
    epochs = 2 * (args.rounds + 2)
    cfg = config(args, epochs=epochs, on=True)
    off = config(args, epochs=epochs, on=False)
    batch = random_batch(args.batch, args.image_size, 10, channels_last=True)
    with memory_run(cfg, comm, batch, STEPS + 1) as run, without_telemetry(run, off) as bare_run:
        scraper, epochs_left = scraper_of(run), iter(run.plan.epochs)
        full, bare = Loop(run, epochs_left), Loop(bare_run, epochs_left)

        def turn_on() -> float:
            with scraper.at_work():
                return full.turn()

        turns = {"on": turn_on, "off": bare.turn}
        in_turn(turns, rounds=2)  # warmup: the first steps choose kernels and allocate memory
        times = in_turn(turns, args.rounds)
        return {
            "times": times,
            "scrapes": scraper.close(),
            "collective_us": collective_us(comm, LOG_EVERY),
        }


def memory(args: argparse.Namespace, comm: Comm) -> dict[str, Any]:
    """Resident bytes of this rank every 1,000 steps of one long epoch, with all telemetry on."""
    sizes: dict[int, int] = {}

    def look(step: int) -> None:
        if step % 1000 == 0 or step == args.steps - 1:
            gc.collect()
            sizes[step] = resident_bytes()

    cfg = config(args, epochs=1, on=True)
    batch = random_batch(args.batch, args.image_size, 10, channels_last=True)
    with memory_run(cfg, comm, batch, args.steps) as run:
        scraper = scraper_of(run)
        watched = dataclasses.replace(run, loaders=cast("Any", WatchedLoaders(batch, look)))
        with scraper.at_work():
            stops = Stops(StopSignals(), watched.comm)
            train_epoch(watched, run.plan.epochs[0], None, Efficiency(watched), stops)
        return {"resident": sizes, "scrapes": scraper.close()}


def resident_bytes() -> int:
    """Resident memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def median_interval(figures: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the median: order statistics, by the binomial's normal limit."""
    ranked, half = sorted(figures), 0.98 * math.sqrt(len(figures))
    last = len(ranked) - 1
    low, high = math.floor(last / 2 - half), math.ceil(last / 2 + half)
    return ranked[max(0, low)], ranked[min(last, high)]


def work(args: argparse.Namespace) -> None:
    """Run one rank of the job; rank 0 prints its findings as JSON."""
    torch.set_num_threads(args.threads)
    comm = init_comm()
    found = (memory if args.memory else compare)(args, comm)
    if comm.rank == 0:
        print(json.dumps(found), flush=True)
    comm.shutdown()


def launch(args: argparse.Namespace) -> dict[str, Any]:
    """Run `work` on `--ranks` ranks to its end; returns the findings of rank 0."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker"]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    env |= {"BENCHMARK_PORT": str(free_port(args.ranks)), "OMPI_MCA_mpi_yield_when_idle": "1"}
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if args.ranks > 1:
        own = Path(sys.executable).parent / "mpirun"
        mpirun = str(own) if own.exists() else "mpirun"
        command = [mpirun, "--oversubscribe", "-np", str(args.ranks), *command]
    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as folder:
        env["BENCHMARK_TEXTFILES"] = folder
        done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the job failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def report_memory(found: dict[str, Any]) -> None:
    """Print resident memory by step, and its growth."""
    sizes = {int(step): size for step, size in found["resident"].items()}
    for step, size in sizes.items():
        print(f"step {step:>6,}  {size / 2**20:8.2f} MiB")
    steady = [size for step, size in sizes.items() if step >= MEMORY_FROM]
    print_result({"memory_growth_bytes": steady[-1] - steady[0], "scrapes": found["scrapes"]})


def report_overhead(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print step times, the time of Python code, and the overhead."""
    times = found["times"]
    print_table("ms per step", times, digits=2)
    cfg = config(args, epochs=1, on=True)
    costs = {ranks: python_costs(cfg, ranks, 200) for ranks in (2, 256)}
    print("microseconds of Python, without the collective      2 ranks   256 ranks")
    for name in costs[2]:
        print(f"  {name:<44}  {costs[2][name]:>9.1f}  {costs[256][name]:>10.1f}")
    print(f"  {'report: the collective':<44}  {found['collective_us']:>9.1f}")
    ratios = [on / off - 1 for on, off in zip(times["on"], times["off"], strict=True)]
    low, high = median_interval(ratios)
    result = {
        "overhead": round(median_ratio(times["on"], times["off"]) - 1, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "python_us_per_step": round(per_step(costs[2], LOG_EVERY), 1),
        "python_us_per_step_256_ranks": round(per_step(costs[256], LOG_EVERY), 1),
        "scrapes": found["scrapes"],
    }
    print_result(result)


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about 2 minutes")
    parser.add_argument("--rounds", type=int, help="turns of each loop (default 60, quick 12)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads per rank")
    parser.add_argument("--model", help="network (default resnet11_cifar, with --memory vgg_small)")
    parser.add_argument("--image-size", type=int, help="px (default 32, with --memory 16)")
    parser.add_argument("--batch", type=int, help="images per rank (default 64, with --memory 4)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    parser.add_argument("--steps", type=int, default=10000, help="steps with --memory")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    model, image_size, batch = ("vgg_small", 16, 4) if args.memory else ("resnet11_cifar", 32, 64)
    args.model = args.model or model
    args.image_size = args.image_size or image_size
    args.batch = args.batch or batch
    args.rounds = args.rounds or (12 if args.quick else 60)
    if args.memory and args.steps <= MEMORY_FROM:
        parser.error(f"--steps {args.steps}: must be over {MEMORY_FROM}")
    if args.worker:
        work(args)
        return
    found = launch(args)
    print(
        f"{args.model}, {args.image_size} px, batch {args.batch}, {args.precision}, channels_last; "
        f"{args.ranks} ranks × {args.threads} threads"
    )
    print_machine()
    if args.memory:
        report_memory(found)
    else:
        report_overhead(args, found)


if __name__ == "__main__":
    main()
