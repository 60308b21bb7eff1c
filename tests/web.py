"""A web server with ranges, ETags and faults, for datasets far away."""

from __future__ import annotations

import contextlib
import email.utils
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Web:
    """What the server serves and how; its requests so far."""

    folder: Path
    url: str = ""
    faults: list[str] = field(default_factory=list)
    """Each is used up by one request for a part of a file that `faulty` is part of: 503, cut, short, reset, stall."""
    faulty: str = ""
    ranges: bool = True
    etags: bool = True
    dates: bool = True
    password: str = ""
    """`Basic …`, without which nothing is served."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set at the end: requests that hang go on."""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, first byte and end of each part that was asked for; of whole files 0 and -1."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, name: str) -> str:
        with self.lock:
            return self.faults.pop(0) if self.faults and self.faulty in name else ""

    def bytes_of(self, part: str) -> int:
        """Bytes asked for of files whose name has `part`."""
        return sum(end - begin for name, begin, end in self.asked if part in name)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """A server of the files below `folder`, on a free port of this machine."""
    web = Web(folder)

    class Handler(_Handler):
        state = web

    server = _Server(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.lost.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        web, name = self.state, unquote(self.path).lstrip("/")
        file = web.folder / name
        if web.password and self.headers.get("Authorization") != web.password:
            return self._empty(401)
        if not file.is_file():
            return self._empty(404)
        content = file.read_bytes()
        etag = f'"{zlib.crc32(content):x}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        with web.lock:
            web.asked.append((name, int(asked[1]), int(asked[2]) + 1) if asked else (name, 0, -1))
        fault = web.fault(name) if asked and asked[2] != "0" else ""
        if fault == "503":
            return self._empty(503)
        if fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if fault == "stall":
            web.lost.wait(60)
            self.close_connection = True
            return None
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted != etag:
            return self._empty(412)
        status, begin, end = 200, 0, len(content)
        if asked and web.ranges:
            status, begin, end = 206, int(asked[1]), min(int(asked[2]) + 1, len(content))
            if begin >= len(content):
                return self._empty(416)
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        if web.etags:
            self.send_header("ETag", etag)
        if web.dates:
            date = email.utils.formatdate(file.stat().st_mtime, usegmt=True)
            self.send_header("Last-Modified", date)
        part = content[begin:end]
        sent = part[: len(part) // 2] if fault in ("cut", "short") else part
        self.send_header("Content-Length", str(len(sent) if fault == "short" else len(part)))
        self.end_headers()
        self.wfile.write(sent)
        if fault == "cut":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        return None

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
