"""Splits one dataset into training and validation images: `data.val: 0.2`."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from pipelines.hashing import hash64
from pipelines.sources.base import Source
from pipelines.sources.inventory import names_below
from pipelines.sources.left_out import left_out_of, printable
from pipelines.sources.subset import Subset

_SPLIT = 11  # keeps these draws apart from those of other modules


class Split(NamedTuple):
    """The two parts of a dataset. Each image is in one of them."""

    train: Source
    val: Source | None
    """None: nothing is held out."""


def split(source: Source, share: float, *, path: str, seed: int) -> Split:
    """Hold out `share` of the images of each class of `source`, opened from `path`, for validation.

    The number is rounded, and at least one image of each class is for training. Which images are
    held out depends on `seed` and on the names of the images below `path`, not on their order. So
    the dataset may move, and if images are added most of the others stay in their part.
    Raises DataError if no image would be left for validation.
    """
    names = names_below(source, path)
    sums = [zlib.crc32(names[i]) for i in range(len(names))]
    draws = hash64(np.array(sums, dtype=np.uint64), _SPLIT, seed)
    held = held_out(source.labels, draws, share)
    if not held.any():
        largest = int(np.bincount(source.labels).max())
        raise DataError(
            f"data.val: {share:g} of each class of {printable(path)} is less than one image, the "
            f"largest class has {largest}: give a larger share, or a folder of validation images"
        )
    train = Subset(source, np.flatnonzero(~held))
    train.left_out = left_out_of(source)
    return Split(train, Subset(source, np.flatnonzero(held)))


def held_out(labels: np.ndarray, draws: np.ndarray, share: float) -> np.ndarray:
    """Which samples are for validation, [len] bool: those of the lowest `draws` in each class.

    `labels` [len]: class of each sample. `draws` [len]: a random number for each.
    """
    order = np.lexsort((draws, labels))  # by class, then by draw; equal draws in their order
    counts = np.bincount(labels)
    firsts = np.cumsum(counts) - counts  # of each class in `order`
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(firsts, counts)
    wanted = np.minimum(np.floor(counts * share + 0.5).astype(np.int64), counts - 1)
    held: np.ndarray = ranks < wanted[labels]
    return held
