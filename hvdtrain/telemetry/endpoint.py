"""A small HTTP server for the pages of one rank. No client can make it slow or large.

Each connection has one request. A few threads answer, each for a few seconds at most; further
connections wait in the kernel's short queue. The rate of connections is limited, because the
threads and the training share one interpreter.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hmac
import http.client
import io
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from hvdtrain.config.schema import Metrics
from hvdtrain.errors import ResourceError

PORTS = 64
"""Ports tried, one after the other."""
MAX_CONNECTIONS = 8
"""Connections served at a time."""
TIMEOUT_S = 5.0
"""Longest time for the handshake, for the request, and for the answer, each."""
RATE, BURST = 10.0, 40.0
"""Connections a second in the long run, and at once after a quiet time."""
MAX_REQUEST_BYTES = 16384
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Host names that an endpoint on loopback accepts. It also accepts a request without a Host header,
as old programs send."""
CHALLENGES = ("WWW-Authenticate: Bearer", 'WWW-Authenticate: Basic realm="hvdtrain"')
"""Headers of the answer to a request without the token. Programs send the token as it is, browsers
as a password."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Limits for a page in the browser: it may run its own script and send requests to this endpoint."""

Page = Callable[[], tuple[str, bytes]]
"""Returns content type and body; called for each request, in a thread of the server."""


class Endpoint:
    """Serves `pages` by path at `cfg.bind`, on the first free port from `port` on.

    Raises ResourceError if no port is free, or if the token or a certificate cannot be used.
    """

    def __init__(self, cfg: Metrics, port: int, pages: Mapping[str, Page]) -> None:
        self.warnings: list[str] = []
        self._pages = pages
        self._token = self._read_token(cfg.token_file) if cfg.token_file is not None else None
        self._tls = _tls_context(cfg) if cfg.tls_cert is not None else None
        if cfg.tls_key is not None:
            self._warn_if_open("metrics.tls_key", cfg.tls_key, Path(cfg.tls_key).stat().st_mode)
        self._local = cfg.on_loopback
        self._names = ("", cfg.bind, *LOCAL_NAMES)
        self._listener = _listen(cfg.bind, port)
        self.port: int = self._listener.getsockname()[1]
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Answers that have begun get a few more seconds."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._listener.close()
        self._thread.join(TIMEOUT_S)

    def _accept(self) -> None:
        allowed, before = BURST, time.monotonic()
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                self._slots.release()
                if self._closed:
                    return
                time.sleep(1.0)  # too many files are open
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            now = time.monotonic()
            allowed, before = min(BURST, allowed + RATE * (now - before)) - 1.0, now
            if allowed < 0.0:
                time.sleep(-allowed / RATE)

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(TIMEOUT_S)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            connection.sendall(self._answer(_read_request(connection)))
        except OSError:
            pass  # the client was slow, went away, or has no certificate
        finally:
            connection.close()
            self._slots.release()

    def _answer(self, request: bytes) -> bytes:
        """The whole answer, headers and body."""
        line, _, rest = request.partition(b"\r\n")
        try:
            method, target, _ = line.split(b" ")
            headers = http.client.parse_headers(io.BytesIO(rest))
        except (ValueError, http.client.HTTPException):
            return _response(HTTPStatus.BAD_REQUEST)
        if b"\r\n\r\n" not in request:
            return _response(HTTPStatus.BAD_REQUEST)
        # Another site may let its own name point to this address (DNS rebinding). The browser then
        # sends that name.
        if self._local and _host(headers.get("Host", "")) not in self._names:
            return _response(HTTPStatus.FORBIDDEN)
        if self._token is not None:
            given = headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(_token_sent(given), self._token):
                return _response(HTTPStatus.UNAUTHORIZED, *CHALLENGES)
        if method != b"GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET")
        page = self._pages.get(target.partition(b"?")[0].decode("latin-1"))
        if page is None:
            return _response(HTTPStatus.NOT_FOUND)
        kind, body = page()
        return _response(HTTPStatus.OK, f"Content-Type: {kind}", body=body)

    def _read_token(self, name: str) -> bytes:
        try:
            mode = Path(name).stat().st_mode
            token = Path(name).read_bytes().strip()
        except OSError as error:
            raise ResourceError(
                f"metrics.token_file: {name}: cannot be read: {error.strerror}"
            ) from None
        if not token or not token.isascii() or len(token.split()) > 1:
            raise ResourceError(
                f"metrics.token_file: {name}: expected one line of ASCII text without spaces, as "
                "`openssl rand -hex 32` prints"
            )
        self._warn_if_open("metrics.token_file", name, mode)
        return token

    def _warn_if_open(self, key: str, name: str, mode: int) -> None:
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            self.warnings.append(f"{key}: {name} can be read by other users: chmod 600 {name}")


def _host(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    name, colon, port = header.strip().rpartition(":")
    if not (colon and port.isdecimal()):
        name = header.strip()
    return name.strip("[]").lower()


def _token_sent(authorization: bytes) -> bytes:
    """The bearer token of a program, or the password that a browser asked its user for; empty if
    there is neither."""
    scheme, _, sent = authorization.partition(b" ")
    scheme, sent = scheme.lower(), sent.strip(b" ")  # RFC 9110: any case, one blank or more
    if scheme == b"bearer":
        return sent
    if scheme != b"basic":
        return b""
    try:
        return base64.b64decode(sent, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _read_request(connection: socket.socket) -> bytes:
    """Read up to the empty line; raises TimeoutError if that takes too long, however slowly it comes."""
    deadline = time.monotonic() + TIMEOUT_S
    request = b""
    while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST_BYTES:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(4096)
        if not chunk:
            break
        request += chunk
    connection.settimeout(TIMEOUT_S)
    return request


def _response(status: HTTPStatus, *headers: str, body: bytes | None = None) -> bytes:
    body = f"{status.value} {status.phrase}\n".encode() if body is None else body
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        f"Content-Security-Policy: {POLICY}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _tls_context(cfg: Metrics) -> ssl.SSLContext:
    """TLS 1.2 or newer, and client certificates if `tls_client_ca` is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert cfg.tls_cert is not None
    assert cfg.tls_key is not None
    try:
        # Without a password argument, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cfg.tls_cert, cfg.tls_key, password="")
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"metrics.tls_cert, tls_key: {cfg.tls_cert}, {cfg.tls_key}: cannot be used: {error}"
        ) from None
    if cfg.tls_client_ca is not None:
        try:
            context.load_verify_locations(cfg.tls_client_ca)
        except OSError as error:
            raise ResourceError(
                f"metrics.tls_client_ca: {cfg.tls_client_ca}: cannot be used: {error}"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _listen(bind: str, first: int) -> socket.socket:
    """A socket that listens on the first free port of PORTS from `first` on."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            bind, first, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ResourceError(f"metrics.bind: {bind}: no such address: {error.strerror}") from None
    for port in range(first, first + PORTS):
        try:
            return socket.create_server((address[0], port), family=family, backlog=16)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ResourceError(
                    f"metrics.bind: {bind}:{port} cannot be opened: {error.strerror}: choose "
                    "another with metrics.bind=ADDRESS, or metrics.enabled=false"
                ) from None
    raise ResourceError(
        f"metrics.port: {bind}: all ports from {first} to {first + PORTS - 1} are in use: choose "
        "another base with metrics.port=PORT, or metrics.enabled=false"
    )
