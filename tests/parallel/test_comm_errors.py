"""Errors of a collective: wrong use keeps Horovod's reason, and only a lost rank is called lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, horovodrun, mpirun, run, torchrun

WORKER = REPOSITORY / "tests/parallel/comm_errors_worker.py"
LAUNCHERS = {
    "mpi": mpirun,
    "gloo": lambda ranks, *command: horovodrun(ranks, *command, controller="--gloo"),
}
Launch = Callable[..., list[str]]
WHERE = f"gradients on {os.uname().nodename}: "


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_different_shapes_keep_the_reason(launcher: str, tmp_path: Path) -> None:
    command = LAUNCHERS[launcher](2, sys.executable, WORKER, "mismatch", tmp_path)
    done = run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        text = (tmp_path / f"rank-{rank}").read_text()
        assert text.startswith(f"{WHERE}Mismatched ")
        assert "shape [3]" in text
        assert "shape [4]" in text
        assert "gone" not in text


@pytest.mark.parametrize("launch", [LAUNCHERS["gloo"], torchrun], ids=["horovod", "torch"])
def test_a_rank_that_left_is_called_gone(launch: Launch, tmp_path: Path) -> None:
    """By gloo, which does not kill the other rank as MPI does."""
    run(launch(2, sys.executable, WORKER, "leave", tmp_path), cwd=tmp_path)
    text = (tmp_path / "rank-0").read_text()
    assert text.startswith(f"{WHERE}another rank is gone or unreachable (")
    assert "--resume auto" in text
