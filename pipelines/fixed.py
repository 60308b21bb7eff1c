"""A fixed choice of images, prepared as for evaluation, in the same batches at every pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hvdtrain.config.data import Data
from pipelines import order
from pipelines.images.decoder import Decoder
from pipelines.images.on_device import Changes
from pipelines.images.recipes import Recipe
from pipelines.images.windows import WindowDecoder
from pipelines.memory import limit_arenas
from pipelines.prefetcher import Prefetcher
from pipelines.sampling import EvaluationSampler, Pass, Sampler, TrainingSampler
from pipelines.sources import Source
from pipelines.stream import Batch, Readers


@dataclass(frozen=True)
class Augmented:
    """Augmented as by `data` in an epoch of a training: one draw for each image, the same at every pass."""

    seed: int
    """Of the run."""
    epoch: int
    min_crop_area: float
    """As in an epoch's plan, like `crop_aspect`."""
    crop_aspect: tuple[float, float]


@dataclass(frozen=True)
class Preparation:
    """How the images are prepared."""

    image_size: int
    """Side in pixels."""
    interpolation: str
    """Filter of all resizing: bilinear or bicubic."""
    device: torch.device
    threads: int
    """That decode."""
    augmented: Augmented | None = None
    """None: as for evaluation."""


def chosen_batches(
    num_samples: int, images: int, batch: int, seed: int, *, shuffled: bool = False, fewest: int = 1
) -> list[np.ndarray]:
    """`images` samples of `num_samples`, drawn without replacement, in batches of ids [batch] int64.

    The last batches may be one image shorter. All samples, if `images` is larger than their number. The choice
    depends on the arguments only, so it is the same on every rank. `shuffled`: each batch is a random sample, as
    in training; else every batch has about the same share of each class. `fewest`: batches are smaller if there
    were fewer of them.
    """
    drawn = order.permutation(num_samples, seed=seed, epoch=0)[:images]
    ids = np.sort(drawn)
    # Sorted ids are read in sequence; dealt out in turn, they mix the classes of a folder.
    count = max(-(-len(ids) // batch), min(fewest, len(ids)))
    dealt = drawn if shuffled else ids
    return [np.sort(dealt[first::count]) for first in range(count)]


class FixedImages:
    """The images of `batches` of one dataset; iterating gives them, whole passes as often as wanted.

    As many batches as `keep_bytes` allows stay in memory after the first pass. If they are not all of them,
    every later pass decodes again. A context manager; leaving it ends all threads.
    """

    def __init__(
        self,
        source: Source,
        batches: Sequence[np.ndarray],
        data: Data,
        how: Preparation,
        keep_bytes: float,
    ) -> None:
        limit_arenas()
        self.batches = list(batches)
        self._data, self._how, self._keep_bytes = data, how, keep_bytes
        self._kept: list[Batch] = []
        self._readers = Readers([source])
        seed = how.augmented.seed if how.augmented else 0
        self._changes = Changes(data, seed)
        self._sampler: Sampler = (
            _AugmentedSampler(data, self.batches, seed)
            if how.augmented
            else _FixedSampler(data, self.batches)
        )
        self._prefetcher = Prefetcher(
            source, self._sampler, self._decoder, self._readers, data.prefetch
        )

    @property
    def num_images(self) -> int:
        """Of all batches."""
        return sum(map(len, self.batches))

    def __enter__(self) -> FixedImages:
        return self

    def __exit__(self, *_: object) -> None:
        self._prefetcher.close()
        self._readers.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        """The batches, without filling: every weight is 1. Raises DataError where one cannot be made."""
        if self._kept and len(self._kept) == len(self.batches):
            yield from self._kept
            return
        if not self.batches:
            return
        self._kept, kept_bytes = [], 0
        for batch in self._prefetcher.batches(self._prefetcher.open(self._pass())):
            own = self._own(batch)
            kept_bytes += own.images.numel() * own.images.element_size()
            if kept_bytes <= self._keep_bytes:
                self._kept.append(own)
            yield own

    def _pass(self) -> Pass:
        how, count = self._how, max(map(len, self.batches))
        if how.augmented is None:
            return Pass(0, how.image_size, 1.0, count, 0, how.interpolation)
        drawn = how.augmented
        plan = (drawn.epoch, how.image_size, drawn.min_crop_area, count, 0, how.interpolation)
        return Pass(*plan, drawn.crop_aspect)

    def _own(self, batch: Batch) -> Batch:
        """The batch without filling, in memory of its own."""
        count = int(batch.weights.sum())
        images, ids = batch.images[:count].clone(), batch.indices[:count]
        if self._how.augmented is not None:
            epoch = self._how.augmented.epoch
            images = self._changes(images, ids, epoch)
        own = replace(
            batch,
            images=images,
            labels=batch.labels[:count].to(self._how.device),
            weights=batch.weights[:count].to(self._how.device),
            copies=ids,
        )
        if self._how.device.type == "cuda":  # DALI does not know the stream that copies
            torch.cuda.current_stream(self._how.device).synchronize()
        return own

    def _decoder(self, recipe: Recipe) -> Decoder:
        how, data = self._how, self._data
        kind = WindowDecoder if how.device.type == "cpu" and recipe.graph == "window" else Decoder
        return kind(recipe, data.mean, data.std, how.threads, how.device)


class _FixedSampler(EvaluationSampler):
    """Gives the batches as they are; shorter ones are filled up with weight 0."""

    def __init__(self, data: Data, batches: Sequence[np.ndarray]) -> None:
        super().__init__(data, sum(map(len, batches)), rank=0, world_size=1)
        self._batches = batches

    def shares(self, spec: Pass) -> Iterator[order.Share]:
        """One for each batch."""
        return _filled(self._batches, spec.batch)


class _AugmentedSampler(TrainingSampler):
    """The same, prepared as for training."""

    def __init__(self, data: Data, batches: Sequence[np.ndarray], seed: int) -> None:
        count, starts = sum(map(len, batches)), np.zeros(1, np.int64)
        super().__init__(data, count, starts, seed=seed, rank=0, world_size=1, quarantine=None)
        self._batches = batches

    def shares(self, spec: Pass) -> Iterator[order.Share]:
        """One for each batch."""
        return _filled(self._batches, spec.batch)


def _filled(batches: Sequence[np.ndarray], size: int) -> Iterator[order.Share]:
    places = np.arange(size)
    for ids in batches:
        yield order.Share(ids[places % len(ids)], (places < len(ids)).astype(np.float32))
