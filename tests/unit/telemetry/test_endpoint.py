"""The HTTP server of a rank: access, answers, and behaviour under load."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Metrics
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.telemetry import endpoint as module
from hvdtrain.telemetry.endpoint import MAX_CONNECTIONS, Endpoint
from tests.launch import free_port

Open = Callable[..., Endpoint]


@pytest.fixture
def serve() -> Iterator[Open]:
    """Opens an endpoint with one page, `/metrics`, whose content is hello."""
    opened = []

    def open_one(**settings: Any) -> Endpoint:
        pages = {"/metrics": lambda: ("text/plain", b"hello")}
        made = Endpoint(Metrics(**settings), free_port(), pages)
        opened.append(made)
        return made

    yield open_one
    for one in opened:
        one.close()


def ask(
    port: int, path: str = "/metrics", method: str = "GET", tls: Any = None, **headers: str
) -> tuple[int, bytes]:
    """Status and body."""
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    else:
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=tls)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def raw(port: int, request: bytes) -> bytes:
    """The whole answer to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_only_get_of_a_known_page(serve: Open) -> None:
    port = serve().port
    assert ask(port) == (200, b"hello")
    assert ask(port, "/metrics?name=x") == (200, b"hello")
    assert ask(port, "/") == (404, b"404 Not Found\n")
    assert ask(port, "/metrics/..")[0] == 404
    assert ask(port, method="POST")[0] == 405
    for request in (
        b"",
        b"\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n",
        b"x y z",
    ):
        assert raw(port, request).startswith(b"HTTP/1.1 400 "), request
    many = b"".join(b"A%d: b\r\n" % number for number in range(1000))
    assert raw(port, b"GET /metrics HTTP/1.1\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 400 ")


def test_default_is_loopback(serve: Open) -> None:
    made = serve()
    assert made._listener.getsockname() == ("127.0.0.1", made.port)


def test_another_sites_name_for_this_machine_is_refused(serve: Open) -> None:
    port = serve().port
    for name in ("localhost", "LOCALHOST:8000", "[::1]:80", ""):
        assert ask(port, Host=name)[0] == 200
    assert ask(port, Host="a.example:80")[0] == 403


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.1.2.3", "node7"])
def test_open_address_without_access_control_is_refused(bind: str) -> None:
    text = f"phases: [{{epochs: 1}}]\nmetrics: {{bind: '{bind}'%s}}"
    with pytest.raises(ConfigError) as caught:
        parse_config(text % "", "f.yaml")
    [line] = caught.value.problems
    assert line == (
        f"f.yaml:2:1: metrics: bind: {bind} is open to others: set token_file, or tls_cert, tls_key "
        "and tls_client_ca, or insecure: true"
    )
    with pytest.raises(
        ConfigError, match="is open to others"
    ):  # without client certificates, TLS lets everybody in
        parse_config(text % ", tls_cert: a, tls_key: b", "f.yaml")
    for guard in (
        "token_file: t",
        "tls_cert: a, tls_key: b, tls_client_ca: c",
        "insecure: true",
        "enabled: false",
    ):
        parse_config(text % f", {guard}", "f.yaml")


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_access_control(bind: str) -> None:
    assert Metrics(bind=bind).on_loopback


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("tls_cert: a", "tls_cert and tls_key belong together"),
        ("tls_key: a", "tls_cert and tls_key belong together"),
        ("tls_client_ca: a", "tls_client_ca needs tls_cert and tls_key"),
    ],
)
def test_halves_of_tls_are_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"phases: [{{epochs: 1}}]\nmetrics: {{{settings}}}", "f.yaml")


def test_token(serve: Open, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    made = serve(token_file=str(token))
    assert made.warnings == []
    for right in ("Bearer s3cret", "bearer s3cret", "BEARER  s3cret"):
        assert ask(made.port, Authorization=right) == (200, b"hello"), right
    for wrong in ("Bearer s3cre", "Bearer s3crets", "bearer S3cret", "s3cret", "", "Bearer é"):
        assert ask(made.port, Authorization=wrong)[0] == 401, wrong
    assert ask(made.port)[0] == 401
    assert ask(made.port, "/nowhere")[0] == 401
    answer = raw(made.port, b"GET / HTTP/1.1\r\n\r\n")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in answer
    assert b'\r\nWWW-Authenticate: Basic realm="hvdtrain"\r\n' in answer
    token.chmod(0o640)
    assert serve(token_file=str(token)).warnings == [
        f"metrics.token_file: {token} can be read by other users: chmod 600 {token}"
    ]


def test_token_as_the_password_of_a_browser(serve: Open, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3:cret\n")
    token.chmod(0o600)
    port = serve(token_file=str(token)).port

    def basic(text: bytes) -> str:
        return "Basic " + base64.b64encode(text).decode()

    for user in (b"", b"anybody", "é".encode()):
        assert ask(port, Authorization=basic(user + b":s3:cret")) == (200, b"hello")
    for wrong in (b"", b":", b"s3:cret", b"s3:cret:", b"a:s3:cre", b"a:s3:crets", b"a:\xff"):
        assert ask(port, Authorization=basic(wrong))[0] == 401, wrong
    for wrong in ("Basic", "Basic s3:cret", "Basic é", "Basic ====", "Digest s3:cret"):
        assert ask(port, Authorization=wrong)[0] == 401, wrong


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\n", "expected one line of ASCII text"),
        (b"two words", "expected one line of ASCII text"),
        ("é".encode(), "expected one line of ASCII text"),
    ],
)
def test_token_that_cannot_be_used(
    serve: Open, tmp_path: Path, content: bytes | None, message: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    with pytest.raises(ResourceError, match=rf"metrics\.token_file: .*token: {message}"):
        serve(token_file=str(token))


def test_mutual_tls(serve: Open, certificates: Path) -> None:
    server = {
        "tls_cert": f"{certificates}/server.pem",
        "tls_key": f"{certificates}/server.key",
        "tls_client_ca": f"{certificates}/ca.pem",
    }
    port = serve(**server).port

    def client(name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=f"{certificates}/ca.pem")
        if name is not None:
            context.load_cert_chain(f"{certificates}/{name}.pem", f"{certificates}/{name}.key")
        return context

    assert ask(port, tls=client("client")) == (200, b"hello")
    for name in ("stranger", None):
        with pytest.raises(OSError, match=r"alert|reset|EOF"):
            ask(port, tls=client(name))
    assert ask(port, tls=client("client"))[0] == 200
    # TLS without client certificates only encrypts.
    made = serve(tls_cert=server["tls_cert"], tls_key=server["tls_key"])
    assert ask(made.port, tls=client(None)) == (200, b"hello")
    assert made._tls is not None
    assert made._tls.minimum_version == ssl.TLSVersion.TLSv1_2
    with pytest.raises(ResourceError, match=r"metrics\.tls_cert, tls_key: .* cannot be used"):
        serve(tls_cert=server["tls_cert"], tls_key=f"{certificates}/client.key")
    with pytest.raises(ResourceError, match=r"metrics\.tls_client_ca: /none: cannot be used"):
        serve(**{**server, "tls_client_ca": "/none"})


def test_address_that_cannot_be_opened() -> None:
    with pytest.raises(
        ResourceError, match=r"metrics\.bind: 203\.0\.113\.1:19400 cannot be opened"
    ):
        Endpoint(Metrics(bind="203.0.113.1", insecure=True), 19400, {})


def held_ports(count: int) -> Iterator[int]:
    """The first of `count` ports in a row that are in use by this process meanwhile."""
    for first in range(21000, 29000, count):
        with contextlib.ExitStack() as held:
            try:
                for number in range(count):
                    holder = held.enter_context(socket.socket())
                    holder.bind(("127.0.0.1", first + number))
                    holder.listen()
            except OSError:
                continue  # somebody else has one of them, and may give it back
            yield first
            return
    pytest.fail(f"no {count} free ports in a row")


def test_error_if_64_ports_in_a_row_are_in_use() -> None:
    with contextlib.contextmanager(held_ports)(64) as port, pytest.raises(ResourceError) as caught:
        Endpoint(Metrics(), port, {})
    assert str(caught.value) == (
        f"metrics.port: 127.0.0.1: all ports from {port} to {port + 63} are in use: choose another "
        "base with metrics.port=PORT, or metrics.enabled=false"
    )


def test_hanging_clients_are_limited_and_disconnected(
    serve: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    port = serve().port
    threads = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS + 3)]
    trickle = threading.Event()

    def drip() -> None:  # slow bytes do not extend the timeout
        while not trickle.wait(0.1):
            for connection in idle:
                try:
                    connection.sendall(b"G")
                except OSError:
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    time.sleep(0.2)
    assert threading.active_count() - threads <= MAX_CONNECTIONS + 1
    assert ask(port) == (200, b"hello")  # served after all of them
    trickle.set()
    dripping.join()
    for connection in idle:
        connection.close()


def test_a_flood_is_served_at_a_bounded_rate(serve: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BURST", 5.0)
    monkeypatch.setattr(module, "RATE", 20.0)
    port = serve().port
    began = time.monotonic()
    for _ in range(15):
        assert ask(port)[0] == 200
    # Five at once, ten more at twenty a second; the last answer comes before its pause.
    assert time.monotonic() - began >= 9 / 20
