"""Sums over real ranks by the algorithm for slow links, and ranks that were given different ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hvdtrain.launch.links import ALGORITHM, SLOW_LINK_SETTINGS
from tests.launch import REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/sums_worker.py"


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_sums_by_a_ring_are_exact_and_equal_on_all_ranks(ranks: int, tmp_path: Path) -> None:
    done = run(mpirun(ranks, sys.executable, WORKER), cwd=tmp_path, **SLOW_LINK_SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all sums are right") == ranks


def test_ranks_with_different_algorithms_do_not_start(tmp_path: Path) -> None:
    """Rank 1 alone has the settings; they agree while Open MPI starts, but not on larger sums."""
    given = " ".join(
        f"{name}={value}" for name, value in (SLOW_LINK_SETTINGS | {ALGORITHM: "3"}).items()
    )
    script = f'[ "$OMPI_COMM_WORLD_RANK" = 0 ] || export {given}; exec "$@"'
    words = [sys.executable, "-m", "hvdtrain", "doctor"]
    done = run(mpirun(2, "sh", "-c", script, "sh", *words), cwd=tmp_path, timeout_s=240)
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stdout.splitlines() if ALGORITHM in line]
    assert line.startswith("FAULT ")
    assert "wait for each other without end" in line
