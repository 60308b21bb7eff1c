"""WebDataset shards: tar files in which neighbouring members with the same key are one sample."""

from __future__ import annotations

import os
import re
from itertools import product
from pathlib import Path

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources import tar_index
from pipelines.sources.base import fingerprint
from pipelines.sources.shards import Places, ShardReader
from pipelines.sources.tar_index import TarIndex

_BRACES = re.compile(r"\{([^{}]*)\}")


def is_shards(path: str) -> bool:
    """Whether `path` is a tar file, a pattern of tar files, or a folder with some."""
    if path.endswith(".tar"):
        return True
    return Path(path).is_dir() and any(name.endswith(".tar") for name in os.listdir(path))  # noqa: PTH208


def write_index(path: str) -> tuple[Path, int, int]:
    """Read all headers of the shards at `path`, and save an index next to the shards.

    Returns the file, the number of shards and the number of images. Raises DataError if `path`
    is of another kind, a shard is damaged, or the index cannot be written.
    """
    if not is_shards(path) and not any(sign in path for sign in "*?[") and not Path(path).exists():
        raise DataError(f"{path}: no such file or folder; expected tar shards")
    if not is_shards(path):
        raise DataError(f"{path}: not tar shards; other datasets need no index")
    reader = ShardReader(_shard_paths(path, "data index"))
    file = tar_index.index_path(path)
    try:
        index = tar_index.write(reader, file)
    except OSError as error:
        raise DataError(f"{file}: cannot write: {error.strerror}") from None
    return file, len(reader.paths), len(index.sizes)


class TarShards:
    """The samples of tar shards, in the order of file names and members, with random access.

    A sample is the consecutive members with one key: the name up to the first dot after the last
    slash. It needs an image (`.jpg`, `.png`, …) and a label: a `.cls` with a class number or name,
    or a `.json` with it under `cls`, `label` or `class`. If the folder of the shards has a
    `classes.txt`, its lines are the names of the class numbers.
    The index that `hvdtrain data index` saved is used; without one, opening reads all headers, and
    writes nothing.
    """

    def __init__(self, path: str, key: str) -> None:
        """Raises DataError if shards are missing, damaged, or have samples without a label."""
        where = f"{key}: {path}"
        self._reader = ShardReader(_shard_paths(path, key))
        saved = tar_index.index_path(path)
        if saved.is_file():
            index = tar_index.load(saved, self._reader, where)
        else:
            index = tar_index.read_headers(self._reader)
        if not len(index.sizes):
            raise DataError(f"{where}: no images in the tar files")
        self.shard_starts = index.starts
        self._places = Places(index.starts, index.offsets, index.sizes)
        self._names = index.names
        folder = Path(self._reader.paths[0]).parent
        self.classes, self.labels = _classes(index, folder, where)
        self.fingerprint = fingerprint(self.classes, self.labels, self._names, index.sizes)

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


def _classes(index: TarIndex, folder: Path, where: str) -> tuple[list[str], np.ndarray]:
    """Class names, and the class of every sample [len] int32."""
    named = folder / "classes.txt"
    classes = named.read_text(encoding="utf-8").splitlines() if named.is_file() else None
    if not index.texts:
        lowest, highest = int(index.numbers.min()), int(index.numbers.max())
        if lowest < 0 or (classes is not None and highest >= len(classes)):
            known = f"0 to {len(classes) - 1} (classes.txt)" if classes else "0 or more"
            raise DataError(f"{where}: class numbers {lowest} to {highest}; expected {known}")
        names = classes or [str(k) for k in range(highest + 1)]
        return names, index.numbers.astype(np.int32)
    classes = classes or index.texts
    number_of = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(set(index.texts) - set(classes)):
        raise DataError(f"{where}: class {unknown[0]!r} is not in classes.txt")
    class_of_text = np.array([number_of[text] for text in index.texts], dtype=np.int32)
    return classes, class_of_text[index.numbers]


def _shard_paths(path: str, key: str) -> list[str]:
    if Path(path).is_dir():
        return sorted(str(file) for file in Path(path).iterdir() if file.name.endswith(".tar"))
    paths = _expanded(path)
    for shard in paths:
        if not Path(shard).is_file():
            raise DataError(f"{key}: {shard}: no such file")
    return paths


def _expanded(pattern: str) -> list[str]:
    """All names of a pattern like `a-{00..12}-{x,y}.tar`, as in bash."""
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if k % 2 else [part] for k, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        step = 1 if int(first) <= int(last) else -1
        return [f"{k:0{len(first)}d}" for k in range(int(first), int(last) + step, step)]
    return text.split(",")
