"""Noise scale, overflow and optimizers on real ranks."""

from __future__ import annotations

import json
import sys

import pytest

from tests.launch import REPOSITORY, mpirun, run
from tests.noise_problem import EXACT

WORKER = REPOSITORY / "tests/parallel/noise_worker.py"


@pytest.fixture(scope="module")
def scales(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The noise scale measured by 2 and 4 ranks; the worker checks everything else."""
    values = {}
    for ranks in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        out = folder / "noise.json"
        done = run(mpirun(ranks, sys.executable, WORKER, out), cwd=folder, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
        values[ranks] = json.loads(out.read_text())
    return values


def test_ranks_find_the_exact_value(scales: dict[int, float]) -> None:
    assert scales[2] == pytest.approx(EXACT, rel=0.1)
    assert scales[4] == pytest.approx(EXACT, rel=0.1)
