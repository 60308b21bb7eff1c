"""An HTTP client in a process of its own that asks once a second: for the metrics of all ranks, as
Prometheus does, and for what rank 0's live page shows, as a browser does.

`python scraper.py PORT…` asks until SIGTERM, then prints how many good answers it got.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class Scraper:
    """The client in its process: asks `ports` of this machine while it is let. None without ports."""

    def __init__(self, ports: list[str]) -> None:
        self._process = None
        if ports:
            command = [sys.executable, str(Path(__file__).resolve()), *ports]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            atexit.register(self._process.kill)
            self._signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Scrape meanwhile."""
        self._signal(signal.SIGCONT)
        yield
        self._signal(signal.SIGSTOP)

    def close(self) -> int:
        """Answers it got."""
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
    """Ask every port once a second until SIGTERM; then print the number of good answers."""
    done = 0
    pages = [(ports[0], "/api/live"), *((port, "/metrics") for port in ports)]

    def end(*_: object) -> None:
        print(done, flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        for port, page in pages:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", page)
                answer = connection.getresponse()
                done += answer.status == 200 and len(answer.read()) > 1000
                connection.close()
        time.sleep(1.0)


if __name__ == "__main__":
    scrape([int(port) for port in sys.argv[1:]])
