"""Random access to byte ranges of many large files."""

from __future__ import annotations

import itertools
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.open_files import OpenFiles
from pipelines.sources.retries import RETRIES, cut_short

BLOCK = 512  # bytes; headers and contents of a tar file begin at multiples of it
_FILES = OpenFiles()
_NUMBERS = itertools.count()


LARGE = 2**24
"""Bytes of an image from which on the length of its shard is looked at first."""


class ShardReader:
    """Reads byte ranges of many files, which stay open as far as the process's limit allows.

    Ranges are read, not mapped into memory. So a page that cannot be read raises an error instead
    of killing the process, and no thread waits for a disk while it holds the interpreter's lock.
    On a local disk this costs 1 to 3 µs more per image. Safe from several threads.
    """

    def __init__(self, paths: list[str]) -> None:
        """Raises ResourceError if this process may open too few files."""
        self.paths = paths
        self._number = next(_NUMBERS)
        _FILES.make_room(len(paths))
        weakref.finalize(self, _FILES.forget, self._number)

    def read(self, shard: int, offset: int, size: int) -> np.ndarray:
        """`size` bytes at `offset` of a shard, [size] uint8. Raises DataError naming the shard."""
        # An index from elsewhere may ask for more memory than there is.
        missing = size > LARGE and offset + size > self.size_bytes(shard)
        content = np.empty(0 if missing else size, dtype=np.uint8)
        if missing or self.read_into(shard, offset, content) < size:
            raise DataError(
                f"{self.paths[shard]}: cut short: {size} bytes expected at byte {offset}"
            )
        return content

    def read_into(self, shard: int, offset: int, content: np.ndarray) -> int:
        """Fill `content` [bytes] uint8 from `offset`; returns how many bytes there were.

        A read that fails for a moment is tried again, on the file opened anew.
        """

        def once(file: int) -> int:
            view, done = content.data, 0
            while done < len(content):
                count = os.preadv(file, [view[done:]], offset + done)
                if not count:
                    if os.fstat(file).st_size > offset + done:
                        raise cut_short()
                    break
                done += count
            return done

        return self._with_file(shard, once)

    def size_bytes(self, shard: int) -> int:
        """Length of a shard. Raises DataError naming it."""
        return self._with_file(shard, lambda file: os.fstat(file).st_size)

    def identity(self) -> dict[str, np.ndarray]:
        """What shows that shards are the same: name, length in bytes, time of change in ns."""
        states = [Path(path).stat() for path in self.paths]
        return {
            "shards": np.array([Path(path).name for path in self.paths], dtype=np.str_),
            "lengths": np.array([state.st_size for state in states], dtype=np.int64),
            "changed": np.array([state.st_mtime_ns for state in states], dtype=np.int64),
        }

    def _with_file(self, shard: int, use: Callable[[int], int]) -> int:
        key, path = (self._number, shard), self.paths[shard]

        def once() -> int:
            file = _FILES.acquire(key, path)
            broken = True
            try:
                found = use(file)
                broken = False
            finally:
                _FILES.release(key, broken=broken)
            return found

        try:
            return RETRIES.read(path, once)
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from None


class Places:
    """Where each sample is: its shard, and its bytes in the shard."""

    def __init__(self, starts: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """`starts` [shards]: the first sample of each shard. `offsets`, `sizes` [len]: bytes."""
        self._starts = starts.tolist()
        self.offsets = offsets
        self.sizes = sizes

    def __getitem__(self, i: int) -> tuple[int, int, int]:
        """(shard, offset, size) of sample `i`."""
        return bisect_right(self._starts, i) - 1, int(self.offsets[i]), int(self.sizes[i])
