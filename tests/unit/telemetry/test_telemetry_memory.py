"""Telemetry keeps nothing of the steps and reports that are over."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.launch import REPOSITORY, run

FLAT_BYTES = 16_000
"""What the newest report holds, and less than one float more of each of 800 reports."""


def grown_bytes(folder: Path, kind: str) -> int:
    """Of a process of its own: in this one pytest and other tests allocate, too."""
    worker = REPOSITORY / "tests/telemetry_memory_worker.py"
    done = run([sys.executable, str(worker), str(folder), kind], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1])


def test_telemetry_does_not_grow(tmp_path: Path) -> None:
    assert grown_bytes(tmp_path, "flat") < FLAT_BYTES


def test_a_float_kept_of_each_report_is_seen(tmp_path: Path) -> None:
    assert grown_bytes(tmp_path, "leak") > FLAT_BYTES
