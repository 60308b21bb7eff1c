"""Reduced gradients and the other collectives, on real ranks by MPI and gloo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, horovodrun, mpirun, run, torchrun

WORKER = REPOSITORY / "tests/parallel/reducer_worker.py"


@pytest.mark.parametrize(
    "command",
    [
        mpirun(1, sys.executable, WORKER),
        mpirun(2, sys.executable, WORKER),
        mpirun(3, sys.executable, WORKER),
        horovodrun(2, sys.executable, WORKER, controller="--gloo"),
        torchrun(2, sys.executable, WORKER),
        torchrun(3, sys.executable, WORKER),
    ],
    ids=["mpirun-1", "mpirun-2", "mpirun-3", "gloo-2", "torchrun-2", "torchrun-3"],
)
def test_gradients_are_those_of_the_whole_batch(command: list[str], tmp_path: Path) -> None:
    done = run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_update_by_groups_is_the_update_of_all(tmp_path: Path) -> None:
    worker = REPOSITORY / "tests/parallel/update_worker.py"
    done = run(mpirun(2, sys.executable, worker), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
