"""Train a few steps with one thing made slow; rank 0 writes the last report of the run."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain import train as loop
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.engine.step import State
from pipelines.sources import folder

CONFIG = """
data: {{train: {root}/train, decode_threads: 1}}
model: {{name: {model}}}
lr: {{base: 0.01, warmup: none}}
phases: [{{epochs: 1, image_size: 16, batch_per_worker: 4}}]
train: {{precision: fp32, log_every: 1000}}
comm: {{group_mb: 0.02, link_gbit: 0.2}}
metrics: {{enabled: false}}
"""
STEP_S = 0.05
"""Every step computes at least this long, so that other losses are small beside the injected one."""


def slow_reading(seconds: float) -> None:
    """Read as from a disk that serves one image at a time, in `seconds`."""
    read, disk = folder.read_file, threading.Lock()

    def slowly(path: bytes) -> np.ndarray:
        with disk:
            time.sleep(seconds)
        return read(path)

    folder.read_file = slowly


def slow_forward(seconds: float) -> None:
    """Let every forward pass take `seconds` longer."""
    forward = State.forward

    def slowly(self: State, *args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return forward(self, *args, **options)

    State.forward = slowly  # type: ignore[method-assign]


def timed_steps() -> list[float]:
    """Seconds of each step once its images are there, by a clock of ours."""
    step, seconds = loop.train_step, []

    def timed(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return step(*args, **options)
        finally:
            seconds.append(time.perf_counter() - began)

    loop.train_step = timed
    return seconds


def main(root: str, out: Path, slow: str) -> None:
    loop.write_page = lambda run: None  # matplotlib takes seconds
    comm = init_comm()
    slow_rank = comm.rank in {"rank 1": (1,), "ranks 2 and 3": (2, 3)}.get(slow, ())
    if slow == "data" or (slow == "data of rank 1" and comm.rank == 1):
        slow_reading(0.05)  # 4 images a step
    model = "resnet11_cifar" if slow == "network" else "resnet8_gn"  # 1.2 million parameters
    slow_forward(STEP_S + (0.15 if slow_rank else 0.0))
    cfg = parse_config(CONFIG.format(root=root, model=model))
    steps = timed_steps()
    loop.train(cfg, comm, run_dir=out / "run")
    if comm.rank == 0:
        events = [json.loads(line) for line in (out / "run/events.jsonl").read_text().splitlines()]
        [report] = [event for event in events if event["kind"] == "train"]
        computing_s = sum(steps) / len(steps)
        (out / "report.json").write_text(json.dumps({**report, "computing_s": computing_s}))
    comm.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
