"""Reads that fail for a moment, as on a network disk: tried again, counted, and the first ones named.

A retry is no progress: the watchdog's time goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "ENOBUFS", "EREMOTEIO"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "ENOLINK"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ECOMM", "EPROTO"),
    )
)
"""Errors that may pass. A file that is missing or may not be read stays so, and a damaged image damaged."""
WAITS_S = (0.1, 0.5, 2.0, 5.0)
"""Before each further attempt: a soft NFS mount or a server that changes over is back within seconds."""
IN_VAIN = 32
"""Reads in a row that no retry has helped, after which none is made until a read succeeds: a disk that is
gone must not take this long for every image. With 8 reading threads that is half a minute."""
NAMED = 3
_SLICE_S = 0.05  # a wait ends so soon after the reader was told to stop

T = TypeVar("T")


@dataclass
class Retried:
    """Attempts that were made again."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """File and error of the first few, such as `/d/a.jpg (Input/output error)`."""


class Retries:
    """The retries of this process. Safe from several threads."""

    def __init__(self, waits_s: tuple[float, ...] = WAITS_S) -> None:
        self._waits_s = waits_s
        self._in_vain = 0
        self._retried = Retried()
        self._lock = threading.Lock()
        self._thread = threading.local()

    def read(self, path: str | bytes, once: Callable[[], T]) -> T:
        """The result of `once`, which reads from `path`; again after an error that may pass.

        Raises the last OSError, and any other error at once.
        """
        try:
            result = once()
        except OSError as error:
            if not passing(error):
                raise
            return self._again(path, once, error)
        if self._in_vain:
            self._in_vain = 0
        return result

    def take(self) -> Retried:
        """What was tried again since the last call."""
        if not self._retried.count:
            return Retried()
        with self._lock:
            taken, self._retried = self._retried, Retried()
        return taken

    @contextlib.contextmanager
    def unless(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """Within the context this thread makes no further attempt once `stopped` is true."""
        self._thread.stopped = stopped
        try:
            yield
        finally:
            self._thread.stopped = None

    def _again(self, path: str | bytes, once: Callable[[], T], error: OSError) -> T:
        for wait_s in self._waits_s if self._in_vain < IN_VAIN else ():
            if self._wait(wait_s):
                raise error  # says nothing of the disk
            self.count(path, error)
            try:
                result = once()
            except OSError as another:
                error = another
                if not passing(error):
                    raise
            else:
                self._in_vain = 0
                return result
        self._in_vain += 1
        raise error

    def stopped(self) -> bool:
        """Whether the reader of this thread was told to stop."""
        stopped: Callable[[], bool] | None = getattr(self._thread, "stopped", None)
        return stopped is not None and stopped()

    def _wait(self, seconds: float) -> bool:
        """Whether the reader was told to stop meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.stopped():
                return True
            time.sleep(min(left, _SLICE_S))
        return self.stopped()

    def count(self, path: str | bytes, error: OSError) -> None:
        """Count a read that was, or will be, made again."""
        with self._lock:
            self._retried.count += 1
            named = f"{os.fsdecode(path)} ({error.strerror or error})"
            if len(self._retried.first) < NAMED and named not in self._retried.first:
                self._retried.first.append(named)


def passing(error: OSError) -> bool:
    """Whether the same read may succeed a little later."""
    return error.errno in PASSING


def cut_short() -> OSError:
    """The error of a read that ended before the end that the file system gives for the file."""
    return OSError(errno.EIO, "cut short while it was read")


RETRIES = Retries()
"""Of this process."""
