"""Trains the same run several times on all ranks: without and with checkpoints in mid-epoch, by steps
and by time, and from one of these to the end."""

from __future__ import annotations

import sys
from pathlib import Path

from hvdtrain import train
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import load_config
from tests.cut_runs import cut

RUNS = {
    "whole": [],
    "steps": ["checkpoint.every_steps=4"],
    "time": ["checkpoint.every_minutes=1e-9"],
}


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
