"""Takes the inventory of a dataset: names, classes and sizes of its samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.sources.base import Source
from pipelines.sources.folder import ImageFolder
from pipelines.sources.inventory import UNKNOWN, Inventory, names_below
from pipelines.sources.listing import Listing
from pipelines.sources.packed import Packed
from pipelines.sources.scanned import Checked
from pipelines.sources.subset import origin
from pipelines.sources.tar import TarShards

_CHUNK = 4096  # files whose sizes are taken at once


def take(source: Source, path: str, sizes: np.ndarray | None = None) -> Inventory:
    """The inventory of `source`, which was opened from `path`.

    `sizes` [len]: those of `file_sizes`; None: only those that the source knows already.
    """
    known, crc32 = known_sizes(source)
    names = names_below(source, path)
    return Inventory(
        list(source.classes), source.labels, names, known if sizes is None else sizes, crc32
    )


def known_sizes(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Size and crc32 of every sample as far as the source's own index has them, [len] int64."""
    base, ids = origin(source)
    sizes = crc32 = np.full(len(base), UNKNOWN, dtype=np.int64)
    if isinstance(base, Packed):
        copy = base.at(None).copy
        sizes, crc32 = base.column(f"{copy}.size"), base.column(f"{copy}.crc32")
    elif isinstance(base, Checked):
        crc32 = base.crc32
        sizes, _crc = known_sizes(base.source)
    elif isinstance(base, TarShards):
        sizes = base.sizes
    return sizes[ids].astype(np.int64), crc32[ids].astype(np.int64)


def has_files(source: Source) -> bool:
    """Whether every sample is a file of its own, whose size only the file system knows."""
    base, _ids = origin(source)
    return isinstance(base.source if isinstance(base, Checked) else base, (ImageFolder, Listing))


def file_sizes(
    source: Source, ids: np.ndarray, threads: int = 1, stop: Callable[[], bool] = lambda: False
) -> np.ndarray:
    """The sizes of the files of samples `ids`, [N] int64; UNKNOWN for what is not there.

    Those left when `stop` returns true are UNKNOWN as well.
    """

    def look(part: np.ndarray) -> list[int]:
        return [UNKNOWN if stop() else _size(source.name(i)) for i in part.tolist()]

    parts = [ids[k : k + _CHUNK] for k in range(0, len(ids), _CHUNK)]
    if threads == 1:
        found = [size for part in parts for size in look(part)]
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="hvdtrain-sizes") as pool:
            found = [size for part in pool.map(look, parts) for size in part]
    return np.array(found, dtype=np.int64)


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size  # noqa: PTH116 - a million times
    except (OSError, ValueError):
        return UNKNOWN
