"""Speed of one training process on one core and on two, on a quiet machine and beside other work.

    python benchmarks/cores.py [--rounds 3]

Every turn is a new `hvdtrain train` of `configs/cifar10_quick.yaml` on noise in JPEG files of 32 px. It
is bound to one core or to two; "1 thread" sets `train.compute_threads=1`. "beside" means that a program
that never rests runs on the same cores. The figure of a turn is the median of the reported images per
second without the first three reports. Turns change places in every other round, and ratios are medians
over rounds. On a machine that is not quiet, give the turns precedence: `--prefix "nice -n -20"`.
The last line is {"quiet": two cores / one core, "beside": the same, "beside, 1 thread": the same}.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import free_port, in_turn, median_ratio, print_machine, print_result, print_table
from PIL import Image

CONFIG = Path(__file__).parents[1] / "configs/cifar10_quick.yaml"
IMAGES = 3840
CLASSES = 10
LEFT_OUT = 3  # reports
SPIN = "while True: pass"
CONTESTANTS = {
    "one core": (1, None, False),
    "two cores": (2, None, False),
    "one core, beside": (1, None, True),
    "two cores, beside": (2, None, True),
    "two cores, 1 thread, beside": (2, 1, True),
}
"""Cores, `train.compute_threads`, and whether another program runs."""


def make_images(folder: Path) -> None:
    """Write noise that compresses about as well as photographs."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
        target = folder / str(number % CLASSES)
        target.mkdir(exist_ok=True)
        image.save(target / f"{number}.jpg", quality=95)


def turn(name: str, images: Path, prefix: list[str]) -> float:
    """Train one epoch of 30 steps; returns images per second."""
    cores, threads, beside = CONTESTANTS[name]
    bound = sorted(os.sched_getaffinity(0))[:cores]
    binding = [*prefix, "taskset", "-c", ",".join(map(str, bound))]
    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as run:
        command = [*binding, sys.executable, "-m", "hvdtrain", "train", str(CONFIG)]
        command += [
            f"data.train={images}",
            "data.val=null",
            "phases=[{epochs: 1, image_size: 24, batch_per_worker: 128}]",
            "lr.points=[[0, 1]]",
        ]
        command += [f"metrics.port={free_port()}", "train.log_every=3", "--run-dir", f"{run}/run"]
        command += [f"train.compute_threads={threads}"] if threads else []
        other = subprocess.Popen([*binding, sys.executable, "-c", SPIN]) if beside else None
        try:
            subprocess.run(command, check=True, capture_output=True)
        finally:
            if other is not None:
                other.kill()
                other.wait()
        lines = (Path(run) / "run/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    speeds = [e["images_per_second"] for e in events if e["kind"] == "train"]
    return statistics.median(speeds[LEFT_OUT:])


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefix", default="", help="command to put before that of every turn")
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as folder:
        make_images(Path(folder))
        prefix = shlex.split(args.prefix)
        contestants = {n: functools.partial(turn, n, Path(folder), prefix) for n in CONTESTANTS}
        figures = in_turn(contestants, args.rounds)
    print_table("images/s", figures)
    one, beside = figures["one core"], figures["one core, beside"]
    print_result(
        {
            "quiet": round(median_ratio(figures["two cores"], one), 3),
            "beside": round(median_ratio(figures["two cores, beside"], beside), 3),
            "beside, 1 thread": round(
                median_ratio(figures["two cores, 1 thread, beside"], beside), 3
            ),
        }
    )


if __name__ == "__main__":
    main()
