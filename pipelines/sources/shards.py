"""Random access to the members of tar files."""

from __future__ import annotations

import os
import resource
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError

BLOCK = 512  # bytes; headers and contents of a tar file begin at multiples of it
_PEEK = 4 * BLOCK  # bytes read at once while indexing: a small member and the header after it
_LINKS_AND_FOLDERS = frozenset(b"1234567")


class ShardReader:
    """Reads byte ranges of many files; each is opened once, when it is first needed.

    Ranges are read, not mapped into memory. So a page that cannot be read raises an error instead
    of killing the process, and no thread waits for a disk while it holds the interpreter's lock.
    On a local disk this costs 1 to 3 µs more per image. Safe from several threads.
    """

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        _allow_open_files(len(paths))
        weakref.finalize(self, _close_all, self._files)

    def read(self, shard: int, offset: int, size: int) -> np.ndarray:
        """`size` bytes at `offset` of a shard, [size] uint8. Raises DataError naming the shard."""
        content = np.empty(size, dtype=np.uint8)
        done = self.read_into(shard, offset, content)
        if done < size:
            raise DataError(
                f"{self.paths[shard]}: cut short: {size} bytes expected at byte {offset}"
            )
        return content

    def read_into(self, shard: int, offset: int, content: np.ndarray) -> int:
        """Fill `content` [bytes] uint8 from `offset`; returns how many bytes there were."""
        view, done = content.data, 0
        try:
            file = self._open(shard)
            while done < len(content):
                count = os.preadv(file, [view[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise DataError(f"{self.paths[shard]}: cannot read: {error.strerror}") from None
        return done

    def size_bytes(self, shard: int) -> int:
        """Length of a shard. Raises DataError naming it."""
        try:
            return os.fstat(self._open(shard)).st_size
        except OSError as error:
            raise DataError(f"{self.paths[shard]}: cannot read: {error.strerror}") from None

    def _open(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            with self._lock:
                file = self._files.get(shard)
                if file is None:
                    file = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                    self._files[shard] = file
        return file


def _allow_open_files(more: int) -> None:
    """Raise this process's limit by `more`, as far as allowed: the usual 1024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        limit = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _close_all(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
    files.clear()


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


class Member(NamedTuple):
    """A regular file in a tar file."""

    name: bytes
    offset: int
    """First byte of its contents in the tar file."""
    size: int
    head: bytes
    """Its first bytes; all of them if it is small."""


def members(reader: ShardReader, shard: int) -> Iterator[Member]:
    """The regular files of one shard, in order. Raises DataError if it is damaged.

    Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
    """
    end = reader.size_bytes(shard)
    place = 0
    long_name: bytes | None = None
    window, window_at = b"", 0
    buffer = np.empty(_PEEK, dtype=np.uint8)
    while True:
        if place + BLOCK > end:
            raise DataError(f"{reader.paths[shard]}: cut short: it has no end mark")
        if not window_at <= place <= window_at + len(window) - BLOCK:
            window_at = place
            window = buffer[: reader.read_into(shard, place, buffer)].tobytes()
        header = window[place - window_at : place - window_at + BLOCK]
        if not header[0]:
            return
        size = _size(header, reader.paths[shard], place)
        offset = place + BLOCK
        if offset + size > end:
            raise DataError(f"{reader.paths[shard]}: cut short within {_name(header)!r}")
        kind = header[156]
        if kind in b"Lx":
            long_name = _long_name(kind, reader.read(shard, offset, size).tobytes())
        elif kind in _LINKS_AND_FOLDERS or kind == ord("g"):
            long_name = None
        else:
            head = window[offset - window_at : offset - window_at + size]
            yield Member(long_name or _name(header), offset, size, head)
            long_name = None
        place = offset + -(-size // BLOCK) * BLOCK


def _size(header: bytes, path: str, place: int) -> int:
    """Length of the member. Raises DataError if this is no header."""
    if header[257:262] == b"ustar" or _sums_up(header):
        field = header[124:136]
        if field[0] & 0x80:  # GNU: binary, for 8 GiB and more
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b"\0 ")
        if digits.isdigit():
            return int(digits, 8)
    raise DataError(f"{path}: not a tar file, or damaged, at byte {place}")


def _sums_up(header: bytes) -> bool:
    """Whether the checksum of an old tar header (without `ustar`) is right."""
    digits = header[148:156].strip(b"\0 ")
    return digits.isdigit() and int(digits, 8) == sum(header[:148]) + 256 + sum(header[156:])


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _long_name(kind: int, content: bytes) -> bytes | None:
    """The name of the next member, from the GNU (L) or pax (x) entry before it."""
    if kind == ord("L"):
        return content.split(b"\0", 1)[0]
    place = 0
    while place < len(content):  # "LENGTH key=value\n"
        digits, _, _rest = content[place:].partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits):
            return None
        record = content[place + len(digits) + 1 : place + int(digits) - 1]
        if record.startswith(b"path="):
            return record[5:]
        place += int(digits)
    return None
