"""Watch a training loop that is not ours: where its time goes, on which rank, and why.

watch = hvdtrain.watch.start(model, batch_size=32, epochs=10)
for batch in watch.data(loader):
    ...
    watch.step(loss)
watch.close()
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.watched_group import watched_ranks
from hvdtrain.errors import ConfigError
from hvdtrain.telemetry.efficiency_sums import EfficiencySums
from hvdtrain.telemetry.hardware import LinkUse
from hvdtrain.telemetry.lost_time import LostTime, computing_s, lost_time, network_text
from hvdtrain.telemetry.meter import BadCounts, Interval, Meter
from hvdtrain.telemetry.reports import End, Measured, Scaling, Start, Train
from hvdtrain.telemetry.watch_data import Passes, StepSums, WatchedData
from hvdtrain.telemetry.watch_exchange import WatchedExchange
from hvdtrain.telemetry.watch_output import WatchOutput

T = TypeVar("T")


def start(
    model: nn.Module | None = None,
    *,
    batch_size: int,
    epochs: int = 1,
    name: str = "watched",
    output: str | Path = "runs",
    log_every: int = 20,
    optimizer: torch.optim.Optimizer | None = None,
    steps_per_epoch: int | None = None,
    single_worker: float | None = None,
    metrics: Mapping[str, object] | None = None,
) -> Watch:
    """Watch the loop of this process and, under torch.distributed, of all ranks: each must call this.

    `model`: its waits for other ranks are measured if it is a DistributedDataParallel.
    `batch_size`: samples of a step on this rank, unless `Watch.step` is told another number.
    `epochs`: of the whole loop, for the progress and the time that is left.
    `name`, `output`: the run directory is a new folder `output`/`name`-TIME.
    `log_every`: steps from one report to the next; the ranks exchange their times then, and only then.
    `optimizer`: its learning rate and momentum are reported.
    `steps_per_epoch`: needed only where the loader has no length, or `Watch.data` is not used.
    `single_worker`: samples/s of one process by itself, as `images_per_second` in the summary of a
    watched loop of one process. Without it the time that the typical rank computes counts as ideal, so
    that the cause `other` is never found.
    `metrics`: settings of the section `metrics` of a config, as `{"port": 9500}`.

    Raises ConfigError or ResourceError, on all ranks, if one of them cannot be used.
    """
    if min(batch_size, epochs, log_every, steps_per_epoch or 1) < 1:
        raise ConfigError(
            "watch.start: batch_size, epochs, log_every and steps_per_epoch: expected at least 1"
        )
    if single_worker is not None and not single_worker > 0:
        raise ConfigError(
            f"watch.start: single_worker: expected samples/s above 0, found {single_worker}"
        )
    comm = watched_ranks()
    inner = getattr(model, "_orig_mod", model)
    kind = type(getattr(inner, "module", inner)).__name__ if model is not None else ""
    out = WatchOutput(name, str(output), kind, dict(metrics or {}), comm)
    return Watch(
        model, comm, out, batch_size, epochs, log_every, optimizer, steps_per_epoch, single_worker
    )


class Watch:
    """A loop that is watched, made by `start`. A context manager; otherwise call `close`."""

    def __init__(
        self,
        model: nn.Module | None,
        comm: Comm,
        out: WatchOutput,
        batch_size: int,
        epochs: int,
        log_every: int,
        optimizer: torch.optim.Optimizer | None,
        steps_per_epoch: int | None,
        single_worker: float | None,
    ) -> None:
        self._comm, self._out, self._optimizer = comm, out, optimizer
        self._samples, self._epochs, self._every = batch_size, epochs, log_every
        self._passes, self._single_worker = Passes(steps_per_epoch), single_worker
        first = next(model.parameters(), None) if model is not None else None
        self._device = first.device if first is not None else torch.device("cpu")
        self._exchange = WatchedExchange(model, self._device)
        self._meter = Meter(self._device, LinkUse() if comm.local_rank == 0 else None)
        self._efficiency = EfficiencySums()
        self._scaling = Scaling()
        self._sums = StepSums(self._device)
        self._began, self._train_s = time.perf_counter(), 0.0
        self._steps = self._total_samples = 0
        self._latest = batch_size
        self._has_loss = self._closed = False
        out.write(Start(comm.size, len(set(out.hosts)), 0.0))
        if model is not None and comm.size > 1 and not self._exchange.is_ddp:
            out.note(
                f"warning: watch: {type(model).__name__} is no DistributedDataParallel: its waits for "
                "other ranks are not measured; time them with watch.communication()"
            )

    @property
    def run_dir(self) -> Path:
        """Where events, summary and report are written."""
        return self._out.paths.root

    @property
    def port(self) -> int | None:
        """Port of this rank's endpoint; None if `metrics` has disabled it."""
        return self._out.exporter.endpoint.port if self._out.exporter else None

    @property
    def scaling(self) -> Scaling:
        """Efficiency, lost time and its cause in the last interval; the same on all ranks."""
        return self._scaling

    def data(self, loader: Iterable[T]) -> WatchedData[T]:
        """The batches of `loader`; the time until it has each of them counts as waiting for data.

        Each iteration is an epoch. What lies between two, such as an evaluation, is not watched.
        """
        passes, meter = self._passes, self._meter
        return WatchedData(loader, passes, lambda: meter.start(passes.waited_s))

    def step(self, loss: torch.Tensor | float | None = None, samples: int | None = None) -> None:
        """Call at the end of each step, on every rank alike.

        `loss`: mean over the samples of this rank. `samples`: how many, if not `batch_size`.
        The first step, which allocates memory and selects kernels, is not counted.
        Every `log_every` steps the ranks exchange their times; raises CommError if one is gone.
        """
        self._exchange.end_step()
        self._steps += 1
        if self._steps == 1:
            self._passes.require_length()
            self._meter.start(self._passes.waited_s)
            return
        self._latest = samples = self._samples if samples is None else samples
        seconds = self._meter.add(self._sums.of(loss, samples), self._passes.waited_s)
        self._has_loss = loss is not None
        if self._out.exporter is not None:
            self._out.exporter.observe_step(seconds, samples, self._passes.waited_s, self._exchange)
        if self._meter.steps == self._every:
            self._report()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside, such as an evaluation within an epoch, is no part of a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._meter.leave_out(time.perf_counter() - began)

    @contextlib.contextmanager
    def communication(self) -> Iterator[None]:
        """The time inside counts as waiting for other ranks, as that of a sum of gradients by hand."""
        self._exchange.clock.waiting.start()
        try:
            yield
        finally:
            self._exchange.clock.waiting.stop(pause=True)

    def close(self) -> dict[str, Any]:
        """Report the rest, and write summary and page; returns the summary. Every rank must call.

        Raises CommError if a rank is gone.
        """
        if self._closed:
            return {}
        self._closed = True
        self._exchange.close()
        with contextlib.closing(self._out):
            left = self._comm.gather(torch.tensor([float(self._meter.steps)]), "watch.left")
            if left.min() < left.max():
                self._out.note("warning: watch: ranks differ in steps: the last are left out")
            elif self._meter.steps:
                self._report()
            end = self._end()
            self._out.end(end, self._scaling)
        self._comm.shutdown()
        return end.values()

    def __enter__(self) -> Watch:
        """Nothing to do: `start` has begun."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close. After an error nothing waits for the other ranks, and there is no summary."""
        if kind is None:
            self.close()
        elif not self._closed:
            self._closed = True
            self._exchange.close()
            self._out.note(f"warning: watch: the loop ended by {kind.__name__}")
            self._out.close()

    def _report(self) -> None:
        """Measure the steps of all ranks since the last report, and report them."""
        interval = self._meter.drain(
            self._comm, self._exchange.clock.waiting, False, BadCounts(0, 0)
        )
        lost, self._scaling = self._lost(interval)
        loss = interval.measured.loss if self._has_loss else None
        measured = replace(interval.measured, loss=loss, top1=None, top5=None)
        self._train_s += measured.seconds
        self._total_samples += round(measured.samples)
        self._out.write(self._train(measured))
        if self._out.exporter is not None:
            self._out.exporter.observe_interval(interval, lost)
        if self._exchange.is_ddp and not self._exchange.backward_passes:
            self._exchange.backward_passes = 1
            self._out.note(
                "warning: watch: no backward pass through the model's output was seen: its waits for "
                "other ranks are not measured"
            )

    def _lost(self, interval: Interval) -> tuple[LostTime | None, Scaling]:
        if self._comm.size == 1:
            return None, Scaling()
        times = interval.step_s, interval.data_s, interval.wait_s
        if self._single_worker is None:
            ideal_s = computing_s(*times)
        else:
            ideal_s = interval.measured.samples / (self._comm.size * self._single_worker)
        lost = lost_time(*times, ideal_s)
        network = network_text(interval.link_speeds, interval.resent, self._out.hosts, None)
        return lost, self._efficiency.add(lost, self._out.hosts, network)

    def _train(self, measured: Measured) -> Train:
        epoch = self._passes.epoch(self._steps)
        epochs = max(self._epochs, self._passes.begun)
        group = self._optimizer.param_groups[0] if self._optimizer is not None else {}
        momentum = group.get("momentum", group.get("betas", (float("nan"),))[0])
        each_s = (time.perf_counter() - self._began) / max(epoch, 1e-9)
        return Train(
            step=self._steps,
            epoch=epoch,
            epochs=epochs,
            progress=min(1.0, epoch / epochs),
            eta_s=max(0.0, epochs - epoch) * each_s,
            phase=0,
            image_size=self._passes.image_size,
            batch_per_worker=self._latest,
            global_batch_size=self._latest * self._comm.size,
            total_samples=self._total_samples,
            lr=float(group.get("lr", float("nan"))),
            momentum=float(momentum),
            gradient_norm=None,
            skipped_updates=None,
            loss_scale=None,
            measured=measured,
            gradient_noise_scale=None,
            scaling=self._scaling,
        )

    def _end(self) -> End:
        overall = self._efficiency.overall()
        return End(
            name=self._out.paths.name,
            run_dir=str(self.run_dir),
            world_size=self._comm.size,
            epochs=self._passes.begun or round(self._passes.epoch(self._steps)),
            steps=self._steps,
            samples=self._total_samples,
            loss=None,
            top1=None,
            top5=None,
            images_per_second=self._total_samples / max(self._train_s, 1e-9),
            scaling_efficiency=overall.efficiency,
            lost_time=overall.lost,
            comm={},
            noise_scale=None,
            train_seconds=self._train_s,
            wall_seconds=time.perf_counter() - self._began,
        )
