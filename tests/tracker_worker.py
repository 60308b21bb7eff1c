"""The process of a tracker that writes to a file, and fails in ways that `about.place` names."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from hvdtrain.telemetry.trackers import worker
from hvdtrain.telemetry.trackers.worker import About, Record, Status


class InFile:
    """Writes what it gets to `sent.jsonl` in the run directory."""

    def __init__(self, about: About, tell: Callable[[str], None]) -> None:
        if about.place == "no import":
            raise ImportError("its library is broken")
        self._about, self._root = about, Path(about.root)
        print("libraries print where they like", flush=True)

    def open(self) -> None:
        """A server that is down until the file `up` is there."""
        if self._about.place == "down" and not (self._root / "up").exists():
            key = os.environ.get("FILE_API_KEY", "")
            raise ConnectionError(f"https://user:word@host refused the key {key}\nwith more lines")
        self._append(asdict(self._about))

    def log(self, record: Record) -> None:
        """One line."""
        if self._about.place == "dies":
            os._exit(3)
        if self._about.place == "hangs":
            time.sleep(3600)
        if self._about.place == "lost" and record.step == 40:
            raise ConnectionError("the server is gone")
        self._append(asdict(record))

    def finish(self, status: Status, page: Path | None) -> None:
        """One line more."""
        self._append({"status": status, "page": page.name if page else None})

    def _append(self, values: object) -> None:
        with (self._root / "sent.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    worker.TRACKERS["file"] = ("tests.tracker_worker", "InFile")
    worker.FIRST_WAIT_S = 0.05
    worker.main(sys.argv[1])
