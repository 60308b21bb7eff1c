"""A dataset made by `hvdtrain data pack`: shards, and an index of every copy of every image.

DST/dataset.json   classes, copies, settings, size and crc32 of every file; written last
DST/index.npz      labels, names, heights, widths; offsets, sizes, crc32 of every copy
DST/orig/00000.tar the images as they were (shards are WebDataset: NUMBER.jpg, NUMBER.cls)
DST/160/00000.tar  the same images with a short side of 160 pixels
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.arrays import DamagedError, are_whole, read_arrays, require
from pipelines.sources.base import Names
from pipelines.sources.retries import RETRIES
from pipelines.sources.shards import Places, ShardReader

DATASET = "dataset.json"
INDEX = "index.npz"
ORIGINAL = "orig"
FORMAT = 1


def is_packed(path: str) -> bool:
    """Whether `path` is a packed dataset or one copy in it."""
    return _root(path) is not None


class Packed:
    """All images of a packed dataset; reads its largest copy, and `at` gives another one.

    Labels, order and fingerprint are the same for every copy. Every image is checked against
    its crc32 from the time of packing.
    """

    def __init__(self, path: str, key: str) -> None:
        """`path`: the dataset, or the folder of one copy, which is then the only one read.

        Raises DataError if files are missing or have another size than when they were packed.
        """
        root = _root(path)
        assert root is not None
        self._begin(
            root, str(root), Path(path).name if root != Path(path) else None, f"{key}: {path}"
        )

    def _begin(self, root: Path, shown: str, copy: str | None, where: str) -> None:
        """`root`: the folder of description and index. `shown`: the dataset's name in messages. `copy`: the
        only one to read. Raises DataError as `__init__` does."""
        self.root, self._shown, self.where = root, shown, where
        self.description = read_description(root, self.where)
        """The content of `dataset.json`."""
        _check_size(root / INDEX, self.description["files"][INDEX]["size"], self.where)
        if copy is not None:
            self.description["copies"] = {copy: self.description["copies"][copy]}
        self.classes: list[str] = self.description["classes"]
        self.fingerprint: str = self.description["fingerprint"]
        self.labels = self.column("label")
        self.shard_starts = self.column("shard_starts")
        starts = self.shard_starts
        self.require(
            are_whole(self.labels),
            not len(self.labels) or int(self.labels.max()) < len(self.classes),
            are_whole(starts) and bool((np.diff(starts, prepend=0) >= 0).all()),
        )
        self._names: Names | None = None
        self._views = {name: Copy(self, name) for name in self.description["copies"]}
        self._whole = self._views[copy_for(self.description["copies"], None)]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path of the dataset, and the name that sample `i` had in the packed source."""
        if self._names is None:
            ends = self.column("name_ends")
            self.require(are_whole(ends, len(self)))
            self._names = Names(self.column("names").tobytes(), ends)
        return f"{self._shown}:{self._names[i].decode('utf-8', 'surrogateescape')}"

    def read(self, i: int) -> np.ndarray:
        """The bytes of image `i` in the largest copy. Raises DataError naming it."""
        return self._whole.read(i)

    def at(self, short_side: int | None) -> Copy:
        """The smallest copy with at least this short side, in pixels; None: the largest."""
        view = self._views[copy_for(self.description["copies"], short_side)]
        view.load()
        return view

    def bytes_per_image(self, ids: np.ndarray | None = None) -> dict[str, float]:
        """Mean size of the images of each copy, by its name, without what tar adds.

        `ids`: of these samples alone. Raises DataError if the index is damaged.
        """
        chosen = slice(None) if ids is None else ids
        return {name: float(self.column(f"{name}.size")[chosen].mean()) for name in self._views}

    def column(self, name: str) -> np.ndarray:
        """One array of the index, [len] or flat. Raises DataError if the index is damaged."""
        try:
            return read_arrays(self.root / INDEX, name)[name]
        except DamagedError as error:
            raise DataError(f"{self.where}: {INDEX}: {error}; pack it again") from None

    def shards(self, names: list[str]) -> ShardReader:
        """Reads these files of the dataset. Raises DataError if one has another size than when it was packed."""
        for name in names:
            _check_size(self.root / name, self.description["files"][name]["size"], self.where)
        return ShardReader([str(self.root / name) for name in names])

    def require(self, *conditions: bool) -> None:
        """Raises DataError unless all are true of the index."""
        try:
            require(*conditions)
        except DamagedError as error:
            raise DataError(f"{self.where}: {INDEX}: {error}; pack it again") from None


class Copy:
    """One copy of a packed dataset, as a source."""

    def __init__(self, packed: Packed, copy: str) -> None:
        self.copy = copy
        self.short_side: int | None = packed.description["copies"][copy]["short_side"]
        """In pixels, of all images that were not smaller; None: the images as they were."""
        self.classes, self.labels = packed.classes, packed.labels
        self.fingerprint = packed.fingerprint
        self._packed = packed
        self._places: Places | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The name of sample `i`, and of the copy."""
        return f"{self._packed.name(i)} (copy {self.copy})"

    def read(self, i: int) -> np.ndarray:
        """The bytes of image `i`, [bytes] uint8.

        Raises DataError naming it if they cannot be read or are not the bytes that were packed.
        """
        self.load()
        assert self._places is not None
        try:
            encoded = self._reader.read(*self._places[i])
        except DataError as error:
            raise DataError(f"{self.name(i)}: {error}") from None
        if zlib.crc32(encoded.data) != self._crc32[i]:
            shard = self._reader.paths[self._places[i][0]]
            raise DataError(f"{self.name(i)}: {shard}: damaged: its checksum differs")
        return encoded

    def load(self) -> None:
        """Read the index of this copy, once. Raises DataError if a shard has another size."""
        if self._places is not None:
            return
        packed = self._packed
        shards = [name for name in packed.description["files"] if name.startswith(f"{self.copy}/")]
        self._reader = packed.shards(shards)
        self._crc32 = packed.column(f"{self.copy}.crc32")
        offsets, sizes = (packed.column(f"{self.copy}.{name}") for name in ("offset", "size"))
        packed.require(
            len(shards) == len(packed.shard_starts),
            *(are_whole(column, len(packed)) for column in (self._crc32, offsets, sizes)),
        )
        self._places = Places(packed.shard_starts, offsets, sizes)


def copy_for(copies: dict[str, Any], short_side: int | None) -> str:
    """Name of the smallest of `copies` with at least `short_side`; the largest if none has it."""
    sides = {name: copy["short_side"] or np.inf for name, copy in copies.items()}
    ordered = sorted(sides, key=lambda name: sides[name])
    enough = (name for name in ordered if short_side is not None and sides[name] >= short_side)
    return next(enough, ordered[-1])


def _root(path: str) -> Path | None:
    place = Path(path)
    if (place / DATASET).is_file():
        return place
    if (place.parent / DATASET).is_file() and place.is_dir():
        description = read_description(place.parent, path)
        return place.parent if place.name in description["copies"] else None
    return None


def read_description(root: Path, where: str) -> dict[str, Any]:
    """The content of `dataset.json` in `root`; `where` begins the message of an error.

    Raises DataError if it cannot be read or has another format.
    """
    try:
        content = RETRIES.read(str(root / DATASET), (root / DATASET).read_bytes)
    except OSError as error:
        raise DataError(f"{where}: {DATASET}: cannot be read: {error}") from None
    return parse_description(content, where)


def parse_description(content: bytes, where: str) -> dict[str, Any]:
    """The same for the bytes of `dataset.json`."""
    try:
        description: dict[str, Any] = json.loads(content)
        version = description["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: {DATASET}: cannot be read: {error}") from None
    if version != FORMAT:
        raise DataError(f"{where}: {DATASET}: format {version!r}; this version reads {FORMAT}")
    if not _is_whole(description):
        raise DataError(
            f"{where}: {DATASET}: damaged (its parts do not fit together); pack it again"
        )
    return description


def _is_whole(description: dict[str, Any]) -> bool:
    """Whether a description has everything that is read of it, of the right type."""
    try:
        sides = [copy["short_side"] for copy in description["copies"].values()]
        files = [(f["size"], f["crc32"]) for f in description["files"].values()]
        texts = [description["fingerprint"], *description["classes"]]
        skipped = [bad[name] for bad in description["skipped"] for name in ("name", "reason")]
        numbers = [description["images"], *(n for file in files for n in file)]
        return (
            bool(sides)
            and all(side is None or (type(side) is int and side > 0) for side in sides)
            and all(type(number) is int and number >= 0 for number in numbers)
            and all(isinstance(text, str) for text in (*texts, *skipped))
            and isinstance(description["classes"], list)
            and all(set(bad) == {"name", "reason"} for bad in description["skipped"])
            and INDEX in description["files"]
            and {name.split("/")[0] for name in description["files"]}.issuperset(
                description["copies"]
            )
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _check_size(file: Path, size: int, where: str) -> None:
    try:
        actual = file.stat().st_size
    except OSError as error:
        raise DataError(f"{where}: {file}: {error.strerror}") from None
    if actual != size:
        raise DataError(f"{where}: {file}: {actual} bytes, {size} were packed: it is damaged")
