"""Bytes of objects far away: asked for by range, and every answer checked to be of the same object.

An answer is taken if its range, its length and the length of the object are those expected, and its ETag (without
one its date of change) is that of the first look. A request that fails for a moment is made again, as a read from
a disk is (`retries.py`). A server that cannot say whether an object has changed is refused.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from hvdtrain.errors import DataError
from pipelines.sources.remote.clients import Answer, Client, client_for
from pipelines.sources.remote.faults import passing, refused
from pipelines.sources.retries import RETRIES

T = TypeVar("T")
TOTAL_S = 120.0
"""Longest time for one request: a server that trickles has stalled, too."""
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class State(NamedTuple):
    """What shows that an object is the same."""

    size: int
    """Bytes."""
    etag: str
    changed: str
    """Date of the last change, as the server writes it."""

    def key(self, url: str) -> str:
        """A name for these very bytes, 32 characters."""
        text = "\0".join((url, str(self.size), self.etag or self.changed))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class AccessError(DataError):
    """The server refuses an object, or does not say that it is missing."""


class Objects:
    """The objects of all stores that this process reads from. Safe from several threads."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()

    def state(self, url: str) -> State:
        """Look at an object. Raises DataError naming it: it is missing, empty or cannot be read by range."""
        return self._tried(url, lambda: self._state(url))

    def read(self, url: str, state: State, begin: int, end: int) -> bytearray:
        """Bytes `begin` to `end` of an object. Raises DataError naming it if it is not in `state` any more."""
        return self._tried(url, lambda: self._read(url, state, begin, end))

    def read_small(self, url: str, most: int) -> bytes | None:
        """All of a small object; None if there is none. Raises DataError if it has more than `most` bytes."""
        return self._tried(url, lambda: self._read_small(url, most))

    def names(self, url: str) -> list[str]:
        """The names of the objects directly below `url`, sorted. Raises DataError if it cannot be listed."""
        return sorted(self._tried(url, lambda: self._client(url).names(url)))

    def _tried(self, url: str, once: Callable[[], T]) -> T:
        try:
            return RETRIES.read(url, once)
        except OSError as error:
            raise DataError(f"{url}: cannot read: {error.strerror or error}") from None

    def _client(self, url: str) -> Client:
        protocol = url.partition("://")[0]
        with self._lock:
            if protocol not in self._clients:
                self._clients[protocol] = client_for(url)
            return self._clients[protocol]

    def _state(self, url: str) -> State:
        with self._client(url).get(url, {"Range": "bytes=0-0"}) as answer:
            if answer.status == 416:
                raise DataError(f"{url}: an empty file")
            size = _size(url, answer, 0, 1)
            _fill(answer, 1)
            found = State(
                size, answer.headers.get("etag", ""), answer.headers.get("last-modified", "")
            )
        if not found.etag and not found.changed:
            raise DataError(
                f"{url}: the server gives neither an ETag nor a date of change, so a change would not be seen: "
                "copy the files to a disk"
            )
        return found

    def _read(self, url: str, state: State, begin: int, end: int) -> bytearray:
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        if state.etag.startswith('"'):  # a weak one never matches
            headers["If-Match"] = state.etag
        with self._client(url).get(url, headers) as answer:
            if answer.status in (412, 416):
                raise _changed(url, f"HTTP {answer.status}")
            size = _size(url, answer, begin, end)
            if size != state.size:
                raise _changed(url, f"{state.size:,} bytes before, {size:,} now")
            kind = "etag" if state.etag else "last-modified"
            before = state.etag or state.changed
            if (now := answer.headers.get(kind, "")) != before:
                raise _changed(url, f"{kind} {before[:60]} before, {now[:60] or 'none'} now")
            return _fill(answer, end - begin)

    def _read_small(self, url: str, most: int) -> bytes | None:
        with self._client(url).get(url, {}) as answer:
            if answer.status in (404, 410):
                return None
            if answer.status in (401, 403):
                raise AccessError(f"{url}: access refused (HTTP {answer.status})")
            if answer.status != 200:
                raise refused(url, answer.status)
            content, began = bytearray(), time.monotonic()
            for chunk in answer.chunks:
                content += chunk
                if len(content) > most:
                    raise DataError(f"{url}: more than {most:,} bytes")
                _check_time(began)
            length = answer.headers.get("content-length", "")
            if length.isdigit() and int(length) != len(content):
                raise passing("the connection was cut")
            return bytes(content)


def _size(url: str, answer: Answer, begin: int, end: int) -> int:
    """The length of the object. Raises DataError or OSError unless the answer has the bytes asked for."""
    if answer.status == 200:
        raise DataError(
            f"{url}: the server gives the whole file, where a part was asked for (no support for ranges): copy "
            "the files to a disk, or use another server"
        )
    if answer.status != 206:
        raise refused(url, answer.status)
    found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is None or (int(found[1]), int(found[2])) != (begin, end - 1):
        if found is not None and int(found[2]) == int(found[3]) - 1 < end - 1:
            raise _changed(url, f"it ends at byte {int(found[3]):,} now")
        raise DataError(f"{url}: the server answers with another range of bytes than was asked for")
    return int(found[3])


def _fill(answer: Answer, count: int) -> bytearray:
    """The body of an answer. Raises OSError unless it has `count` bytes."""
    content, done, began = bytearray(count), 0, time.monotonic()
    for chunk in answer.chunks:
        if done + len(chunk) > count:
            raise passing(f"more than the {count:,} bytes asked for")
        content[done : done + len(chunk)] = chunk
        done += len(chunk)
        _check_time(began)
    if done < count:
        raise passing(f"cut short: {done:,} of {count:,} bytes")
    return content


def _check_time(began: float) -> None:
    if time.monotonic() - began > TOTAL_S:
        raise passing(f"not complete after {TOTAL_S:g} s")


def _changed(url: str, how: str) -> DataError:
    return DataError(f"{url}: changed while it was in use: {how}")


OBJECTS = Objects()
"""Of this process."""
