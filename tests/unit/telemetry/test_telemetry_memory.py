"""Telemetry keeps nothing of earlier steps and reports."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.launch import REPOSITORY, run

FLAT_BYTES = 16_000
"""More than the newest report needs, but less than one float for each of 800 reports."""


def grown_bytes(folder: Path, kind: str) -> int:
    """Measured in another process, since pytest and other tests allocate in this one."""
    worker = REPOSITORY / "tests/telemetry_memory_worker.py"
    done = run([sys.executable, str(worker), str(folder), kind], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1])


def test_telemetry_does_not_grow(tmp_path: Path) -> None:
    assert grown_bytes(tmp_path, "flat") < FLAT_BYTES


def test_one_float_kept_per_report_is_detected(tmp_path: Path) -> None:
    assert grown_bytes(tmp_path, "leak") > FLAT_BYTES
