"""Files in an object store, each operation bounded in time and memory, with retries.

Their clients are packages with the interface of fsspec. An operation runs in a thread of its own,
which is left behind if it does not answer.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, TypeVar

from hvdtrain.config.object_urls import client
from hvdtrain.config.overrides import printable
from hvdtrain.launch.forwarding import SECRET

T = TypeVar("T")
CHUNK = 8 * 2**20
"""Bytes of a transfer, and of a part of an object: a file takes about four times as much memory."""
MOST_PARTS = 5000
"""Half of what S3 takes: a larger file has larger parts."""
ANSWER_S = 60.0
"""Longest wait for one operation: a list, a deletion, or a chunk."""
TRIES = 3
PAUSE_S = 1.0
"""Before the second try; before each further one twice as long."""
BEAT_S = 1.0


class StoreError(OSError):
    """What a store did not do; one line that names it, without secrets."""

    def __init__(self, url: str, fault: BaseException | str) -> None:
        super().__init__(f"{url}: {fault if isinstance(fault, str) else _reason(fault)}")
        self.kind = type(fault).__name__
        """Equal for faults of one kind, whose texts may differ."""
        self.missing = isinstance(fault, FileNotFoundError)
        """There is no such bucket or file."""
        self.lasting = isinstance(fault, (FileNotFoundError, PermissionError))
        """Another try at once is of no use."""


class ObjectStore:
    """The files below `url`, by names relative to it. All methods but `chunks` and `write` try three
    times; all raise StoreError."""

    def __init__(self, url: str, beat: Callable[[], None] | None = None) -> None:
        """`beat` is called about every second of a wait; without it the work has low priority.

        Raises ConfigError if the package for the URL cannot be imported.
        """
        self.url = url
        self._class, self._beat = client(url), beat
        self._made: Any = None

    def list(self) -> dict[str, int]:
        """Names and bytes of all files; none if the bucket is missing."""

        def find() -> dict[str, int]:
            store, root = self._store()
            store.invalidate_cache()
            found = store.find(root, detail=True)
            return {
                name[len(root) + 1 :]: int(info["size"] or 0)
                for name, info in found.items()
                if name.startswith(f"{root}/") and info["type"] == "file"
            }

        try:
            return self._tried(find)
        except StoreError as error:
            if error.missing:
                return {}
            raise

    def read(self, name: str, limit: int) -> bytes:
        """The content of a small file, cut off after `limit` bytes."""

        def read() -> bytes:
            store, root = self._store()
            size = int(store.info(f"{root}/{name}")["size"])
            end = min(size, limit)
            return bytes(store.cat_file(f"{root}/{name}", start=0, end=end)) if end else b""

        return self._tried(read)

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The content of a file of `size` bytes, read anew; each chunk is tried three times."""
        for begin in range(0, size, CHUNK):
            end = min(begin + CHUNK, size)

            def read(begin: int = begin, end: int = end) -> bytes:
                store, root = self._store()
                return bytes(store.cat_file(f"{root}/{name}", start=begin, end=end))

            yield self._tried(read)

    def write(self, name: str, source: BinaryIO) -> None:
        """Upload a file; it has its name only when it is whole. Three times if need be."""
        self._retried(lambda: self._upload(name, source))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""

        def put() -> None:
            store, root = self._store()
            store.pipe_file(f"{root}/{name}", data)

        self._tried(put)

    def delete(self, name: str) -> None:
        """Delete a file that may be missing."""

        def delete() -> None:
            store, root = self._store()
            with contextlib.suppress(FileNotFoundError):
                store.rm_file(f"{root}/{name}")

        self._tried(delete)

    def _upload(self, name: str, source: BinaryIO) -> None:
        source.seek(0)
        size = os.fstat(source.fileno()).st_size
        part = CHUNK * (1 + size // (MOST_PARTS * CHUNK))

        def begin() -> Any:
            store, root = self._store()
            return store.open(f"{root}/{name}", "wb", block_size=part)

        file = self._within(begin)
        try:
            while chunk := source.read(CHUNK):
                self._within(partial(file.write, chunk))
            self._within(file.close)
        except BaseException:
            _leave(file)
            with contextlib.suppress(StoreError, AttributeError):
                self._within(file.discard)
            raise

    def _store(self) -> tuple[Any, str]:
        """The client and the path of the root in it; made in the thread of an operation, as some ask
        for credentials over the network then."""
        if self._made is None:
            store = self._class(skip_instance_cache=True, use_listings_cache=False)
            loop = getattr(store, "loop", None)
            if self._beat is None and loop is not None:
                loop.call_soon_threadsafe(_lower_priority)
            self._made = store, str(self._class._strip_protocol(self.url))
        return self._made  # type: ignore[no-any-return]

    def _tried(self, work: Callable[[], T]) -> T:
        return self._retried(lambda: self._within(work))

    def _retried(self, work: Callable[[], T]) -> T:
        for number in range(TRIES):
            try:
                return work()
            except StoreError as error:
                if error.lasting or number == TRIES - 1:
                    raise
            time.sleep(PAUSE_S * 2**number)
        raise AssertionError

    def _within(self, work: Callable[[], T]) -> T:
        """The result of `work`, within the time for one operation."""
        results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        late, deciding = threading.Event(), threading.Lock()

        def run() -> None:
            if self._beat is None:
                _lower_priority()
            result, fault = None, None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                fault = error
            with deciding:
                if late.is_set():
                    _leave(result)
                results.put((result, fault))

        threading.Thread(target=run, name="hvdtrain-store", daemon=True).start()
        end = time.monotonic() + ANSWER_S
        while (left_s := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._result(*results.get(timeout=min(left_s, BEAT_S)))
            if self._beat is not None:
                self._beat()
        with deciding:
            late.set()
            with contextlib.suppress(queue.Empty):
                return self._result(*results.get_nowait())
        raise StoreError(self.url, TimeoutError(f"no answer for {ANSWER_S:.0f} s"))

    def _result(self, result: T | None, fault: BaseException | None) -> T:
        if fault is not None:
            raise StoreError(self.url, fault) from None
        return result  # type: ignore[return-value]


def _leave(file: object) -> None:
    """Let a file that is being written stay as it is: its last reference would complete it."""
    with contextlib.suppress(AttributeError):
        file.closed = True  # type: ignore[attr-defined]


def _lower_priority() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _reason(error: BaseException) -> str:
    """What an error says, in one short line without secrets."""
    text = str(getattr(error, "strerror", None) or error)
    if isinstance(error, FileNotFoundError) and " " not in text:  # the name alone
        text = "no such bucket or file"
    text = " ".join(text.split()) or type(error).__name__
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) > 7:
            text = text.replace(value, "…")
    text = re.sub(r"\(reached max retries: \d+\)", "", text)
    return printable(text).rstrip(". ")
