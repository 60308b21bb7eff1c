"""Made-up run directories with known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Log:
    """Writes `events.jsonl` below `root`, one event at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._file = root / "events.jsonl"
        self._file.touch()

    def raw(self, text: str) -> None:
        """One line as it is."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write(self, time: float, kind: str, **values: Any) -> None:
        """One event."""
        self.raw(json.dumps({"time": time, "kind": kind, **values}))

    def train(self, time: float, step: int, **values: Any) -> None:
        """Steps of ten images, ten of them in ten seconds; an epoch has 200 images."""
        known: dict[str, Any] = {
            "step": step,
            "epoch": step / 20,
            "epochs": 2,
            "image_size": 32,
            "global_batch_size": 10,
            "lr": 0.1,
            "efficiency": 0.9,
            "loss": 2.0,
            "top1": 0.3,
            "samples": 100.0,
            "seconds": 10.0,
            "images_per_second": 10.0,
            "data_wait_ratio": 0.1,
        }
        known |= values
        known.setdefault("step_seconds", known["seconds"] / known["samples"] * 10)
        self.write(time, "train", **known)

    def eval(self, time: float, step: int, top1: float, **values: Any) -> None:
        """One evaluation."""
        known = {"top5": 0.99, "loss": 1.0 - top1, "images": 50}
        self.write(time, "eval", step=step, epoch=step / 20, top1=top1, **{**known, **values})

    def json(self, name: str, values: dict[str, Any]) -> None:
        """Another file of the run."""
        (self.root / name).write_text(json.dumps(values), encoding="utf-8")


def restarted(root: Path, *, starts: bool = True) -> Log:
    """Killed at step 30, ten steps after its checkpoint; resumed 948 s later on twice the nodes.

    Training takes 40 s, and 10 s more are lost and made again. The first attempt is 990-1032 on two
    nodes, the second 1980-2024 on four. Top-1 is 0.5 after epoch 1, 0.8 after epoch 2. Without
    `starts` the log is that of an older version: it lacks the first 10 s and the number of nodes.
    """
    log = Log(root)
    if starts:
        log.write(1000, "start", world_size=4, nodes=2, setup_seconds=10.0)
    log.train(1010, 10)
    log.train(1020, 20)
    log.eval(1021, 20, 0.5)
    log.write(1022, "checkpoint", path="e1", seconds=0.5, step=20)
    log.train(1032, 30)
    if starts:
        log.write(1999, "note", text="resumed from e1: epoch 1, image 0")
        log.write(2000, "start", world_size=8, nodes=4, setup_seconds=20.0)
    log.train(2010, 30)
    log.train(2020, 40, image_size=64, seconds=10.0)
    log.eval(2022, 40, 0.8)
    log.write(2023, "checkpoint", path="e2", seconds=0.5, step=40)
    log.write(2024, "end", world_size=8, wall_seconds=44.0)
    return log
