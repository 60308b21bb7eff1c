"""The loaders of a run: batches of training and evaluation images for one rank."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines.bad import PIXEL_LEVEL, BadSample, Quarantine
from pipelines.cache import Cache
from pipelines.cached_prefetcher import CachedPrefetcher
from pipelines.datasets import open_datasets
from pipelines.exchange import Exchange, Place
from pipelines.images.decoder import Decoder
from pipelines.images.numbers import copied_to
from pipelines.images.on_device import Changes
from pipelines.images.recipes import Recipe
from pipelines.images.windows import WindowDecoder
from pipelines.memory import limit_arenas
from pipelines.prefetcher import Passes, Prefetcher
from pipelines.recheck import repaired
from pipelines.sampling import (
    EpochSpec,
    EvaluationSampler,
    Sampler,
    TrainingSampler,
    shard_starts,
)
from pipelines.sources import Source
from pipelines.sources.retries import RETRIES, Retried
from pipelines.stream import Batch, Readers
from pipelines.watched import Watched, watched

__all__ = ["Batch", "EpochSpec", "Loaders"]


class Loaders:
    """Both datasets of a run for one rank, with the threads that read and decode them.

    A context manager; leaving it ends all threads. Iterators may be abandoned at any point. A
    new pass over a dataset ends an unfinished one.
    """

    num_train: int
    """Training images, over all ranks."""
    num_val: int
    """Evaluation images, over all ranks; 0 without `data.val`."""
    classes: list[str]
    """Names of the classes; labels index them."""
    sources: dict[str, Source]
    """`train`, `val` or both: the samples by number."""
    fingerprints: dict[str, str]
    """Of each source: equal on two ranks if and only if they list the same samples in one order."""
    warnings: list[str]
    decode_threads: int
    data_wait_s: float
    """Seconds the consumer of this rank has waited for batches so far."""
    bytes_read: int
    """Encoded bytes of all batches delivered so far."""

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
        rect_val: bool = False,
        pairs: bool = False,
        classes: Sequence[str] | None = None,
        training: bool = True,
    ) -> None:
        """List the datasets; no image is read yet. Raises DataError where there is none.

        `classes`, `training`: see `open_datasets`. `pairs`: training images come with partners.
        `rect_val`: some epoch evaluates on rectangles.
        With it or with a cache, give the `offer` of every rank to `accept` before the first pass.
        """
        limit_arenas()
        if device == torch.device("cuda"):  # one that a launcher has bound is the only one
            device = torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0)
        self._data, self._device, self._pairs = data, device, pairs
        cores = len(os.sched_getaffinity(0))
        self.decode_threads = data.decode_threads or max(1, cores // local_size)
        self.data_wait_s = 0.0
        self.bytes_read = 0
        self._in_use: deque[tuple[torch.cuda.Event, Batch]] = deque()
        datasets = open_datasets(data, classes, seed=seed, training=training)
        self.sources = datasets.sources
        sources = {kind: watched(source) for kind, source in self.sources.items()}
        self._watched = [source for source in sources.values() if isinstance(source, Watched)]
        self.num_train = len(sources["train"]) if "train" in sources else 0
        self.num_val = len(sources["val"]) if "val" in sources else 0
        self.classes, self.warnings = datasets.classes, datasets.warnings
        self.fingerprints = datasets.fingerprints
        self._readers = Readers(self.sources.values())
        self._quarantine = Quarantine() if data.on_bad == "mask" else None
        evaluation = EvaluationSampler(data, self.num_val, rank=rank, world_size=world_size)
        trained = TrainingSampler(
            data,
            self.num_train,
            shard_starts(sources["train"]) if "train" in sources else np.zeros(1, np.int64),
            seed=seed,
            rank=rank,
            world_size=world_size,
            quarantine=self._quarantine,
            pairs=pairs,
        )
        self._samplers: dict[str, Sampler] = {"train": trained, "val": evaluation}
        self._training = trained
        self._changes = Changes(data, seed)
        self._prefetchers: dict[str, Passes] = {
            kind: self._new_prefetcher(kind, source) for kind, source in sources.items()
        }
        self._exchange = Exchange(
            Place(rank, world_size, local_rank, local_size),
            [
                cached
                for cached in self._prefetchers.values()
                if isinstance(cached, CachedPrefetcher)
            ],
            (sources["val"], evaluation) if rect_val and self.num_val else None,
            self._readers,
        )

    def __enter__(self) -> Loaders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads; iterators still open get no more batches."""
        for prefetcher in self._prefetchers.values():
            prefetcher.close()
        self._readers.shutdown(cancel_futures=True)

    def doing(self) -> str:
        """What keeps the next batch from being there, such as `reading FILE`; for any thread to ask."""
        return next(filter(None, (each.doing() for each in self._prefetchers.values())), "")

    def offer(self) -> str:
        """What other ranks need from this one before the first pass: give it to their `accept`.

        Raises DataError where a cache cannot be made.
        """
        return self._exchange.offer()

    def accept(self, offers: list[str]) -> None:
        """Use the `offer` of every rank, in rank order, and decode this rank's share of a cache.

        No pass may begin before every rank of the node has done this. Raises DataError like
        `train`.
        """
        self._exchange.accept(offers, self.decode_threads)

    def train(self, epoch: EpochSpec, then: EpochSpec | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield (i, batch) for the `epoch.steps` steps left, i from 0.

        A batch has `batch_per_worker * accumulate` images. While the last batches are consumed,
        the first ones of the evaluation and of the training epoch `then` are decoded already, so
        nothing waits between two passes.
        Raises DataError where a file cannot be read or decoded, or the plan does not fit.
        """
        prefetcher = self._prefetcher("train")
        training, evaluation = self._samplers["train"], self._samplers["val"]
        stream = prefetcher.open(training.spec(epoch))
        if then is not None:
            if self.num_val:
                self._prefetchers["val"].prepare(evaluation.spec(epoch), stream)
            prefetcher.prepare(training.spec(then), stream)
        batches = self._deliver(prefetcher.batches(stream), epoch.index)
        return enumerate(batches)

    def val(self, epoch: EpochSpec) -> Iterator[Batch]:
        """Yield this rank's share of all evaluation images at `epoch.val_image_size`.

        Over all ranks every image has weight 1 exactly once. Every rank gets the same number of
        batches, all of one size of at most `batch_per_worker`. Raises DataError like `train`.
        """
        prefetcher = self._prefetcher("val")
        stream = prefetcher.open(self._samplers["val"].spec(epoch))
        return self._deliver(prefetcher.batches(stream))

    def val_batches(self, epoch: EpochSpec) -> int:
        """How many batches `val` yields; the same on all ranks."""
        sampler = self._samplers["val"]
        return sum(1 for _ in sampler.shares(sampler.spec(epoch)))

    def order_warning(self) -> str | None:
        """One line if the order of training images mixes classes badly, else None."""
        if "train" not in self.sources:
            return None
        return self._training.order_warning(self.sources["train"].labels)

    def take_changed(self) -> list[str]:
        """Files that this rank has found to be changed in mid-run since the last call."""
        return [name for source in self._watched for name in source.take_changed()]

    def take_retried(self) -> Retried:
        """Reads that this process has tried again since the last call."""
        return RETRIES.take()

    def repaired(self, masked: Sequence[BadSample], beat: Callable[[], None]) -> list[int]:
        """The ids of those of `masked` that can be used again; see `pipelines.recheck`."""
        return repaired(self.sources["train"], masked, self.decode_threads, beat)

    def mask(self, samples: Iterable[BadSample]) -> None:
        """Mask bad training samples that any rank, or an earlier attempt of the run, has found.
        Does nothing with `data.on_bad: fail`."""
        if self._quarantine is not None:
            self._quarantine.add(samples)

    def _new_prefetcher(self, kind: str, source: Source) -> Passes:
        data, sampler = self._data, self._samplers[kind]
        if data.cache == "none":
            return Prefetcher(source, sampler, self._decoder, self._readers, data.prefetch)
        return CachedPrefetcher(
            source,
            sampler,
            Cache(source, f"data.{kind}"),
            mean=data.mean,
            std=data.std,
            device=self._device,
            on_device=data.cache == "device",
        )

    def _prefetcher(self, kind: str) -> Passes:
        if kind not in self._prefetchers:
            raise DataError(f"data.{kind}: not set")
        return self._prefetchers[kind]

    def _decoder(self, recipe: Recipe) -> Decoder:
        data = self._data
        on_cpu = self._device.type == "cpu" and recipe.graph == "window"
        kind = WindowDecoder if on_cpu else Decoder
        return kind(recipe, data.mean, data.std, self.decode_threads, self._device)

    def _deliver(
        self, batches: Generator[Batch, None, None], epoch: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches, finished for training if `epoch` is given; count their bytes and the time
        waited for them."""
        with closing(batches):
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                self.bytes_read += batch.size_bytes
                ready = self._on_device(batch)
                if epoch is not None:
                    finished = self._finished(ready, epoch)
                    ready = finished.paired() if self._pairs else finished
                    self.data_wait_s += time.perf_counter() - began
                yield ready
                self._release(batch)

    def _finished(self, batch: Batch, epoch: int) -> Batch:
        """The batch with its images changed, and a grey image of weight 0 for every bad sample."""
        batch = replace(batch, images=self._changes(batch.images, batch.copies, epoch))
        masked = self._quarantine.among(batch.indices, epoch) if self._quarantine else {}
        if not masked:
            return batch
        places = torch.tensor(list(masked), device=batch.weights.device)
        bad = tuple(masked[k] for k in places[batch.weights[places] > 0].tolist())
        grey = (PIXEL_LEVEL - torch.tensor(self._data.mean)) / torch.tensor(self._data.std)
        batch.images[places] = grey.to(batch.images)[:, None, None]
        weights = batch.weights.index_fill(0, places, 0)
        return replace(batch, weights=weights, bad=bad)

    def _on_device(self, batch: Batch) -> Batch:
        """The batch with labels and weights on the device, where the images are."""
        if self._device.type == "cpu":
            return batch
        labels, weights = copied_to(self._device, batch.labels.numpy(), batch.weights.numpy())
        return replace(batch, labels=labels, weights=weights)

    def _release(self, batch: Batch) -> None:
        """Keep the images on a GPU until the kernels queued on them so far are done: DALI owns the
        memory, and does not know the consumer's stream."""
        if self._device.type == "cpu":
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        self._in_use.append((event, batch))
        while self._in_use and self._in_use[0][0].query():
            self._in_use.popleft()
