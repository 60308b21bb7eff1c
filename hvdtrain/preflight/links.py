"""Measure the links of the ring over plain TCP: from each rank to the next one on another host.

Horovod's collectives cannot show which link is slow, because all ranks wait for the slowest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import socket
import statistics
import threading
import time
from collections.abc import Iterator

from hvdtrain.comm.ranks import Comm
from hvdtrain.launch.nic import Nic
from hvdtrain.preflight.facts import Link, machine_id

SEND_S = 0.25
PINGS = 20
TIMEOUT_S = 3.0
_CHUNK = bytes(2**20)
_TOKEN_BYTES = 16


def ring_link(comm: Comm, nic: Nic | None) -> tuple[Link | None, float]:
    """Measure this rank's link, and read the clocks of all ranks; every rank must call.

    Returns the link, None if the next rank is on the same host, and the time in seconds since 1970,
    read on all ranks at the same moment. All links are busy at the same time, as in an allreduce.
    A client must send a secret that only the ranks have.
    """
    token = secrets.token_hex(_TOKEN_BYTES // 2)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listening(nic)) if nic is not None else None
        port = server.getsockname()[1] if server is not None else 0
        offer = [machine_id(), nic.address if nic else "", port, token]
        offers = [json.loads(text) for text in comm.gather_text(json.dumps(offer))]
        clock = time.time()
        before, after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        thread = None
        if server is not None and offers[before][0] != offer[0]:
            thread = threading.Thread(target=_serve, args=(server, token.encode()))
            thread.start()
        link, stream = None, None
        if nic is not None and offers[after][0] != offer[0]:
            link, stream = _ping(after, nic.address, *offers[after][1:])
        comm.gather_text("")  # wait: the streams of other ranks would delay pings
        if link is not None and stream is not None:
            link = _stream(link, stream)
        if thread is not None:
            thread.join()
    return link, clock


@contextlib.contextmanager
def _listening(nic: Nic) -> Iterator[socket.socket]:
    with socket.create_server((nic.address, 0), backlog=8) as server:
        server.settimeout(TIMEOUT_S)
        yield server


def _serve(server: socket.socket, token: bytes) -> None:
    """Answer the pings and read the stream of the previous rank; refuse clients without the token."""
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            stream, _ = server.accept()
            with stream:
                stream.settimeout(TIMEOUT_S)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if stream.recv(_TOKEN_BYTES, socket.MSG_WAITALL) != token:
                    continue
                for _ in range(PINGS):
                    stream.sendall(stream.recv(1))
                buffer = bytearray(2**20)
                while stream.recv_into(buffer):
                    pass
                stream.sendall(b".")
                return


def _ping(
    to: int, source: str, address: str, port: int, token: str
) -> tuple[Link, socket.socket | None]:
    """The link with its latency, and the open connection; None if it fails."""
    where, step, stream = f"{address}:{port}", "cannot connect", None
    try:
        stream = socket.create_connection((address, port), TIMEOUT_S, (source, 0))
        step, trips = "no answer", []
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(token.encode())
        for _ in range(PINGS):
            began = time.perf_counter()
            stream.sendall(b".")
            _answer(stream)
            trips.append(time.perf_counter() - began)
    except OSError as error:
        if stream is not None:
            stream.close()
        return Link(to, where, error=f"{step} ({_reason(error)})"), None
    return Link(to, where, latency_s=statistics.median(trips)), stream


def _stream(link: Link, stream: socket.socket) -> Link:
    """The link with its bandwidth: what is sent in `SEND_S` and read at the other end."""
    sent, began = 0, time.perf_counter()
    try:
        with stream:
            while time.perf_counter() - began < SEND_S:
                sent += stream.send(_CHUNK)
            stream.shutdown(socket.SHUT_WR)
            _answer(stream)
    except OSError as error:
        fault = f"connects, but data does not get through ({_reason(error)})"
        return dataclasses.replace(link, error=fault)
    return dataclasses.replace(link, mbit=sent * 8 / (time.perf_counter() - began) / 1e6)


def _answer(stream: socket.socket) -> None:
    if not stream.recv(1):
        raise ConnectionResetError(0, "closed by the other end")


def _reason(error: OSError) -> str:
    return error.strerror or ("timed out" if isinstance(error, TimeoutError) else str(error))
