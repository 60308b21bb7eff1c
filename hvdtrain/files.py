"""Files that are whole or absent: written under another name, synced, and renamed.

A process killed on the way leaves `.NAME.part`, which the next write of the same file replaces.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hvdtrain.errors import CheckpointError, ResourceError


class PartFile:
    """A file open for writing that gets the name `path` when `keep` is called. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f".{path.name}.part")
        self.part.unlink(missing_ok=True)
        # O_EXCL and O_NOFOLLOW: in a folder that others may write to, nobody's link is followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file: BinaryIO = os.fdopen(os.open(self.part, flags, 0o666), "wb")

    def keep(self, *, sync: bool = True) -> None:
        """Close the file and rename it; with `sync` its bytes and its name are on the disk then."""
        try:
            with self.file:
                if sync:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            self.part.replace(self.path)
        except OSError:
            self.discard()
            raise
        if sync:
            sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self.file.close()  # what it still buffers may find no room
        with contextlib.suppress(OSError):
            self.part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, renamed to `path` when the block ends; after an error nothing is left.

    Raises OSError if the disk refuses.
    """
    part = PartFile(path)
    try:
        yield part.file
    except BaseException:
        part.discard()
        raise
    part.keep()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all; raises ResourceError if the disk refuses."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync names by themselves
            raise
    finally:
        os.close(descriptor)


def move_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it never counts again. Raises OSError."""
    target, number = path.with_name(f"damaged-{path.name}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"damaged-{path.name}-{number}")
    return path.rename(target)


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file, no link; a pipe is not waited for. Raises OSError, CheckpointError."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(f"{file}: a link, expected the file itself") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{file}: not a regular file")
    return os.fdopen(descriptor, "rb")
