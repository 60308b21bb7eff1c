"""The ring that our patch adds to Horovod (0003-mpi-ring.patch), on real ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/ring_worker.py"


def activities(timeline: Path) -> set[str]:
    """The activities in the timeline that Horovod wrote."""
    text = timeline.read_text().rstrip().rstrip(",").rstrip("]")
    return {event["name"] for event in json.loads(text + "]") if event.get("ph") == "B"}


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_sums_by_the_ring_are_exact_and_equal_on_all_ranks(ranks: int, tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    extra = {"HOROVOD_MPI_RING_BYTES": "1024", "HOROVOD_TIMELINE": str(timeline)}
    done = run(mpirun(ranks, sys.executable, WORKER), cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"MPI_RING_ALLREDUCE", "MPI_ALLREDUCE"} <= activities(timeline)


def test_without_the_variable_mpi_sums(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    extra = {"HOROVOD_TIMELINE": str(timeline)}
    done = run(mpirun(2, sys.executable, WORKER), cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MPI_ALLREDUCE" in activities(timeline)
    assert "MPI_RING_ALLREDUCE" not in activities(timeline)
