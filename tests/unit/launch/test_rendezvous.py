"""The store through which the ranks of a job find each other."""

from __future__ import annotations

import http.client
import socket
import time

import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.launch.rendezvous import rendezvous
from hvdtrain.launch.slurm_task import report_joined


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body=body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_store_listens_on_one_address_until_all_have_joined() -> None:
    with rendezvous("127.0.0.1", 2) as server:
        port = server.server_port
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert ask(port, "GET", "/global/0")[0] == 404
        assert ask(port, "PUT", "/global/0", b"address")[0] == 200
        assert ask(port, "GET", "/global/0") == (200, b"address")
        env = {"HVDTRAIN_RENDEZVOUS": f"127.0.0.1:{port}", "SLURM_STEP_NUM_TASKS": "2"}
        report_joined(env | {"SLURM_PROCID": "0"})
        report_joined(env | {"SLURM_PROCID": "0"})
        assert ask(port, "GET", "/global/0")[0] == 200
        report_joined(env | {"SLURM_PROCID": "1"})
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("still open")


def test_the_store_has_keys_alone_and_their_first_value() -> None:
    with rendezvous("127.0.0.1", 2) as server:
        port = server.server_port
        assert ask(port, "HEAD", "/")[0] == 405
        for path in ("/joined/2", "/joined/00", "/joined/x", "/a", "/a/b/c"):
            assert ask(port, "PUT", path, b"1")[0] == 400
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("PUT", "/global/0")
        connection.putheader("Content-Length", str(2**40))
        connection.endheaders()
        assert connection.getresponse().status == 400
        assert ask(port, "PUT", "/global/0", b"address")[0] == 200
        assert ask(port, "PUT", "/global/0", b"another")[0] == 200
        assert ask(port, "GET", "/global/0") == (200, b"address")
        assert not server.all_joined.is_set()


def test_the_store_closes_with_the_job() -> None:
    with rendezvous("127.0.0.1", 2) as server:
        port = server.server_port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_address_of_another_host() -> None:
    store = rendezvous("198.51.100.1", 2)
    with pytest.raises(ResourceError, match=r"198\.51\.100\.1: cannot listen on it"), store:
        pass
