"""A bounded queue between two threads; either end can close it."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Holds up to `capacity` items. After `close` no call waits any more."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        self.wait_s = 0.0
        """Seconds that `get` has waited so far."""

    @property
    def closed(self) -> bool:
        """Whether the consumer takes no more items."""
        return self._closed

    def put(self, item: T) -> bool:
        """Add an item when there is room; False if the channel was closed and the item dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """To be called by the producer after its last item, or when it failed with `error`."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def get(self) -> T | None:
        """The next item, or None after the last; instead of None raises the producer's error."""
        with self._changed:
            if not self._items:
                began = time.perf_counter()
                self._changed.wait_for(lambda: self._items or self._ended or self._closed)
                self.wait_s += time.perf_counter() - began
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """To be called by the consumer: drop all items, and let the producer go on."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
