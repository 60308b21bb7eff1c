"""Runs as they were in the middle, for tests that go on from there."""

from __future__ import annotations

import shutil
from pathlib import Path

from hvdtrain.comm.agreement import any_rank
from hvdtrain.comm.ranks import Comm

MIDDLE = "e0001-s0000000008"
"""After step 8 of a run with 6 steps an epoch: 2 × 4 images of the second epoch."""


def cut(comm: Comm, run: Path, target: Path, name: str = MIDDLE) -> None:
    """A copy of `run` as it was when it wrote its checkpoint `name`; every rank must call it."""
    if comm.rank == 0:
        shutil.copytree(run, target)
        (target / "summary.json").unlink()
        for path in (target / "checkpoints").iterdir():
            if path.name > name:
                shutil.rmtree(path)
    any_rank(comm, False)
