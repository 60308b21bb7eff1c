"""Files that stay open between reads, within the number that this process may have open."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

from hvdtrain.errors import DataError, ResourceError

_RESERVE = 256  # for sockets, decoders and logs; half of what is free if that is less
_FEWEST = 16  # free descriptors without which nothing works
_FULL = (errno.EMFILE, errno.ENFILE)

Key = tuple[int, int]
"""The reader's number, and the file's number in the reader."""


@dataclass
class _Open:
    file: int
    """The descriptor."""
    users: int = 1
    """Threads that read from it now."""
    broken: bool = False
    """A read of it has failed: the next one opens the file anew."""


class OpenFiles:
    """The descriptors of all readers of this process; the one longest unused is closed first.

    A file that is being read is never closed. One that was closed and has another size or time of
    change when it is opened again is refused: its places would be wrong. Safe from several threads.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[Key, _Open] = OrderedDict()
        self._states: dict[Key, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._gone: deque[int] = deque()  # readers whose files are still to be closed
        self._limit = _FEWEST

    def make_room(self, more: int) -> None:
        """Raise this process's limit by `more` as far as allowed, and note how many may be open.

        Raises ResourceError if too few files may be opened to read at all.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            limit = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = limit
        with self._lock:
            others = len(os.listdir("/proc/self/fd")) - len(self._files)  # noqa: PTH208
            free = (1 << 30 if soft == resource.RLIM_INFINITY else soft) - others
            if free < _FEWEST:
                raise _too_few(f"{soft:,} files, {others:,} are")
            self._limit = free - min(_RESERVE, free // 2)

    def acquire(self, key: Key, path: str) -> int:
        """A descriptor of `path`, which is kept open until `release`. Raises OSError, DataError."""
        self._sweep()
        with self._lock:
            if known := self._files.get(key):
                self._files.move_to_end(key)
                known.users += 1
                return known.file
        file = self._opened(path)
        try:
            self._check_state(key, file, path)
        except BaseException:
            os.close(file)
            raise
        with self._lock:
            known = self._files.get(key)
            if known is None:
                self._files[key] = _Open(file)
            else:
                known.users += 1
            surplus = self._unused(len(self._files) - self._limit)
        for other in surplus if known is None else [*surplus, file]:
            os.close(other)
        return file if known is None else known.file

    def release(self, key: Key, *, broken: bool = False) -> None:
        """The thread that called `acquire` has read; `broken`: it could not.

        A descriptor that a network disk has given up never reads again, so the last user closes it.
        """
        with self._lock:
            known = self._files[key]
            known.users -= 1
            known.broken |= broken
            close = known.broken and not known.users
            if close:
                del self._files[key]
        if close:
            os.close(known.file)

    def forget(self, reader: int) -> None:
        """Close all files of a reader that is no longer used, now or at the next `acquire`.

        The garbage collector calls it, possibly in a thread that holds the lock: it never waits.
        """
        self._gone.append(reader)
        self._sweep()

    def _sweep(self) -> None:
        if not self._gone or not self._lock.acquire(blocking=False):
            return
        try:
            while self._gone:
                reader = self._gone.popleft()
                for key in [key for key in self._files if key[0] == reader]:
                    os.close(self._files.pop(key).file)
                for key in [key for key in self._states if key[0] == reader]:
                    del self._states[key]
        finally:
            self._lock.release()

    def _opened(self, path: str) -> int:
        """Open `path`; where no more files may be opened, close some of ours and try again."""
        while True:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                with self._lock:  # others have opened more than was reserved: leave them room
                    self._limit = max(1, min(self._limit, len(self._files)) - _FEWEST // 2)
                    surplus = self._unused(max(1, len(self._files) - self._limit))
                if not surplus:
                    raise _too_few(f"no more files ({error.strerror}), {path} is") from None
                for file in surplus:
                    os.close(file)

    def _unused(self, count: int) -> list[int]:
        """Take out up to `count` files that nobody reads, the longest unused first."""
        keys: list[Key] = []
        for key, known in self._files.items():
            if len(keys) >= count:
                break
            if not known.users:
                keys.append(key)
        return [self._files.pop(key).file for key in keys]

    def _check_state(self, key: Key, file: int, path: str) -> None:
        state = os.fstat(file)
        now = state.st_size, state.st_mtime_ns
        with self._lock:
            known = self._states.setdefault(key, now)
        if now != known:
            raise DataError(
                f"{path}: changed while it was in use: {known[0]:,} bytes before, {now[0]:,} now"
            )


def _too_few(found: str) -> ResourceError:
    return ResourceError(
        f"this process may open {found} open already: raise the limit, for example ulimit -n 4096"
    )
