"""The interface of a source, and the parts that sources share."""

# File names are bytes: they take half the memory of text, and any name on a disk is possible.
# ruff: noqa: PTH123

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hvdtrain.errors import DataError, ResourceError
from pipelines.sources.retries import RETRIES, cut_short

EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .jfi .jif .mpo .png .apng .webp .bmp .tif .tiff .ppm .pgm .pbm .pnm "
    b".jp2 .j2k .j2c .jpc .jpx .jpf .jpeg2000".split()
)
"""Endings of what DALI decodes, in lower case."""
MAX_FILE = 2**30
"""Bytes: no image file is larger."""
_SHOWN = 3  # names listed in a message before "..."


class Source(Protocol):
    """A dataset of encoded images, numbered from 0. Reading is safe from several threads."""

    classes: list[str]
    """Class names; a label is an index into them."""
    labels: np.ndarray
    """[len] int32: the class of every sample."""
    fingerprint: str
    """Hash of names, labels and their order: equal on two ranks that see the same dataset."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """The encoded bytes of sample `i`, [bytes] uint8. Raises DataError naming it."""
        ...

    def name(self, i: int) -> str:
        """The name by which a person finds sample `i`."""
        ...


class Names:
    """A list of names in one block of bytes: about 30 bytes an image."""

    def __init__(self, block: bytes, ends: np.ndarray) -> None:
        """`ends` [len] int64: where in `block` each name ends."""
        self.block = block
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        """A list of `names`."""
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        begin = int(self.ends[i - 1]) if i else 0
        return self.block[begin : int(self.ends[i])]


def fingerprint(classes: list[str], labels: np.ndarray, names: Names, *more: np.ndarray) -> str:
    """Hash of a dataset's list of samples, and of `more` arrays that must be equal on all ranks."""
    digest = hashlib.sha256("\0".join(classes).encode("utf-8", "surrogateescape"))
    for block in (
        labels.tobytes(),
        names.ends.tobytes(),
        names.block,
        *(m.tobytes() for m in more),
    ):
        digest.update(block)
    return digest.hexdigest()


def read_file(path: bytes) -> np.ndarray:
    """All bytes of a file, [bytes] uint8. Raises DataError naming it.

    Only regular files of up to `MAX_FILE` bytes are read: a pipe would never end. A read that fails
    for a moment is tried again.
    """
    try:
        return RETRIES.read(path, lambda: _read_once(path))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # the image is sound
            raise ResourceError(f"{os.fsdecode(path)}: {error.strerror}: raise ulimit -n") from None
        raise DataError(f"{os.fsdecode(path)}: cannot read: {error.strerror}") from None


def _read_once(path: bytes) -> np.ndarray:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{os.fsdecode(path)}: cannot read: not a regular file")
        if state.st_size > MAX_FILE:
            raise DataError(f"{os.fsdecode(path)}: cannot read: more than 1 GiB, no image")
        content = np.empty(state.st_size, dtype=np.uint8)
        view, done = content.data, 0
        while done < len(content):
            count = file.readinto(view[done:])
            if not count:
                raise cut_short()
            done += count
    return content


def some(names: Sequence[str], most: int = _SHOWN) -> str:
    """The first few names, and how many there are in all."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(readable, names[:most])) + more


def readable(name: str) -> str:
    """`name` for one line of text: what cannot be printed, or is not UTF-8, is escaped."""
    return name if name.isprintable() else repr(name)[1:-1]
