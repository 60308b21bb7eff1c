"""The store where the ranks of a job find each other, when neither MPI nor ssh brings them up.

Horovod's own store, which is HTTP without authentication, listens on all interfaces for the whole
job. This one listens on one address, and closes as soon as all ranks have joined.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

from hvdtrain.errors import CommError, ResourceError
from hvdtrain.versions import GET_HOROVOD

try:
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
except ImportError as missing:
    raise CommError(f"Horovod cannot be imported ({missing}): {GET_HOROVOD}") from None

JOINED = "joined"
"""Scope in which each rank leaves a word once it has joined."""


class _Handler(RendezvousHandler):  # type: ignore[misc]
    def _put_value(self, scope: str, key: str, value: bytes) -> None:
        super()._put_value(scope, key, value)
        if scope == JOINED:
            self.server.note_joined()


class Server(RendezvousHTTPServer):  # type: ignore[misc]
    """Horovod's store on one address."""

    daemon_threads = True

    def __init__(self, address: str, size: int) -> None:
        self._size = size
        self.all_joined = threading.Event()
        try:
            super().__init__((address, 0), _Handler, 0)
        except OSError as error:
            raise ResourceError(f"{address}: no port to listen on: {error.strerror}") from None

    def server_bind(self) -> None:
        """Without the look-up of the host's full name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def note_joined(self) -> None:
        """Called from the thread of a request."""
        with self.cache_lock:
            everyone = len(self.cache.get(JOINED, {})) == self._size
        if everyone:
            self.all_joined.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no matter for the log."""


@contextlib.contextmanager
def rendezvous(address: str, size: int) -> Iterator[Server]:
    """A store on `address` until all `size` ranks have joined, or the block ends.

    Raises ResourceError if the address is not this host's.
    """
    server = Server(address, size)
    serving = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    ended = threading.Event()

    def close() -> None:
        server.all_joined.wait()
        server.shutdown()
        server.server_close()
        ended.set()

    serving.start()
    threading.Thread(target=close, daemon=True).start()
    try:
        yield server
    finally:
        server.all_joined.set()
        ended.wait()
