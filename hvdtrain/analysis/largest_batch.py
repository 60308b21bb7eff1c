"""Finds the largest batch per worker that fits in memory, for each image size of a plan."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from hvdtrain import activity
from hvdtrain.comm.agreement import any_rank
from hvdtrain.engine.calibrate import calibrate
from hvdtrain.engine.step import State
from hvdtrain.errors import is_out_of_memory
from pipelines.loader import Batch

HEADROOM = 0.1
"""Share of the memory that is kept free for what a trial does not use: batches decoded ahead,
evaluation, fragmentation."""
_MULTIPLE = 8


@dataclass(frozen=True)
class Trial:
    """One batch size that was tried."""

    batch_per_worker: int
    images_per_s: float | None
    """Of the slowest rank, without communication; None: the batch does not fit on every rank."""


def largest_batch(
    state: State, memory: Memory, image_size: int, num_classes: int, *, most: int
) -> list[Trial]:
    """Try batches of noise of `image_size` on every rank, from 8 to `most` images.

    The batch is doubled until one rank has not enough memory; then the interval is halved, in
    multiples of 8. All ranks try the same batches, and the state is restored after each. A GPU may
    run out of memory; a CPU must not, so there the memory of a batch is measured, and a batch is
    not tried if the two before it show that it would need too much. Returns all trials in order.
    """
    memory.forget()
    trials: list[Trial] = []

    def fits(batch: int) -> bool:
        activity.enter(f"trying a batch of {batch} at {image_size} px")
        trials.append(_try(state, memory, batch, image_size, num_classes))
        return trials[-1].images_per_s is not None

    good, bad, batch = 0, 0, min(_MULTIPLE, most)
    while not bad and good < most:
        if fits(batch):
            good, batch = batch, min(2 * batch, most)
        else:
            bad = batch
    while bad - good > max(_MULTIPLE, good // 8):
        batch = -(-(good + bad) // 2 // _MULTIPLE) * _MULTIPLE
        if fits(batch):
            good = batch
        else:
            bad = batch
    return trials


def best(trials: list[Trial]) -> int:
    """The largest batch that fits; 0 if none does."""
    return max((t.batch_per_worker for t in trials if t.images_per_s is not None), default=0)


def _try(state: State, memory: Memory, batch: int, image_size: int, classes: int) -> Trial:
    speed = 0.0
    if memory.may_hold(batch):
        try:
            with memory.watched(batch):
                images = noise(state, batch * state.reducer.accumulate, image_size, classes)
                speed = calibrate(state, images, min_steps=2, min_s=0.2).images_per_second
                del images
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            speed, error.__traceback__ = 0.0, None  # its frames hold the allocated memory
    gc.collect()
    if state.settings.device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # otherwise the next trial counts it as used
    if any_rank(state.comm, speed == 0.0):
        return Trial(batch, None)
    return Trial(batch, min(map(float, state.comm.gather_text(str(speed)))))


def free_memory() -> int:
    """Bytes that all processes here may still use: of the machine, or of the control group that a
    Slurm job or a container has."""
    free = psutil.virtual_memory().available
    for folder in ("/sys/fs/cgroup", f"/sys/fs/cgroup{_group()}"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            most = int(Path(folder, "memory.max").read_text())
            free = min(free, most - int(Path(folder, "memory.current").read_text()))
    return free


def _group() -> str:
    """The path of this process's control group (version 2); empty if it is not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return ""


class Memory:
    """The memory that this rank may use: on a GPU all except the headroom, on a CPU as measured.

    `memory_bytes`: limit on a CPU; None: this rank's share of what is free on the node.
    """

    def __init__(self, state: State, memory_bytes: float | None) -> None:
        self._cuda = state.settings.device if state.settings.device.type == "cuda" else None
        if memory_bytes is None:
            memory_bytes = free_memory() / state.comm.local_size
        self._limit = memory_bytes * (1 - HEADROOM)
        self._before = psutil.Process().memory_info().rss
        self._taken: dict[int, int] = {}  # bytes, by batch

    def forget(self) -> None:
        """Forget all measurements, before another image size."""
        self._taken = {}

    def may_hold(self, batch: int) -> bool:
        """False if smaller batches have shown that this one needs too much."""
        smaller = sorted(tried for tried in self._taken if tried < batch)[-2:]
        if self._cuda is not None or len(smaller) < 2:
            return True
        first, last = smaller
        per_image = max(0, self._taken[last] - self._taken[first]) / (last - first)
        return self._taken[last] + (batch - last) * per_image <= self._limit

    @contextlib.contextmanager
    def watched(self, batch: int) -> Iterator[None]:
        """A trial of `batch`. Raises MemoryError, or lets torch raise, if it needed too much."""
        if self._cuda is not None:
            torch.cuda.set_per_process_memory_fraction(1 - HEADROOM, self._cuda)
            try:
                yield
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, self._cuda)
            return
        with contextlib.suppress(OSError):  # if it fails, the peak of all trials counts
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        yield
        status = Path("/proc/self/status").read_text().split()
        taken = int(status[status.index("VmHWM:") + 1]) * 1024 - self._before
        self._taken[batch] = taken
        if taken > self._limit:
            raise MemoryError


def noise(state: State, count: int, image_size: int, classes: int) -> Batch:
    """A batch of random images [count, 3, S, S], on the device of `state`."""
    random = torch.Generator(state.settings.device).manual_seed(0)
    images = torch.randn(
        count, 3, image_size, image_size, generator=random, device=state.settings.device
    )
    labels = torch.arange(count, device=state.settings.device) % classes
    weights = torch.ones(count, device=state.settings.device)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, labels, weights, np.arange(count), size_bytes=0)
