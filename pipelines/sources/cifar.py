"""CIFAR-10 as its authors publish it: binary or Python version, as a folder or an archive."""

from __future__ import annotations

import os
import pickletools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources import archives
from pipelines.sources.base import Names, fingerprint

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_HEADER = np.frombuffer(b"P6\n32 32\n255\n", dtype=np.uint8)  # PPM, which decoders read
_TRAIN = [f"data_batch_{k}" for k in range(1, 6)]
_TEST = ["test_batch"]
_LONGEST = 64 << 20  # bytes of a batch; the published ones have 31 MB
_FIRST = {*_TRAIN, *_TEST, "batches.meta", "batches.meta.txt", "readme.html"}
"""What the first file in an archive may be."""
_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
_INTEGERS = frozenset(["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"])


def is_cifar(path: str) -> bool:
    """Whether `path` is an archive or a folder with CIFAR-10's first batch.

    Only the first names in an archive are read.
    """
    place = _place(path)[0]
    if Path(place).is_file():
        return any(_base(name) in _FIRST for name in archives.first_names(place)[:1])
    first = Path(place, _TRAIN[0])
    return first.is_file() or Path(f"{first}.bin").is_file()


class Cifar10:
    """50,000 training or 10,000 test images of 32×32 pixels, read into memory: 154 or 31 MB.

    Images are read as PPM files, which the pipelines decode like any other image. The test batch is
    used for the key `data.val` and for a path that ends in `:test`, otherwise the five training
    batches. Nothing in a file is executed: a Python batch is a pickle, of which only the string of
    pixels and the list of labels are read.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html
    """

    def __init__(self, path: str, key: str) -> None:
        """Raises DataError if batches are missing or do not have the published form."""
        place, part = _place(path)
        names = _TEST if part == "test" or (not part and key == "data.val") else _TRAIN
        where = f"{key}: {place}"
        contents = dict(_files(place, names, where))
        if missing := [name for name in names if name not in contents]:
            raise DataError(f"{where}: not CIFAR-10: no {missing[0]} in it")
        batches = [_parsed(contents.pop(name), f"{where}: {name}") for name in names]
        self.classes = list(_CLASSES)
        self._pixels = [pixels for pixels, _labels in batches]
        self.labels = np.concatenate([labels for _pixels, labels in batches]).astype(np.int32)
        self._starts = np.cumsum([0] + [len(pixels) for pixels in self._pixels])
        self._batches = names
        self._path = place
        self.fingerprint = fingerprint(self.classes, self.labels, Names.of([b"cifar"]))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The batch of sample `i`, and its number in the batch."""
        batch, row = self._row(i)
        return f"{self._path}:{self._batches[batch]}/{row:05d}"

    def read(self, i: int) -> np.ndarray:
        """Image `i` as a PPM file, [3085] uint8."""
        batch, row = self._row(i)
        planes = self._pixels[batch][row].reshape(3, -1)
        return np.concatenate([_HEADER, planes.T.reshape(-1)])

    def _row(self, i: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._starts, i, side="right")) - 1
        return batch, i - int(self._starts[batch])


def _place(path: str) -> tuple[str, str]:
    """The path without its ending `:train` or `:test`, and that ending without the colon."""
    for part in ("train", "test"):
        if path.endswith(f":{part}"):
            return path.removesuffix(f":{part}"), part
    return path, ""


def _base(name: str) -> str:
    return os.path.basename(name).removesuffix(".bin")  # noqa: PTH119


def _files(place: str, names: list[str], where: str) -> Iterator[tuple[str, bytes]]:
    """The batches `names`: name without folder and `.bin`, and content."""
    missing = set(names)
    try:
        if Path(place).is_dir():
            for file in sorted(Path(place).iterdir()):
                if _base(file.name) in names and file.is_file():
                    _check_length(file.stat().st_size, f"{where}: {file.name}")
                    yield _base(file.name), file.read_bytes()
            return
        with tarfile.open(place) as archive:
            for member in archive:
                name = _base(member.name)
                content = archive.extractfile(member) if name in missing else None
                if content is not None:
                    _check_length(member.size, f"{where}: {member.name}")
                    missing.remove(name)
                    yield name, content.read()
                if not missing:
                    return
    # zlib.error, LZMAError and whatever else a damaged archive raises
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{where}: cannot read: {str(error) or type(error).__name__}") from None


def _check_length(size: int, where: str) -> None:
    if size > _LONGEST:
        raise DataError(f"{where}: {size:,} bytes; a batch of CIFAR-10 has 31 MB")


def _parsed(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 3072] uint8 by channels, and labels [N], of a batch of either version."""
    if content[:1] == b"\x80":
        pixels, numbers = _from_pickle(content, where)
    elif content and len(content) % (1 + _PIXELS) == 0:
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
        if rows[:, 0].max() >= len(_CLASSES):
            raise DataError(f"{where}: label {rows[:, 0].max()}; expected 0 to 9")
        return rows[:, 1:], rows[:, 0]
    else:
        raise DataError(f"{where}: {len(content)} bytes are no whole number of CIFAR-10 images")
    if not numbers or len(pixels) != len(numbers) * _PIXELS:
        raise DataError(f"{where}: {len(pixels)} bytes of pixels for {len(numbers)} labels")
    if max(numbers) >= len(_CLASSES) or min(numbers) < 0:
        raise DataError(f"{where}: label {str(max(numbers))[:20]}; expected 0 to 9")
    return np.frombuffer(pixels, dtype=np.uint8).reshape(-1, _PIXELS), np.array(numbers)


def _from_pickle(content: bytes, where: str) -> tuple[bytes, list[int]]:
    """The longest string, and the integers that follow the string "labels", of a pickle.

    The opcodes are only read, never run.
    """
    pixels, labels, in_labels = b"", [], False
    try:
        for opcode, argument, _place in pickletools.genops(content):
            if isinstance(argument, (str, bytes)) and opcode.name not in ("GLOBAL", "PUT"):
                text = argument if isinstance(argument, bytes) else argument.encode("latin-1")
                in_labels = text == b"labels"
                pixels = max(pixels, text, key=len)
            elif in_labels and opcode.name in _INTEGERS:
                labels.append(int(argument))  # type: ignore[arg-type]
    except ValueError as error:  # unknown opcodes, or text that is not latin-1
        raise DataError(f"{where}: damaged: {error}") from None
    return pixels, labels
