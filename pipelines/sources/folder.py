"""Images in folders: one sub-folder per class."""

# ruff: noqa: PTH118, PTH122

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS, Names, fingerprint, read_file


class ImageFolder:
    """One sub-folder of image files per class, in the order of their names (ImageNet's layout).

    Hidden files and files with an unknown extension are ignored; the case of an extension does
    not matter.
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
            lengths.append(np.fromiter(map(len, files), dtype=np.int64, count=len(files)))
            blocks.append(b"".join(files))
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._names = Names(b"".join(blocks), np.cumsum(np.concatenate(lengths)))
        self.fingerprint = fingerprint(self.classes, self.labels, self._names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path of sample `i`."""
        return os.fsdecode(self._path(i))

    def read(self, i: int) -> np.ndarray:
        """The bytes of file `i`, [bytes] uint8. Raises DataError naming it."""
        return read_file(self._path(i))

    def _path(self, i: int) -> bytes:
        folder = os.fsencode(self.classes[self.labels[i]])
        return os.path.join(self._root, folder, self._names[i])


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
