"""HTTP client that requests pages as often as Prometheus and a browser with the live page do.

`python scraper.py PORT…` requests the metrics of every port, and the data of the live page of the
first (rank 0). At SIGTERM it prints the number of good answers and ends.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SCRAPE_S, PAGE_S = 5, 2
"""Seconds between scrapes (deploy/prometheus), and between updates of the live page (live.js)."""


class Scraper:
    """The client in a new process, which runs only inside `at_work`. No client without ports."""

    def __init__(self, ports: list[str]) -> None:
        self._process = None
        if ports:
            command = [sys.executable, str(Path(__file__).resolve()), *ports]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            atexit.register(self._process.kill)
            self._signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the client run until the context closes."""
        self._signal(signal.SIGCONT)
        yield
        self._signal(signal.SIGSTOP)

    def close(self) -> int:
        """End the client; returns the number of good answers."""
        if self._process is None:
            return 0
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=30)
        return int(out or 0)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def scrape(ports: list[int]) -> None:
    """Request pages of these ports until SIGTERM; then print the number of good answers."""
    done = 0

    def end(*_: object) -> None:
        print(done, flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    for second in itertools.count():  # counts only seconds in which this process runs
        pages = [(port, "/metrics") for port in ports if second % SCRAPE_S == 0]
        pages += [(ports[0], "/api/live")] if second % PAGE_S == 0 else []
        for port, page in pages:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", page)
                answer = connection.getresponse()
                done += answer.status == 200 and len(answer.read()) > 1000
                connection.close()
        for _ in range(4):  # in four parts, because a sleep goes on while the process is stopped
            time.sleep(0.25)


if __name__ == "__main__":
    scrape([int(port) for port in sys.argv[1:]])
