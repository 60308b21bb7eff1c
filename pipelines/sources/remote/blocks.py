"""Blocks of objects on a disk of this node: shared by its processes, checked, and within a limit of bytes.

FOLDER/blocks/KEY/00000007   block 7 of the object KEY, and the crc32 of it and of its name
FOLDER/index/KEY.npz         the index of a list of shards
FOLDER/packed/KEY/           description and index of a packed dataset, which are not counted
FOLDER/locks/NUMBER          held by the process that fetches a block
FOLDER/used                  bytes of all blocks and indexes

A block appears whole, by a rename. It is checked against its crc32 the first time that a process reads it; one that
is damaged is fetched again. Those that were fetched, or first read by a process, the longest ago are deleted first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hvdtrain.errors import ResourceError
from pipelines.sources.retries import RETRIES

BLOCK = 2**20
"""Bytes of a block: some images. Larger ones would delay the first batch, smaller ones cost requests."""
LOCK_S = 120.0
"""Longest wait for a block that another thread or process fetches; it is fetched twice then."""
_LOCKS = 1024
_SUM = 4  # bytes of a crc32
_KEPT = 0.8  # share of the limit that is left after deleting
_ABANDONED_S = 3600.0  # age of an unfinished file that nobody writes any more


class BlockCache:
    """Blocks by the key of their object and their number. Safe from several threads and processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: bytes. Raises ResourceError if the folder cannot be used or belongs to another user."""
        self.folder, self.limit = folder, limit
        try:
            for place in (folder, *(folder / name for name in ("blocks", "index", "locks"))):
                place.mkdir(mode=0o700, parents=place is folder, exist_ok=True)
            state = folder.lstat()
        except OSError as error:
            raise ResourceError(
                f"data.remote_cache.folder: {folder}: cannot be used: {error.strerror}: name another folder"
            ) from None
        if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):
            raise ResourceError(
                f"data.remote_cache.folder: {folder}: is not a folder of your own: name another one"
            )
        self._checked: dict[str, bytearray] = {}
        """By object: 1 for each block that this process has checked."""
        self._told = False
        """That blocks are deleted which are read again."""
        self._making = threading.Lock()

    def read(
        self,
        key: str,
        size: int,
        number: int,
        begin: int,
        view: memoryview,
        fetch: Callable[[], bytearray],
    ) -> None:
        """Fill `view` from byte `begin` of block `number` of an object of `size` bytes; `fetch` gets a block
        that is not there. Raises what `fetch` raises."""
        if self._from_disk(key, size, number, begin, view):
            return
        with self._fetching(key, number):
            if self._from_disk(key, size, number, begin, view):
                return
            content = fetch()
            self._store(key, number, content)
        view[:] = memoryview(content)[begin : begin + len(view)]

    def index_file(self, key: str) -> Path:
        """Where the index of a list of shards is kept."""
        return self.folder / "index" / f"{key}.npz"

    @contextlib.contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Let one process at a time make an index, however long that takes."""
        with (self.folder / "index" / f"{key}.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def made(self, file: Path) -> None:
        """Count an index that was written."""
        self._reserve(file.stat().st_size)

    def _from_disk(self, key: str, size: int, number: int, begin: int, view: memoryview) -> bool:
        """Whether the block was there, in good order."""
        path = self._path(key, number)
        checked = self._checked.get(key)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            if checked is not None and checked[number] and not self._told:
                self._told = True
                reason = (
                    "too small for all that this node reads from afar: blocks in "
                    f"{self.folder} are deleted before they are read again"
                )
                RETRIES.count("data.remote_cache.size_gb", OSError(errno.ENOSPC, reason))
            return False
        try:
            if checked is not None and checked[number]:
                good = os.preadv(file, [view], begin) == len(view)
            else:
                length = min(BLOCK, size - number * BLOCK)
                content = os.pread(file, length + _SUM + 1, 0)
                good = content[length:] == _sum(key, number, memoryview(content)[:length])
                if good:
                    view[:] = memoryview(content)[begin : begin + len(view)]
                    self._note_checked(key, size, number)
                    os.utime(file)
        except OSError as error:
            RETRIES.count(path, error)
            good = False
        finally:
            os.close(file)
        if not good:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        return good

    def _note_checked(self, key: str, size: int, number: int) -> None:
        with self._making:
            known = self._checked.setdefault(key, bytearray(-(-size // BLOCK)))
        known[number] = 1

    def _path(self, key: str, number: int) -> str:
        return f"{self.folder}/blocks/{key}/{number:08d}"

    @contextlib.contextmanager
    def _fetching(self, key: str, number: int) -> Iterator[None]:
        """Have others wait who want the same block; a little longer than its fetching should take."""
        place = zlib.crc32(f"{key}:{number}".encode()) % _LOCKS
        file = os.open(f"{self.folder}/locks/{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end, pause_s = time.monotonic() + LOCK_S, 0.001
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end or RETRIES.stopped():
                        break
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.05)
            yield
        finally:
            os.close(file)

    def _store(self, key: str, number: int, content: bytearray) -> None:
        """Keep a block. A disk that refuses it is counted: the block is used, and fetched again."""
        path = self._path(key, number)
        part = f"{path}.{os.getpid()}.{threading.get_ident()}.part"
        try:
            self._reserve(len(content) + _SUM)
            for attempt in range(2):
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)  # noqa: PTH103, PTH120
                try:
                    with open(part, "xb", buffering=0) as file:  # noqa: PTH123
                        file.write(content)
                        file.write(_sum(key, number, memoryview(content)))
                    break
                except FileNotFoundError:  # the folder was empty, and another process deleted it
                    if attempt:
                        raise
            os.replace(part, path)  # noqa: PTH105
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)  # noqa: PTH108
            RETRIES.count(path, error)

    def _reserve(self, size: int) -> None:
        """Count `size` bytes more, and make room for them if need be. Raises OSError."""
        with (self.folder / "used").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read(32)
            # Without a number it is not known: the files are counted.
            used = int(text) + size if text.isdigit() else self.limit + 1
            if used > self.limit:
                used = self._make_room(size) + size
            file.truncate(0)
            file.write(b"%d" % used)

    def _make_room(self, size: int) -> int:
        """Delete the oldest files, if there is no room for `size` bytes; returns the bytes of all others."""
        found: list[tuple[float, int, str]] = []
        now = time.time()
        for folder in (f"{self.folder}/index", *_folders(f"{self.folder}/blocks")):
            for path, state in _files(folder):
                if path.endswith(".part"):
                    if now - state.st_mtime > _ABANDONED_S:
                        _delete(path)
                elif not path.endswith(".lock"):
                    found.append((state.st_mtime, state.st_size, path))
        total = sum(length for _time, length, _path in found)
        if total + size <= self.limit:
            return total
        for _time, length, path in sorted(found):
            if total + size <= _KEPT * self.limit:
                break
            _delete(path)
            total -= length
        for folder in _folders(f"{self.folder}/blocks"):
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106 - unless it has blocks
        return total


def default_folder() -> Path:
    """Where blocks are kept unless a folder is named: on a disk of this node, for this user alone."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp", f"hvdtrain-cache-{os.getuid()}")


def _sum(key: str, number: int, content: memoryview) -> bytes:
    """The crc32 of a block, which no other block's content has by a mistake of names."""
    return zlib.crc32(content, zlib.crc32(f"{key}:{number}".encode())).to_bytes(_SUM, "big")


def _folders(place: str) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield entry.path, entry.stat(follow_symlinks=False)


def _delete(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
