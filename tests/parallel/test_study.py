"""Studies of checkpoints on real ranks: their numbers do not depend on how many share the work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch import REPOSITORY, mpirun, run
from tests.study_runs import made_run

WORKER = REPOSITORY / "tests/parallel/study_worker.py"


def numbers(value: Any) -> list[float]:
    """All numbers in the results of a study, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_numbers_on_2_and_4_ranks_are_those_of_one(small_root: Path, tmp_path: Path) -> None:
    made_run(tmp_path / "a", small_root, checkpoints=3)
    made_run(tmp_path / "b", small_root, seed=1)
    command = mpirun(4, sys.executable, WORKER)
    done = run(command, cwd=tmp_path, timeout_s=600, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"sharpness", "hessian", "noise-scale", "interpolate", "landscape"}
    for study, by_ranks in found.items():
        one = numbers(by_ranks["1"])
        assert len(one) > 15
        for ranks in ("2", "4"):
            assert numbers(by_ranks[ranks]) == pytest.approx(one, rel=1e-6, abs=1e-6), study
