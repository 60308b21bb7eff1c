"""What grows over many restarts of one run: files, disk, memory, file handles, threads.

One process starts a small run on JPEGs again and again, in one run directory with a mirror. Every attempt
gets SIGTERM after so many steps, writes a checkpoint and ends; the next one goes on from it. After
each, the run directory, the mirror, TMPDIR and the process are looked at. `events.jsonl` grows by what it
records, so it is shown by itself. Memory is counted after freed memory was given back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import free_port, print_growth, print_machine, print_result
from PIL import Image

from hvdtrain import train as loop
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import Preempted
from hvdtrain.paths import RunPaths

CONFIG = """
name: soak
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.01, warmup: none, schedule: constant}}
phases: [{{epochs: {epochs}, image_size: 16, batch_per_worker: 4}}]
train: {{ema_decay: 0.9, compute_threads: 1}}
checkpoint: {{mirror: {root}/second, keep_best: 1}}
metrics: {{port: {port}}}
"""
PER_EPOCH = 40
"""Steps."""


def make_images(root: Path) -> None:
    """Two classes of noise, for `PER_EPOCH` steps of 4 images, and two validation images."""
    random = np.random.default_rng(0)
    for part, count in (("train", 2 * PER_EPOCH), ("val", 1)):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{k}.jpg")


class Stopping:
    """Counts the steps of all attempts, and sends this process SIGTERM after `every` of one."""

    def __init__(self, every: int) -> None:
        self._every, self._step = every, loop.train_step
        self.steps = self._of_attempt = 0

    def begin(self) -> None:
        """A new attempt."""
        self._of_attempt = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        """In place of `train_step`."""
        self.steps += 1
        self._of_attempt += 1
        if self._of_attempt == self._every:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._step(*args, **options)


def files_and_bytes(root: Path, but: str = "") -> tuple[int, int]:
    """Files and folders below `root`, and bytes of the files, without those named `but`."""
    found = [path for path in root.rglob("*") if path.name != but]
    return len(found), sum(path.stat().st_size for path in found if path.is_file())


def look(root: Path, run_dir: Path) -> dict[str, float]:
    """The figures now."""
    files, size = files_and_bytes(run_dir, but="events.jsonl")
    mirror_files, mirror_size = files_and_bytes(root / "second")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, and glibc keeps, is no growth
    status = Path("/proc/self/status").read_text()
    resident_kb = int(status.partition("VmRSS:")[2].split()[0])
    return {
        "files of the run": files,
        "MB of the run": size / 1e6,
        "files of the mirror": mirror_files,
        "MB of the mirror": mirror_size / 1e6,
        "files in TMPDIR": len(os.listdir(tempfile.gettempdir())),  # noqa: PTH208
        "memory of the process, MB": resident_kb / 1e3,
        "open files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": threading.active_count(),
        "events.jsonl, KB": RunPaths(run_dir).events.stat().st_size / 1e3,
    }


def attempts(cfg: Config, root: Path, restarts: int, every: int) -> tuple[list[Any], int, bool]:
    """The figures after each attempt, the steps of all, and whether the run has ended."""
    run_dir = root / "run"
    stopping = Stopping(every)
    loop.train_step = stopping  # type: ignore[assignment]
    figures = []
    for number in range(restarts + 1):
        stopping.begin()
        try:
            loop.train(cfg, Solo(), resume="auto" if number else "never", run_dir=run_dir)
        except Preempted:
            figures.append(look(root, run_dir))
        else:
            return figures, stopping.steps, True
    return figures, stopping.steps, False


def main() -> None:
    """Parse the arguments, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="steps of an attempt")
    args = parser.parse_args()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hvdtrain-soak-") as folder:
        root = Path(folder)
        make_images(root)
        (root / "tmp").mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(root / "tmp")
        # More than all attempts will do: a stop takes some steps.
        epochs = 2 + 2 * (args.restarts + 1) * args.every // PER_EPOCH
        cfg = parse_config(CONFIG.format(root=root, epochs=epochs, port=free_port()))
        with (root / "log").open("w") as log:
            held = os.dup(1)
            os.dup2(log.fileno(), 1)
            try:
                figures, steps, ended = attempts(cfg, root, args.restarts, args.every)
            finally:
                os.dup2(held, 1)
                os.close(held)
    assert not ended, "more epochs are needed"
    print(f"{steps:,} steps, {len(figures) - 1} restarts, {time.perf_counter() - began:.0f} s")
    print_machine()
    result = print_growth(figures)
    print_result({"steps": steps, "restarts": len(figures) - 1, **result})


if __name__ == "__main__":
    main()
