"""Notices files that change while they are in use: a look at size and date after each reading."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np

from pipelines.inventory import has_files
from pipelines.sources import Source
from pipelines.sources.remote.opening import is_far
from pipelines.sources.scanned import Checked
from pipelines.sources.subset import origin
from pipelines.sources.tar import TarShards


def watched(source: Source) -> Source:
    """`source`, watched if its samples are in files without checksums of their own.

    Reading from a server checks each answer.
    """
    base, ids = origin(source)
    if (
        isinstance(base, Checked)
        or is_far(base)
        or not (isinstance(base, TarShards) or has_files(source))
    ):
        return source
    if isinstance(base, TarShards):
        return Watched(source, lambda i: base.shard_of(int(ids[i])), len(base.labels))
    return Watched(source, lambda i: (i, source.name(i)), len(source))


class Watched:
    """A source that remembers size and date of every file it reads.

    A file has changed if they differ from those at an earlier reading by this process, or if its
    date is after the start of the process's watch: other ranks may have read it before.
    """

    def __init__(
        self, source: Source, file_of: Callable[[int], tuple[int, str]], most: int
    ) -> None:
        """`file_of`: number, below `most`, and path of the file that a sample is in."""
        self.source = source
        self.classes, self.labels = source.classes, source.labels
        self.fingerprint = source.fingerprint
        self.shard_starts: np.ndarray | None = getattr(source, "shard_starts", None)
        self._file_of = file_of
        self._seen = np.zeros(most, dtype=np.int64)
        """A hash of size and date by file; 0: not read yet."""
        self._began_ns, self._steady_ns = time.time_ns(), time.monotonic_ns()
        self._named: dict[int, int] = {}
        self._changed: list[str] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The name that the source gives it."""
        return self.source.name(i)

    def read(self, i: int) -> np.ndarray:
        """The encoded bytes of sample `i`, [bytes] uint8. Raises DataError naming it."""
        encoded = self.source.read(i)
        self._look(i)
        return encoded

    def take_changed(self) -> list[str]:
        """The files found to have changed since the last call, each once for every change."""
        if not self._changed:
            return []
        with self._lock:
            changed, self._changed = self._changed, []
        return changed

    def _look(self, i: int) -> None:
        place, file = self._file_of(i)
        try:
            found = os.stat(file)  # noqa: PTH116 - for every image
        except OSError:
            return  # deleted after it was read; the next reading reports it
        state = hash((found.st_size, found.st_mtime_ns)) or 1
        before, self._seen[place] = int(self._seen[place]), state
        # A date that is still to come is a wrong one, not a change; the clock may be set meanwhile.
        now_ns = self._began_ns + time.monotonic_ns() - self._steady_ns
        recent = self._began_ns < found.st_mtime_ns <= now_ns
        if (before and before != state) or (recent and not before):
            with self._lock:
                if self._named.get(place) != state:
                    self._named[place] = state
                    self._changed.append(file)
