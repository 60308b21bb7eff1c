"""Heights and widths of all images of a dataset, of which every rank reads a share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hvdtrain.errors import DataError
from pipelines.images.headers import HeaderError, image_size
from pipelines.sources import Source
from pipelines.sources.packed import Packed
from pipelines.sources.subset import origin

_AT_ONCE = 64  # images read by one task


def read_sizes(source: Source, ids: np.ndarray, readers: ThreadPoolExecutor) -> np.ndarray:
    """Height and width in pixels of samples `ids` [N], upright: [N, 2] int64.

    Reads the images, except of a packed dataset, whose index has the sizes. Raises DataError
    naming a bad image.
    """
    source, places = origin(source)
    ids = places[ids]
    if isinstance(source, Packed):
        return np.stack([source.column(side)[ids] for side in ("height", "width")], axis=1)

    def read(part: np.ndarray) -> list[tuple[int, int]]:
        sizes = []
        for i in part.tolist():
            try:
                sizes.append(image_size(source.read(i)))
            except HeaderError as error:
                raise DataError(f"{source.name(i)}: {error}") from None
        return sizes

    parts = [ids[first : first + _AT_ONCE] for first in range(0, len(ids), _AT_ONCE)]
    sizes = [size for part in readers.map(read, parts) for size in part]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def share(count: int, rank: int, world_size: int) -> np.ndarray:
    """The ids whose sizes `rank` reads."""
    return np.arange(rank, count, world_size)


def joined(count: int, parts: Sequence[list[list[int]]]) -> np.ndarray:
    """The sizes of all images, [count, 2] int64; `parts`: what each rank has read."""
    sizes = np.empty((count, 2), dtype=np.int64)
    for rank, part in enumerate(parts):
        sizes[rank :: len(parts)] = np.array(part, dtype=np.int64).reshape(-1, 2)
    return sizes
