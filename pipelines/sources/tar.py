"""WebDataset shards: tar files in which neighbouring members with the same key are one sample."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources import tar_index
from pipelines.sources.base import fingerprint
from pipelines.sources.left_out import LeftOut
from pipelines.sources.shard_paths import CLASSES, is_shards, shard_paths
from pipelines.sources.shards import Places, ShardReader
from pipelines.sources.tar_labels import class_names, classes_of

__all__ = ["IndexReport", "TarShards", "is_shards", "write_index"]


class IndexReport(NamedTuple):
    """What `write_index` did."""

    file: Path
    shards: int
    images: int
    left_out: LeftOut


def write_index(path: str, progress: tar_index.Progress = tar_index.unseen) -> IndexReport:
    """Read all headers of the shards at `path`, and save an index next to the shards.

    `progress(shards read, all shards)`.
    Raises DataError if `path` is of another kind, a shard is damaged, or the index cannot be
    written.
    """
    if "://" in path:
        raise DataError(
            "SHARDS: of a URL no index is written: it is made at the first use, and kept on each node"
        )
    if not is_shards(path):
        if not Path(path).exists():
            raise DataError(f"{path}: no such file or folder; expected tar shards")
        raise DataError(f"{path}: not tar shards; other datasets need no index")
    left_out = LeftOut()
    reader = ShardReader(shard_paths(path, "data index", left_out))
    file = tar_index.index_path(path)
    try:
        index = tar_index.write(reader, file, progress)
    except OSError as error:
        raise DataError(f"{file}: cannot write: {error.strerror}") from None
    left_out.merge(index.left_out)
    return IndexReport(file, len(reader.paths), len(index.sizes), left_out)


class TarShards:
    """The samples of tar shards, in the order of file names and members, with random access.

    A sample is the consecutive members with one key: the name up to the first dot after the last
    slash. It needs one image (`.jpg`, `.png`, …) and a label: a `.cls` with a class number or name,
    or a `.json` with it under `cls`, `label` or `class`; if both have one, they must agree. What
    belongs to no sample is counted in `left_out`. If the folder of the shards has a `classes.txt`,
    its lines are the names of the class numbers.
    The index that `hvdtrain data index` saved is used; without one, opening reads all headers, and
    writes nothing.
    """

    def __init__(self, path: str, key: str) -> None:
        """Raises DataError if shards are missing, damaged, or have samples without a label."""
        where = f"{key}: {path}"
        left_out = LeftOut()
        reader = ShardReader(shard_paths(path, key, left_out))
        saved = tar_index.index_path(path)
        if saved.is_file():
            index = tar_index.load(saved, reader, where)
        else:
            index = tar_index.read_headers(reader)
        self._begin(reader, index, left_out, where)

    def _begin(
        self, reader: ShardReader, index: tar_index.TarIndex, left_out: LeftOut, where: str
    ) -> None:
        """Take over the shards and their index. Raises DataError as `__init__` does."""
        self.left_out, self._reader = left_out, reader
        self.left_out.merge(index.left_out)
        if not len(index.sizes):
            found = f"; {self.left_out.text()}" if self.left_out else ""
            raise DataError(f"{where}: no images in the tar files{found}")
        self.shard_starts = index.starts
        self._places = Places(index.starts, index.offsets, index.sizes)
        self._names = index.names
        self.classes, self.labels = classes_of(index.numbers, index.texts, self._named(), where)
        self.fingerprint = fingerprint(self.classes, self.labels, self._names, index.sizes)

    def _named(self) -> list[str] | None:
        """The names of the class numbers."""
        return class_names(Path(self._reader.paths[0]).parent / CLASSES)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The shard and the member of sample `i`."""
        return f"{self._reader.paths[self._places[i][0]]}:{os.fsdecode(self._names[i])}"

    @property
    def sizes(self) -> np.ndarray:
        """[len] int64: bytes of each image."""
        return self._places.sizes

    def shard_of(self, i: int) -> tuple[int, str]:
        """Number and path of the shard that sample `i` is in."""
        shard = self._places[i][0]
        return shard, self._reader.paths[shard]

    def read(self, i: int) -> np.ndarray:
        """The bytes of image `i`, [bytes] uint8. Raises DataError naming it."""
        try:
            return self._reader.read(*self._places[i])
        except DataError as error:
            raise DataError(f"{self.name(i)}: {error}") from None
