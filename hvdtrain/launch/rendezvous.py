"""The HTTP store through which ranks find each other when srun starts them without MPI.

Horovod's own store has no authentication and listens on all interfaces during the whole job. This
one listens on one address, and closes as soon as all ranks have joined.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from hvdtrain.errors import CommError, ResourceError
from hvdtrain.versions import GET_HOROVOD

try:
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
except ImportError as missing:
    raise CommError(f"Horovod cannot be imported ({missing}): {GET_HOROVOD}") from None

JOINED = "joined"
"""Scope of the store in which each rank sets a key once it has joined."""


MAX_VALUE_BYTES = 2**20


class _Handler(RendezvousHandler):  # type: ignore[misc]
    """GET, PUT and DELETE of keys alone; the first value of a key stays."""

    def do_HEAD(self) -> None:  # noqa: N802
        """Refused: Python's own handler would tell of the files in the launcher's folder."""
        self.send_status_code(HTTPStatus.METHOD_NOT_ALLOWED)

    def do_PUT(self) -> None:  # noqa: N802
        """Store a value of at most MAX_VALUE_BYTES; of `joined`, the number of a rank alone."""
        parts, length = self.path.split("/"), self.headers.get("Content-Length", "")
        fits = re.fullmatch("[0-9]{1,7}", length) and int(length) <= MAX_VALUE_BYTES
        rank = len(parts) == 3 and (parts[1] != JOINED or self.server.is_rank(parts[2]))
        if not (fits and rank):
            self.close_connection = True
            self.send_status_code(HTTPStatus.BAD_REQUEST)
            return
        super().do_PUT()

    def _put_value(self, scope: str, key: str, value: bytes) -> None:
        with self.server.cache_lock:
            self.server.cache.setdefault(scope, {}).setdefault(key, value)
        if scope == JOINED:
            self.server.note_joined()


class Server(RendezvousHTTPServer):  # type: ignore[misc]
    """Horovod's store, but on one address."""

    daemon_threads = True

    def __init__(self, address: str, size: int) -> None:
        self._size = size
        self.all_joined = threading.Event()
        try:
            super().__init__((address, 0), _Handler, 0)
        except OSError as error:
            raise ResourceError(f"{address}: cannot listen on it: {error.strerror}") from None

    def server_bind(self) -> None:
        """Bind without looking up the host's full name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def is_rank(self, text: str) -> bool:
        """Whether `text` is the number of a rank, written as ranks write it."""
        return re.fullmatch("0|[1-9][0-9]{0,6}", text) is not None and int(text) < self._size

    def note_joined(self) -> None:
        """Count the ranks that have joined; called in the thread of a request."""
        with self.cache_lock:
            everyone = len(self.cache.get(JOINED, {})) == self._size
        if everyone:
            self.all_joined.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client may hang up at any time."""


@contextlib.contextmanager
def rendezvous(address: str, size: int) -> Iterator[Server]:
    """Open a store on `address` until all `size` ranks have joined, or the block ends.

    Raises ResourceError if this host does not have the address.
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
