"""Which copy of a packed dataset a pass reads, and what that costs.

A copy has all images with a short side of c pixels; smaller images are in it as they were. A pass
reads the smallest copy that is large enough.

**Random resized crops** of `image_size` s: the average crop has a share of (1 + min_crop_area) / 2
of a photograph's area. With sides as 4 to 3 its own side is c·√(4/3 · (1 + min_crop_area) / 2)
pixels. It may be enlarged by 5 %, and c must be at least s:

    c ≥ s · max(1, 1 / (1.05 · √(2/3 · (1 + min_crop_area))))

With min_crop_area 0.08 that is 1.122·s (144 for 128 px, 252 for 224 px), with 0.25 it is
1.043·s, from 0.36 on it is s. **Whole images** need c ≥ s. **Evaluation** needs the size before
its centre crop, s / val_crop_ratio. So copies of 160 and 256 serve 128 and 224 px.

The crops that are really drawn are smaller, because large ones often do not fit and are drawn
again. At min_crop_area 0.08 the median crop is enlarged 1.08 times at 128 px from 160, and 1.21
times at 224 px from 256. `Reading` has the figures for the given images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from hvdtrain.config.data import Data
from pipelines.images import augment
from pipelines.reading import Reading
from pipelines.sources.base import Source
from pipelines.sources.classes import Relabelled
from pipelines.sources.packed import ORIGINAL, Copy, Packed
from pipelines.sources.subset import Subset, origin

_ENLARGEMENT = 1.05
_PHOTOGRAPH = 4 / 3  # long side / short side
_SAMPLED = 20_000  # images looked at for statistics


class Phase(Protocol):
    """What decides which copy a training phase needs."""

    @property
    def largest_image_size(self) -> int:
        """Side of its largest training images in pixels."""

    @property
    def min_crop_area(self) -> float:
        """Smallest share of an image's area that a random crop keeps."""

    @property
    def crop_aspect(self) -> list[float] | None:
        """Smallest and largest width/height of its crops; None: those of `Data`."""


def training_side(image_size: int, min_area: float, augment: str) -> int:
    """Short side in pixels that a copy needs for training at `image_size`."""
    if augment != "random_resized_crop":
        return image_size
    crop = math.sqrt(_PHOTOGRAPH * (1 + min_area) / 2)  # of the short side
    return math.ceil(image_size * max(1.0, 1 / (_ENLARGEMENT * crop)))


def evaluation_side(image_size: int, crop_ratio: float) -> int:
    """Short side in pixels that a copy needs for evaluation at `image_size`."""
    return max(image_size, round(image_size / crop_ratio))


def view(source: Source, short_side: int | None) -> Source:
    """The copy to read for `short_side` (None: the largest); `source` itself if it has no copies."""
    if isinstance(source, (Relabelled, Subset)):
        copy = view(source.source, short_side)
        return source if copy is source.source else source.over(copy)
    return source.at(short_side) if isinstance(source, Packed) else source


def enlargement(sizes: np.ndarray, short_side: int | None, phase: Phase, data: Data) -> np.ndarray:
    """The factor by which the side of each crop is enlarged, [N] float64; below 1 it shrinks.

    `sizes` [N, 2]: heights and widths of the original images. `short_side`: of the copy; None: the
    originals. The crops are those that training draws for seed 0 in epoch 0.
    """
    if short_side is not None:
        scale = np.minimum(1.0, short_side / sizes.min(axis=1, keepdims=True))
        sizes = np.rint(sizes * scale).astype(np.int64)
    windows = augment.whole(sizes)
    if data.augment == "random_resized_crop":
        draws = augment.draw(np.arange(len(sizes)), seed=0, epoch=0)
        low, high = phase.crop_aspect or data.crop_aspect
        windows = augment.random_resized_crop(
            sizes, draws, min_area=phase.min_crop_area, aspect=(low, high)
        )
    pixels = windows[:, 2:].prod(axis=1, dtype=np.int64)
    factors: np.ndarray = phase.largest_image_size / np.sqrt(pixels)
    return factors


def readings(source: Source, data: Data, phases: Iterable[Phase]) -> list[Reading]:
    """What training reads in each phase; [] unless the dataset is packed.

    For a phase whose images grow it is what the epoch with the largest images reads.
    """
    packed, ids = origin(source)
    if not isinstance(packed, Packed):
        return []
    some = ids[:: -(-len(ids) // _SAMPLED)]
    sides = [packed.column(name)[some].astype(np.int64) for name in ("height", "width")]
    sizes = np.stack(sides, axis=1)
    means = packed.bytes_per_image(ids)
    result: list[Reading] = []
    for phase in phases:
        side = training_side(phase.largest_image_size, phase.min_crop_area, data.augment)
        copy: Copy = packed.at(side)
        factors = [enlargement(sizes, side, phase, data) for side in (copy.short_side, None)]
        result.append(
            Reading(
                copy.copy,
                means[copy.copy],
                means.get(ORIGINAL) if copy.short_side else None,
                *(float(value) for f in factors for value in ((f > 1).mean(), np.median(f))),
            )
        )
    return result
