"""Where encoded images come from: a numbered list of (bytes, label).

A source is anything with the members of `Source`; `open_source` chooses one for a path.
"""

# File names are bytes here: half the memory of text, and any name a disk allows.
# ruff: noqa: PTH118, PTH122, PTH123

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from hvdtrain.errors import DataError

EXTENSIONS = frozenset(b".jpg .jpeg .png .webp .bmp .tif .tiff .ppm .pgm .pbm .jp2".split())
_SHOWN = 3  # names listed in a message before "..."


class Source(Protocol):
    """A dataset of encoded images, numbered from 0. Reading is safe from several threads."""

    classes: list[str]
    """Class names; a label is an index into them."""
    labels: np.ndarray
    """[len] int32, the class of every sample."""
    fingerprint: str
    """Hash of names, labels and their order: equal where two ranks see the same dataset."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """The encoded bytes of sample `i`, [bytes] uint8. Raises DataError naming it."""
        ...

    def name(self, i: int) -> str:
        """A name for sample `i` by which a person finds it."""
        ...


def open_source(path: str, key: str) -> Source:
    """The dataset at `path`; `key` is the configuration key named in errors.

    Raises DataError where there is no dataset to read.
    """
    return ImageFolder(path, key)


class ImageFolder:
    """One sub-folder of image files per class, in the order of their names (ImageNet's layout).

    Files with an unknown extension and hidden ones are passed over; the case of an extension
    does not matter. Names are kept in one block of bytes: about 30 bytes an image.
    """

    def __init__(self, root: str, key: str) -> None:
        self._root = os.fsencode(root)
        folders = _class_folders(root, key)
        self.classes = [os.fsdecode(name) for name in folders]
        blocks, lengths, counts = [], [], []
        for folder in folders:
            files = _image_files(os.path.join(self._root, folder), key)
            if not files:
                path = os.path.join(root, os.fsdecode(folder))
                raise DataError(f"{key}: {path}: a class folder without images")
            counts.append(len(files))
            lengths.append(np.fromiter(map(len, files), dtype=np.int64))
            blocks.append(b"".join(files))
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._ends = np.cumsum(np.concatenate(lengths))
        self._names = b"".join(blocks)
        self.fingerprint = self._hash()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path of sample `i`."""
        return os.fsdecode(self._path(i))

    def read(self, i: int) -> np.ndarray:
        """The bytes of file `i`, [bytes] uint8. Raises DataError naming it."""
        try:
            with open(self._path(i), "rb", buffering=0) as file:
                encoded = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8)
                view, done = encoded.data, 0
                while done < len(encoded):
                    count = file.readinto(view[done:])
                    if not count:
                        raise DataError(f"{self.name(i)}: cut short while it was read")
                    done += count
        except OSError as error:
            raise DataError(f"{self.name(i)}: cannot read: {error.strerror}") from None
        return encoded

    def _path(self, i: int) -> bytes:
        begin = int(self._ends[i - 1]) if i else 0
        folder = os.fsencode(self.classes[self.labels[i]])
        return os.path.join(self._root, folder, self._names[begin : int(self._ends[i])])

    def _hash(self) -> str:
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for block in (self.labels.tobytes(), self._ends.tobytes(), self._names):
            digest.update(block)
        return digest.hexdigest()


def check_same_classes(train: Source, val: Source, path: str) -> None:
    """Raise DataError, naming the differences, unless both have the same classes."""
    missing = sorted(set(train.classes) - set(val.classes))
    extra = sorted(set(val.classes) - set(train.classes))
    if missing or extra:
        found = {"missing": missing, "extra": extra}
        text = "; ".join(f"{word} {_some(names)}" for word, names in found.items() if names)
        raise DataError(f"data.val: {path}: classes differ from data.train: {text}")


def _some(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _class_folders(root: str, key: str) -> list[bytes]:
    try:
        with os.scandir(os.fsencode(root)) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(b"."))
    except FileNotFoundError:
        problem = "no such folder"
    except NotADirectoryError:
        problem = "a file, not a folder"
    except OSError as error:
        raise DataError(f"{key}: {root}: cannot list the folder: {error.strerror}") from None
    else:
        if names:
            return names
        problem = "no class folders in it"
    raise DataError(f"{key}: {root}: {problem}; expected one sub-folder of images per class")


def _image_files(folder: bytes, key: str) -> list[bytes]:
    """Names, relative to `folder`, of the images in it and below it, sorted."""
    try:
        return sorted(_walk(folder, b""))
    except OSError as error:
        path = os.fsdecode(error.filename or folder)
        raise DataError(f"{key}: {path}: cannot list the folder: {error.strerror}") from None


def _walk(folder: bytes, prefix: bytes) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield prefix + name
            elif entry.is_dir():
                yield from _walk(entry.path, prefix + name + b"/")
