"""The batches of a run: training and evaluation images for one rank."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import Protocol

import numpy as np
import torch

from hvdtrain.config import Data
from hvdtrain.errors import DataError
from pipelines import order, recipes
from pipelines.decoder import Decoder
from pipelines.lane import Dealer, Lane, Pass
from pipelines.recipes import Recipe
from pipelines.sources import Source, check_same_classes, open_source
from pipelines.stream import READERS, Batch

__all__ = ["Batch", "EpochSpec", "Loaders"]


class EpochSpec(Protocol):
    """What the loaders need to know of an epoch."""

    @property
    def index(self) -> int:
        """Number of the epoch in the run."""

    @property
    def image_size(self) -> int:
        """Side of the training images in pixels."""

    @property
    def val_image_size(self) -> int:
        """Side of the evaluation images in pixels."""

    @property
    def min_crop_area(self) -> float:
        """Smallest share of the image that a random resized crop keeps."""

    @property
    def batch_per_worker(self) -> int:
        """Images per rank in one forward pass."""

    @property
    def accumulate(self) -> int:
        """Forward passes per step."""

    @property
    def start(self) -> int:
        """Samples of this epoch that all ranks together have consumed already."""

    @property
    def steps(self) -> int:
        """Steps left in this epoch."""


class Loaders:
    """Both datasets of a run for one rank, with the threads that read and decode them.

    A context manager; leaving it ends all threads. Iterators may be abandoned at any point. A
    new pass over one of the datasets ends an unfinished one.
    """

    num_train: int
    """Training images, over all ranks."""
    num_val: int
    """Evaluation images, over all ranks; 0 without `data.val`."""
    classes: list[str]
    """Names of the classes; labels index them."""
    fingerprint: str
    """Equal on two ranks exactly if they list the same samples in the same order."""
    decode_threads: int
    """Threads that decode, on this rank."""
    data_wait_s: float
    """Seconds the consumer has waited for batches so far, on this rank."""
    bytes_read: int
    """Encoded bytes of all batches delivered so far, on this rank."""

    def __init__(
        self,
        data: Data,
        *,
        seed: int,
        rank: int,
        world_size: int,
        local_rank: int = 0,
        local_size: int = 1,
        device: torch.device,
    ) -> None:
        """List the datasets; nothing is read yet. Raises DataError where there is none."""
        if device == torch.device("cuda"):
            device = torch.device("cuda", local_rank)
        self._data, self._seed, self._device = data, seed, device
        self._world_size = world_size
        cores = len(os.sched_getaffinity(0))
        self.decode_threads = data.decode_threads or max(1, cores // local_size)
        self.data_wait_s = 0.0
        self.bytes_read = 0
        self._in_use: deque[tuple[torch.cuda.Event, Batch]] = deque()
        sources = _open(data)
        self.num_train = len(sources["train"]) if "train" in sources else 0
        self.num_val = len(sources["val"]) if "val" in sources else 0
        self.classes = next(iter(sources.values())).classes
        self.fingerprint = " ".join(source.fingerprint for source in sources.values())
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="hvdtrain-read")
        dealers = {
            "train": Dealer(rank, world_size, self._train_order, self._train_recipe),
            "val": Dealer(rank, world_size, self._val_order, self._val_recipe),
        }
        self._lanes = {
            kind: Lane(source, dealers[kind], self._decoder, self._readers, data.prefetch)
            for kind, source in sources.items()
        }

    def __enter__(self) -> Loaders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all threads; iterators still open get no more batches."""
        for lane in self._lanes.values():
            lane.close()
        self._readers.shutdown(cancel_futures=True)

    def train(self, epoch: EpochSpec, then: EpochSpec | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield (i, batch) for the `epoch.steps` steps left, i from 0.

        A batch has `batch_per_worker * accumulate` images. While the last batches are consumed
        the first of the evaluation and of the training epoch `then` are decoded already, so
        nothing waits where one pass ends and the next begins.
        Raises DataError where a file cannot be read or decoded, or the plan does not fit.
        """
        lane = self._lane("train")
        spec = _train_pass(epoch)
        left = order.steps_left(
            self.num_train, start=spec.start, global_batch=spec.batch * self._world_size
        )
        if left != epoch.steps:
            raise DataError(
                f"data.train: {self.num_train} images make {left} steps in epoch {epoch.index},"
                f" the plan has {epoch.steps}; is data.train_size right?"
            )
        stream = lane.open(spec)
        if then is not None:
            if self.num_val:
                self._lanes["val"].prepare(self._val_pass(epoch), stream)
            lane.prepare(_train_pass(then), stream)
        return enumerate(self._deliver(lane.batches(stream)))

    def val(self, epoch: EpochSpec) -> Iterator[Batch]:
        """Yield the rank's share of all evaluation images at `epoch.val_image_size`.

        Over all ranks every image has weight 1 exactly once; every rank gets equally many
        batches of one size, at most `batch_per_worker`. Raises DataError like `train`.
        """
        lane = self._lane("val")
        spec = self._val_pass(epoch)
        return self._deliver(lane.batches(lane.open(spec)))

    def _lane(self, kind: str) -> Lane:
        if kind not in self._lanes:
            raise DataError(f"data.{kind}: not set")
        return self._lanes[kind]

    def _val_pass(self, epoch: EpochSpec) -> Pass:
        """Equal batches, as few as `batch_per_worker` allows, with next to no padding."""
        steps = order.steps_left(
            self.num_val, start=0, global_batch=epoch.batch_per_worker * self._world_size
        )
        batch = -(-self.num_val // (steps * self._world_size))
        return Pass(0, epoch.val_image_size, 1.0, batch, 0)

    def _train_order(self, spec: Pass) -> np.ndarray:
        return order.permutation(self.num_train, seed=self._seed, epoch=spec.epoch)

    def _val_order(self, _spec: Pass) -> np.ndarray:
        return np.arange(self.num_val)

    def _train_recipe(self, spec: Pass) -> Recipe:
        return recipes.training(
            self._data,
            seed=self._seed,
            epoch=spec.epoch,
            image_size=spec.image_size,
            min_area=spec.min_crop_area,
        )

    def _val_recipe(self, spec: Pass) -> Recipe:
        return recipes.evaluation(self._data, image_size=spec.image_size)

    def _decoder(self, recipe: Recipe) -> Decoder:
        data = self._data
        return Decoder(recipe, data.mean, data.std, self.decode_threads, self._device)

    def _deliver(self, batches: Generator[Batch, None, None]) -> Iterator[Batch]:
        """Hand batches to the consumer, and account for them."""
        with closing(batches):
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.data_wait_s += time.perf_counter() - began
                if batch is None:
                    return
                self.bytes_read += batch.size_bytes
                yield self._on_device(batch)
                self._release(batch)

    def _on_device(self, batch: Batch) -> Batch:
        """Labels and weights follow the images to the GPU."""
        if self._device.type == "cpu":
            return batch
        labels = batch.labels.to(self._device, non_blocking=True)
        weights = batch.weights.to(self._device, non_blocking=True)
        return replace(batch, labels=labels, weights=weights)

    def _release(self, batch: Batch) -> None:
        """Keep images on a GPU until the kernels queued on them so far are done: DALI, which
        owns the memory, knows nothing of the consumer's stream."""
        if self._device.type == "cpu":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._in_use.append((event, batch))
        while self._in_use and self._in_use[0][0].query():  # type: ignore[no-untyped-call]
            self._in_use.popleft()


def _train_pass(epoch: EpochSpec) -> Pass:
    batch = epoch.batch_per_worker * epoch.accumulate
    return Pass(epoch.index, epoch.image_size, epoch.min_crop_area, batch, epoch.start)


def _open(data: Data) -> dict[str, Source]:
    """The datasets that are set, training first. Raises DataError unless they fit together."""
    paths = {"train": data.train, "val": data.val}
    sources = {
        kind: open_source(path, f"data.{kind}") for kind, path in paths.items() if path is not None
    }
    if not sources:
        raise DataError("data.train: not set; expected a folder with one sub-folder per class")
    if len(sources) == 2:
        check_same_classes(sources["train"], sources["val"], str(data.val))
    return sources
