"""The links of a ring of two ranks: threads that believe to be on different hosts."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.launch.nic import Nic
from hvdtrain.preflight import links
from hvdtrain.preflight.facts import Link

NIC = Nic("lo", "127.0.0.1", 8, 65536, 0)


class Pair(Solo):
    """One of two ranks; `table` and `barrier` are shared."""

    def __init__(self, rank: int, table: list[str], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, 2
        self._table, self._barrier = table, barrier

    def gather_text(self, text: str) -> list[str]:
        self._table[self.rank] = text
        self._barrier.wait(timeout=10)
        texts = list(self._table)
        self._barrier.wait(timeout=10)
        return texts


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "machine_id", lambda: threading.current_thread().name)
    monkeypatch.setattr(links, "SEND_S", 0.02)


def measure() -> list[Link | None]:
    table, barrier = ["", ""], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(links.ring_link, Pair(r, table, barrier), NIC) for r in range(2)]
        return [rank.result()[0] for rank in ranks]


def test_speed_and_latency() -> None:
    for rank, link in enumerate(measure()):
        assert link is not None
        assert (link.to, link.error) == (1 - rank, None)
        assert link.mbit > 0 < link.latency_s


def test_a_rank_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(links, "_serve", lambda *_: None)
    for link in measure():
        assert link is not None
        assert link.error is not None
        assert link.error.startswith("no answer (timed out")


def test_ranks_of_one_host_have_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "machine_id", lambda: "one")
    assert measure() == [None, None]


def test_clients_without_the_token_are_refused() -> None:
    with links._listening(NIC) as server:
        thread = threading.Thread(target=links._serve, args=(server, b"s" * 16))
        thread.start()
        address: Any = server.getsockname()
        with socket.create_connection(address, 5) as stranger:
            stranger.sendall(b"x" * 16 + b".")
            with pytest.raises(ConnectionError):
                links._answer(stranger)
        link, stream = links._ping(1, NIC.address, *address, "s" * 16)
        assert (link.error, stream is not None) == (None, True)
        assert stream is not None
        assert links._stream(link, stream).mbit > 0
        thread.join()
