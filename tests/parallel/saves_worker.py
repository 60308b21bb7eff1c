"""Trains the same run several times on all ranks: without and with checkpoints in mid-epoch, by steps
and by time, and from one of these to the end."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hvdtrain import train
from hvdtrain.comm.agreement import any_rank
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import load_config

RUNS = {
    "whole": [],
    "steps": ["checkpoint.every_steps=4"],
    "time": ["checkpoint.every_minutes=1e-9"],
}
MIDDLE = "e0001-s0000000008"
"""After step 8 of a run with 6 steps an epoch: 2 × 4 images of the second epoch."""


def cut(comm: Comm, run: Path, target: Path) -> None:
    """A copy of `run` as it was when it wrote MIDDLE."""
    if comm.rank == 0:
        shutil.copytree(run, target)
        (target / "summary.json").unlink()
        for path in (target / "checkpoints").iterdir():
            if path.name > MIDDLE:
                shutil.rmtree(path)
    any_rank(comm, False)


def main(folder: Path) -> None:
    train.write_page = lambda run: None  # matplotlib takes seconds
    comm = init_comm()
    for name, settings in RUNS.items():
        train.train(load_config(folder / "c.yaml", settings), comm, run_dir=folder / name)
    cut(comm, folder / "steps", folder / "resumed")
    train.train(load_config(folder / "c.yaml"), comm, resume=str(folder / "resumed"))
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
