"""The manifest that `hvdtrain data scan` writes, and checking images against it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from hvdtrain.errors import DataError
from hvdtrain.files import whole_file
from pipelines.sources.arrays import DamagedError, are_whole, read_arrays, require
from pipelines.sources.base import Source
from pipelines.sources.classes import as_listed
from pipelines.sources.inventory import UNKNOWN, Inventory, compare, names_below
from pipelines.sources.left_out import left_out_of, printable

MANIFEST = ".hvdtrain-scan.npz"
_KIND = "scan"  # of the inventory in it


def manifest_path(path: str) -> Path:
    """Where the manifest of the dataset at `path` is: in a folder, or next to a file."""
    place = Path(path)
    return place / MANIFEST if place.is_dir() else place.with_name(f".{place.name}{MANIFEST}")


def checked(source: Source, path: str, key: str) -> Source:
    """`source`, checked against its manifest if it has one.

    Raises DataError if the manifest was made for another list of images.
    """
    manifest = manifest_path(path)
    if not manifest.is_file():
        return source
    try:
        arrays = read_arrays(manifest, "fingerprint", "crc32", "bad", "reasons")
        reasons = arrays["reasons"]
        require(
            are_whole(arrays["bad"]),
            reasons.dtype.kind == "U" or not reasons.size,
            reasons.shape == arrays["bad"].shape,
            are_whole(arrays["crc32"]),
        )
    except DamagedError as error:
        raise DataError(f"{key}: {manifest}: {error}; scan again or delete it") from None
    if str(arrays["fingerprint"]) != source.fingerprint:
        raise DataError(
            f"{key}: {printable(path)}: other images than when it was scanned"
            f"{_change(source, path, manifest)}; scan again, or delete {manifest}"
        )
    if len(arrays["crc32"]) != len(source):
        raise DataError(f"{key}: {manifest}: damaged; scan again or delete it")
    bad = dict(zip(arrays["bad"].tolist(), arrays["reasons"].tolist(), strict=True))
    return Checked(source, arrays["crc32"], bad)


def _change(source: Source, path: str, manifest: Path) -> str:
    """What differs; empty where the manifest is of an old version, without names."""
    unknown = np.full(len(source), UNKNOWN, dtype=np.int64)
    names = names_below(source, path)
    now = Inventory(source.classes, source.labels, names, unknown, unknown)
    try:
        arrays = read_arrays(manifest, *Inventory.columns(_KIND))
        text = compare(Inventory.of(arrays, _KIND), now).text()
    except (DamagedError, KeyError, IndexError, ValueError):
        return ""
    return f": {text}" if text else ""


class Checked:
    """A source of which every image must be the same as when it was scanned, and was good."""

    def __init__(self, source: Source, crc32: np.ndarray, bad: dict[int, str]) -> None:
        """`crc32` [len] uint32; `bad`: why the scan found a sample to be bad, by its id."""
        self.classes, self.labels = source.classes, source.labels
        self.fingerprint = source.fingerprint
        self.shard_starts: np.ndarray | None = getattr(source, "shard_starts", None)
        self.left_out = left_out_of(source)
        self.source, self.crc32 = source, crc32
        self._bad = bad

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The name that the source gives it."""
        return self.source.name(i)

    def read(self, i: int) -> np.ndarray:
        """The bytes of image `i`. Raises DataError naming it: bad, or changed since the scan."""
        if i in self._bad:
            raise DataError(f"{self.name(i)}: {self._bad[i]} (found by data scan)")
        encoded = self.source.read(i)
        if zlib.crc32(encoded.data) != self.crc32[i]:
            raise DataError(f"{self.name(i)}: damaged or changed: its checksum differs")
        return encoded


def write_manifest(
    manifest: Path, source: Source, path: str, columns: dict[str, np.ndarray], bad: dict[int, str]
) -> None:
    """Write the manifest of `source`, opened from `path`, whole or not at all; raises OSError."""
    source = as_listed(source)
    size, crc32 = (columns[name].astype(np.int64) for name in ("size", "crc32"))
    names = names_below(source, path)
    inventory = Inventory(source.classes, source.labels, names, size, crc32)
    with whole_file(manifest) as file:
        np.savez_compressed(
            file,
            fingerprint=np.array(source.fingerprint),
            **inventory.arrays(_KIND),  # type: ignore[arg-type]
            bad=np.array(list(bad), dtype=np.int64),
            reasons=np.array(list(bad.values()), dtype=np.str_),
            **columns,  # type: ignore[arg-type]
        )
