"""Samplers: which samples one rank uses in each step of an epoch, and how they are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines import copies, order
from pipelines.bad import Quarantine
from pipelines.images import recipes
from pipelines.images.recipes import Recipe
from pipelines.rectangular import Rectangles
from pipelines.sources import Source

FILES_PER_SHARD = 1024
"""Consecutive files that count as a shard for `data.shuffle: shards` if there are no shards."""
_PARTNERS = 2**40  # keeps the orders of partners apart from those of epochs
GOOD_MIX = 0.9
"""A run warns if batches have fewer classes than this share of what a full shuffle gives."""


class EpochSpec(Protocol):
    """What the loaders need to know about an epoch."""

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
    def rect_val(self) -> bool:
        """Whether evaluation images are rectangles, in groups of similar shape."""

    @property
    def min_crop_area(self) -> float:
        """Smallest share of the image that a random resized crop keeps."""

    @property
    def crop_aspect(self) -> list[float] | None:
        """Smallest and largest width/height of a random resized crop; None: `data.crop_aspect`."""

    @property
    def interpolation(self) -> str:
        """Filter of all resizing: bilinear or bicubic."""

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


class Pass(NamedTuple):
    """Everything that decides the batches of one pass; equal passes give equal batches."""

    epoch: int
    image_size: int
    min_crop_area: float
    batch: int
    """Images per rank."""
    start: int
    """First place of the order."""
    interpolation: str
    """Filter of all resizing: bilinear or bicubic."""
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest width/height of a random resized crop."""
    rectangular: bool = False
    """Whether images are rectangles, in groups of similar shape, instead of squares."""


class Sampler(Protocol):
    """Chooses the samples of one rank for a pass, and how they are prepared."""

    quarantine: Quarantine | None
    """The masked samples; None: the first bad one ends the pass."""

    def spec(self, epoch: EpochSpec) -> Pass:
        """The pass over this dataset in `epoch`."""

    def shares(self, spec: Pass) -> Iterator[order.Share]:
        """The samples of this rank in each step of a pass."""

    def recipe(self, spec: Pass) -> Recipe:
        """How its images are prepared."""

    def short_side(self, spec: Pass) -> int | None:
        """Short side in pixels that a copy needs, where the source has copies; None: the largest
        copy."""


class TrainingSampler:
    """Every image once, in an order that depends only on the seed and the epoch; or with
    `data.repeats` R, R times within R epochs. With `pairs` every share has as many images again, in
    another order, so that every image is once the partner of another."""

    def __init__(
        self,
        data: Data,
        num_samples: int,
        shard_starts: np.ndarray,
        *,
        seed: int,
        rank: int,
        world_size: int,
        quarantine: Quarantine | None,
        pairs: bool = False,
    ) -> None:
        self.quarantine, self._pairs = quarantine, pairs
        self._data, self._seed, self._num_samples = data, seed, num_samples
        self._rank, self._world_size = rank, world_size
        self._shard_starts = shard_starts

    def spec(self, epoch: EpochSpec) -> Pass:
        """The rest of `epoch`; raises DataError if the plan has another number of steps."""
        batch = epoch.batch_per_worker * epoch.accumulate
        left = order.steps_left(
            self._num_samples, start=epoch.start, global_batch=batch * self._world_size
        )
        if left != epoch.steps:
            raise DataError(
                f"data.train: {self._num_samples} images make {left} steps in epoch "
                f"{epoch.index}, the plan has {epoch.steps}; is data.train_size right?"
            )
        low, high = epoch.crop_aspect or self._data.crop_aspect
        return Pass(
            epoch.index,
            epoch.image_size,
            epoch.min_crop_area,
            batch,
            epoch.start,
            epoch.interpolation,
            (low, high),
        )

    def shares(self, spec: Pass) -> Iterator[order.Share]:
        """One share a step; the last is filled up with weight 0."""
        place = spec.start, spec.batch, self._rank, self._world_size
        own = order.shares(self._order(spec.epoch), *place)
        if not self._pairs:
            return own
        others = self._each_once(spec.epoch + _PARTNERS) + order.COPY
        pairs = zip(own, order.shares(others, *place), strict=True)
        return (order.Share(*map(np.concatenate, zip(*pair, strict=True))) for pair in pairs)

    def order_warning(self, labels: np.ndarray) -> str | None:
        """One line if batches of `data.shuffle: shards` hold too few classes, else None.

        `labels` [num_samples]: class of each sample. Judged on the first epoch.
        """
        if self._data.shuffle == "full":
            return None
        full = order.permutation(self._num_samples, seed=self._seed, epoch=0)
        best = order.classes_per_batch(labels, full)
        actual = order.classes_per_batch(labels, self._each_once(0))
        if actual >= GOOD_MIX * best:
            return None
        return (
            f"data.shuffle: shards: 256 images in a row have {actual:.0f} classes on average, "
            f"{best:.0f} with shuffle full: accuracy may suffer; raise data.shuffle_window "
            f"({self._data.shuffle_window}), or shuffle the images before packing"
        )

    def _order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch as `Share.copies` has them: [num_samples] int64."""
        repeats = self._data.repeats
        turn = epoch % repeats
        once = self._each_once(epoch - turn)
        return order.repeated(once, repeats=repeats, turn=turn) if repeats > 1 else once

    def _each_once(self, epoch: int) -> np.ndarray:
        if self._data.shuffle == "full":
            return order.permutation(self._num_samples, seed=self._seed, epoch=epoch)
        return order.shard_permutation(
            self._shard_starts,
            self._num_samples,
            window=self._data.shuffle_window,
            seed=self._seed,
            epoch=epoch,
        )

    def recipe(self, spec: Pass) -> Recipe:
        """The recipe of `data.augment`."""
        return recipes.training(
            self._data,
            seed=self._seed,
            epoch=spec.epoch,
            image_size=spec.image_size,
            min_area=spec.min_crop_area,
            aspect=spec.crop_aspect,
            interpolation=spec.interpolation,
        )

    def short_side(self, spec: Pass) -> int | None:
        """Enough for the crops of `data.augment`."""
        return copies.training_side(spec.image_size, spec.min_crop_area, self._data.augment)


class EvaluationSampler:
    """Every image once: in the order of the source, or grouped by shape."""

    def __init__(self, data: Data, num_samples: int, *, rank: int, world_size: int) -> None:
        self.quarantine: Quarantine | None = None
        self._data, self._num_samples = data, num_samples
        self._rank, self._world_size = rank, world_size
        self.rectangles: Rectangles | None = None
        """The groups, once the shapes of all images are known."""

    def spec(self, epoch: EpochSpec) -> Pass:
        """Equal batches, as few as `batch_per_worker` allows, with hardly any padding."""
        if epoch.rect_val:
            batch = self._groups().batch(epoch.batch_per_worker)
            return Pass(
                0, epoch.val_image_size, 1.0, batch, 0, epoch.interpolation, rectangular=True
            )
        steps = order.steps_left(
            self._num_samples, start=0, global_batch=epoch.batch_per_worker * self._world_size
        )
        batch = -(-self._num_samples // (steps * self._world_size))
        return Pass(0, epoch.val_image_size, 1.0, batch, 0, epoch.interpolation)

    def shares(self, spec: Pass) -> Iterator[order.Share]:
        """One share a step; the last is filled up with weight 0."""
        if spec.rectangular:
            return self._groups().shares(spec.batch, self._rank, self._world_size)
        ids = np.arange(self._num_samples)
        return order.shares(ids, spec.start, spec.batch, self._rank, self._world_size)

    def recipe(self, spec: Pass) -> Recipe:
        """Resize, then centre crop."""
        if spec.rectangular:
            return recipes.evaluation(
                self._data,
                self._groups().targets(spec.image_size).__getitem__,
                spec.interpolation,
            )
        square = np.array([spec.image_size, spec.image_size])
        return recipes.evaluation(self._data, lambda _ids: square, spec.interpolation)

    def short_side(self, spec: Pass) -> int | None:
        """Enough for the size before the crop."""
        return copies.evaluation_side(spec.image_size, self._data.val_crop_ratio)

    def _groups(self) -> Rectangles:
        if self.rectangles is None:
            raise RuntimeError("phases.rect_val: Loaders.accept was not called")
        return self.rectangles


def shard_starts(source: Source) -> np.ndarray:
    """The first sample of each shard of `source`, or of each `FILES_PER_SHARD` files."""
    starts: np.ndarray | None = getattr(source, "shard_starts", None)
    return np.arange(0, len(source), FILES_PER_SHARD) if starts is None else starts
